"""Commands that use weights in various formats."""

import argparse
import json
import shutil

import numpy as np
import pytest
from torch_writer import save

import resnet_jax
from resnet_jax.commands import train
from resnet_jax.weights import exported, hf_hub, pretrained

pytestmark = pytest.mark.process  # each trains, and traces its network again
OPTIONS = ("--dataset", "digits", "--normalize", "half")


def last_line(text):
    return text.splitlines()[-1]


@pytest.fixture
def trained(digits_run):
    """The directory of a short run."""
    _, run_dir = digits_run(epochs=1, normalize="half")
    return run_dir


@pytest.fixture
def folder(trained, command, tmp_path):
    """The exported run."""
    assert command("export", trained, tmp_path / "exported")[0] == 0
    return tmp_path / "exported"


@pytest.fixture
def state(folder):
    return resnet_jax.read_state_dict(folder)


def around(state):
    content = {f"module.net.{name}": value for name, value in state.items()}
    return {"state_dict": content, "args": argparse.Namespace(lr=0.1), "epoch": 3}


def test_a_checkpoint_of_somebodys_training(
    command,
    trained,
    state,
    one_block,
    digits_run,
    tmp_path,
):
    path = save(tmp_path / "ckpt.pth", around(state))
    expected = last_line(command("evaluate", trained)[1])
    named = ("--weights", path, "--model", one_block, *OPTIONS)
    code, out, err = command("evaluate", *named)
    assert (code, last_line(out)) == (0, expected)
    adopted = f"weights: {path}, key state_dict, prefix net., without module., "
    normalized = (
        "weights: images normalized as half; the file does not specify the "
        "normalization, and --normalize cifar10 is usual for this type of file\n"
    )
    assert err == f"{adopted}with its fc\n{normalized}"

    cfg, run_dir = digits_run(
        pretrained=str(path),
        lr=0.0,
        freeze="backbone",
        backbone_bn="frozen",
        normalize="half",
        epochs=1,
        workdir=str(tmp_path / "more"),
    )
    assert last_line(command("evaluate", run_dir)[1]) == expected


def test_of_two_networks_one_is_named(
    command,
    trained,
    state,
    one_block,
    tmp_path,
):
    other = {n: v + 1 if v.dtype == np.float32 else v for n, v in state.items()}
    path = save(tmp_path / "w.pth", {"model": other, "model_ema": state})
    named = ("--weights", path, "--model", one_block, *OPTIONS)
    code, out, err = command("evaluate", *named)
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert "'model', 'model_ema': choose one with --weights-key model_ema" in err
    code, out, _ = command("evaluate", *named, "--weights-key", "model_ema")
    expected = last_line(command("evaluate", trained)[1])
    assert (code, last_line(out)) == (0, expected)


def test_a_network_of_the_hub(
    command,
    trained,
    folder,
    tmp_path,
    monkeypatch,
    digits_run,
):
    """The download is a folder with the network's name."""
    asked = []

    def fetch(source):
        asked.append(source)
        return folder

    monkeypatch.setattr(hf_hub, "fetch", fetch)
    expected = last_line(command("evaluate", trained)[1])
    name = "hf-hub:somebody/digits"
    code, out, err = command("evaluate", "--weights", name)
    assert (code, err) == (0, "") and last_line(out) == expected
    assert f"{name}: one_block on digits" in out
    loaded = pretrained.load_pretrained(name)
    assert loaded.preprocessing.mean == (0.5,) * 3
    _, run_dir = digits_run(
        pretrained=name,
        lr=0.0,
        freeze="backbone",
        backbone_bn="frozen",
        epochs=1,
        workdir=str(tmp_path / "more"),
    )
    assert last_line(command("evaluate", run_dir)[1]) == expected
    saved = json.loads((run_dir / "config.json").read_text())
    assert saved["augment"]["normalize"] == "half"  # the folder's own
    assert set(asked) == {name}


def test_a_folder_that_timm_wrote_says_its_network(
    command,
    folder,
    tmp_path,
    monkeypatch,
    image,
):
    """Uses a network that timm does not have."""
    info = json.loads((folder / "config.json").read_text())
    names = [f"digit {index}" for index in range(10)]
    theirs = {
        "architecture": "one_block",
        "num_classes": 10,
        "pretrained_cfg": {
            **{"mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 0.875},
            **{"input_size": [3, 32, 32], "interpolation": "bicubic"},
            **{"label_names": names},
        },
    }
    monkeypatch.setitem(pretrained.IMAGENET, "one_block", "one_block.pth")
    assert info["architecture"] == "one_block" and info["num_classes"] == 10
    (folder / "config.json").write_text(json.dumps(theirs))
    code, out, err = command("predict", folder, image)
    assert code == 0 and "digit " in out and "with its fc" in err
    _, _, shown = pretrained.load_pretrained(folder)
    assert (shown.size, shown.crop, shown.interpolation) == (36, 32, "bicubic")
    assert shown.class_names == tuple(names) and shown.std == (0.25,) * 3
    del theirs["pretrained_cfg"]["label_names"]  # then classes are numbered
    (folder / "config.json").write_text(json.dumps(theirs))
    code, out, err = command("predict", folder, image)
    assert code == 0 and "digit " not in out and len(out.splitlines()) == 6
    (folder / "config.json").write_text(json.dumps({**theirs, "architecture": "vit"}))
    code, out, err = command("predict", folder, image)
    assert (code, out) == (3, "") and "holds timm's vit, which is not supp" in err
    (folder / "config.json").write_text("{")
    code, out, err = command("predict", folder, image)
    assert (code, out) == (3, "") and "config.json is damaged" in err


def test_a_network_of_one_channel_is_trained_and_loaded(
    command,
    digits_run,
    tmp_path,
):
    _, run_dir = digits_run(
        in_channels=1, normalize="half", epochs=1, workdir=str(tmp_path / "gray")
    )
    code, out, _ = command("evaluate", run_dir)
    assert code == 0
    assert command("export", run_dir, tmp_path / "out")[0] == 0
    loaded = pretrained.load_pretrained(tmp_path / "out")
    assert loaded.variables["params"]["conv1"]["kernel"].shape[2] == 1
    assert last_line(command("evaluate", tmp_path / "out")[1]) == last_line(out)
    path = tmp_path / "bare.safetensors"
    shutil.copy(tmp_path / "out" / exported.WEIGHTS, path)
    named = ("--weights", path, "--model", "one_block", *OPTIONS)
    code, _, err = command("evaluate", *named)
    assert code == 3 and "takes images with 1 channel, but the chosen network" in err
    code, again, _ = command("evaluate", *named, "--in-channels", "1")
    assert code == 0 and last_line(again) == last_line(out)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"acc": 91.0}, "holds no tensors"),
        ({"w": np.ones(3, np.float32)}, "does not fit one_block: "),
    ],
)
def test_a_file_without_the_weights_ends_in_one_line(
    command,
    digits_run,
    one_block,
    tmp_path,
    content,
    words,
):
    path = save(tmp_path / "w.pth", content)
    named = ("--weights", path, "--model", one_block, "--dataset", "digits")
    code, out, err = command("evaluate", *named)
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert f"{path} {words}" in err
    with pytest.raises(Exception, match=words):
        digits_run(pretrained=str(path), workdir=str(tmp_path / "run"))
    assert train.main  # the same message from both
