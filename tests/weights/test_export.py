import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from configs import make_config

import resnet_jax
from resnet_jax import data, training
from resnet_jax.commands import evaluate, train
from resnet_jax.commands.evaluate import EvaluateConfig
from resnet_jax.config import ModelConfig
from resnet_jax.data import sources
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.weights import export, pretrained


@pytest.fixture(scope="module")
def digits():
    train, test = data.load_dataset("digits")
    return train.take(slice(96)), test.take(slice(50))


@pytest.fixture(scope="module", autouse=True)
def few(digits):
    """Uses these images instead of the whole dataset."""
    with pytest.MonkeyPatch.context() as patch:
        small = sources.Source((32, 32, 3), lambda cfg: (10, lambda: digits))
        patch.setitem(sources.SOURCES, "digits", small)
        yield


@pytest.fixture(scope="module")
def trained(few, tmp_path_factory):
    """Returns a short run of resnet8 and the folder that it is exported to."""
    home = tmp_path_factory.mktemp("export")
    run_dir, folder = home / "run", home / "exported"
    cfg = make_config(
        model="resnet8",
        dataset="digits",
        normalize="half",
        max_steps=3,
        batch_size=32,
        eval_batch_size=50,
        workdir=str(run_dir),
    )
    train.main(cfg)
    evaluate.main(EvaluateConfig(run=str(run_dir), export=str(folder)))
    return run_dir, folder


@pytest.fixture
def run(trained, tmp_path):
    """Returns copies of both that a test may damage."""
    for path in trained:
        shutil.copytree(path, tmp_path / path.name)
    return tmp_path / "run", tmp_path / "exported"


def last_line(run_dir):
    return json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])


@pytest.mark.process
def test_an_exported_folder_says_everything(run, capsys):
    run_dir, folder = run
    assert {p.name for p in folder.iterdir()} == {
        "model.safetensors",
        "config.json",
        "README.md",
    }
    modes = {p.stat().st_mode for p in folder.iterdir()}
    assert len(modes) == 1  # users who can read the card can read the weights
    info = json.loads((folder / "config.json").read_text())
    architecture = {
        "model": "resnet8",
        "num_classes": 10,
        "stem": None,
        "skip": True,
        "norm": "batch",
        "width": None,
        "whiten": False,
        "dtype": "float32",
        "in_channels": 3,
    }
    others = dataclasses.asdict(ModelConfig())
    assert info["architecture"] == "resnet8"
    assert info["model"] == {**others, **architecture}
    assert info["class_names"] == list("0123456789")
    assert info["preprocessing"]["mean"] == [0.5] * 3
    assert info["preprocessing"]["image_size"] == info["preprocessing"]["size"] == 32
    assert info["metrics"]["accuracy"] == last_line(run_dir)["test_accuracy"]
    assert info["metrics"]["step"] == 3
    assert info["parameters"] == 75_290 and info["versions"]["jax"] == jax.__version__
    card = (folder / "README.md").read_text()
    assert "# resnet8, trained on digits" in card and "75,290 parameters" in card


@pytest.mark.process
def test_a_folder_that_says_less_of_the_network_is_read(run):
    """Versions before in_channels wrote such a config.json."""
    _, folder = run
    info = json.loads((folder / "config.json").read_text())
    old = ("model", "num_classes", "stem", "skip", "norm", "width", "whiten", "dtype")
    info["architecture"] = {name: info["model"][name] for name in old}
    del info["model"]
    (folder / "config.json").write_text(json.dumps(info))
    model, variables, _ = resnet_jax.load_pretrained(folder)
    assert model.in_channels == 3
    assert variables["params"]["conv1"]["kernel"].shape == (3, 3, 3, 16)


def test_it_is_scored_as_the_run_is(run, tmp_path):
    run_dir, folder = run
    output = tmp_path / "report.json"
    evaluate.main(EvaluateConfig(run=str(folder), output=str(output), batch_size=50))
    report, last = json.loads(output.read_text()), last_line(run_dir)
    assert report["accuracy"] == last["test_accuracy"]
    assert report["loss"] == last["test_loss"]
    evaluate.main(
        EvaluateConfig(
            weights=str(folder / "model.safetensors"),
            model="resnet8",
            dataset="digits",
            normalize="half",
            batch_size=50,
            output=str(output),
        )
    )
    assert json.loads(output.read_text())["loss"] == last["test_loss"]


@pytest.mark.process
def test_it_is_loaded_and_trained_on(run, digits, tmp_path):
    run_dir, folder = run
    model, variables, preprocessing = resnet_jax.load_pretrained(folder)
    how = (32, 32, (0.5,) * 3, (0.25,) * 3, tuple("0123456789"), "bilinear")
    assert preprocessing == how
    x = (digits[1].images / 255 - 0.5) / 0.25
    logits = model.apply(variables, x.astype(np.float32), train=False)
    accuracy = float((logits.argmax(-1) == digits[1].labels).mean())
    assert accuracy == pytest.approx(last_line(run_dir)["test_accuracy"])

    cfg = make_config(
        model="resnet8",
        dataset="digits",
        pretrained=str(folder),
        freeze="backbone",
        backbone_bn="frozen",
        lr=0.0,  # so nothing changes
        max_steps=1,
        workdir=str(tmp_path / "more"),
    )
    train.main(cfg)
    assert last_line(tmp_path / "more")["test_accuracy"] == pytest.approx(accuracy)
    saved = json.loads((tmp_path / "more" / "config.json").read_text())
    assert saved["augment"]["normalize"] == "half"  # the weights' own


def test_another_number_of_classes_draws_a_new_head(run, caplog):
    caplog.set_level("INFO")
    _, folder = run
    old = resnet_jax.load_pretrained(folder)
    new = resnet_jax.load_pretrained(folder, num_classes=3)
    assert "a new fc" in caplog.text
    assert new.variables["params"]["fc"]["kernel"].shape == (64, 3)
    assert new.preprocessing.class_names is None
    for ours, theirs in ((new, old),):
        np.testing.assert_array_equal(
            ours.variables["params"]["conv1"]["kernel"],
            theirs.variables["params"]["conv1"]["kernel"],
        )
    other = resnet_jax.load_pretrained(folder, num_classes=3, key=jax.random.key(7))
    kernels = [x.variables["params"]["fc"]["kernel"] for x in (new, other)]
    assert not np.array_equal(*kernels)


def test_a_flipped_bit_is_found(run):
    _, folder = run
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataError, match="its sha256 starts with"):
        resnet_jax.load_pretrained(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"class_names": 3}'])
def test_a_damaged_config_is_refused(run, text):
    _, folder = run
    (folder / "config.json").write_text(text)
    with pytest.raises(DataError, match="config.json (is damaged|does not describe)"):
        resnet_jax.load_pretrained(folder)


def test_data_of_other_classes_are_refused(run, digits, monkeypatch):
    _, folder = run
    named = [data.Dataset(d.images, d.labels, tuple("abcdefghij")) for d in digits]
    other = sources.Source((32, 32, 3), lambda cfg: (10, lambda: named))
    monkeypatch.setitem(sources.SOURCES, "digits", other)
    message = r"differ from those of the data \(class 0 was '0' and is now"
    with pytest.raises(DataError, match=message):
        evaluate.main(EvaluateConfig(run=str(folder)))


def test_a_folder_that_cannot_be_written(run, tmp_path):
    run_dir, _ = run
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        evaluate.main(EvaluateConfig(run=str(run_dir), export=str(tmp_path / "file/x")))


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({}, "specify a run directory, or --weights"),
        ({"run": "a", "weights": "b", "model": "resnet8"}, "specify a run directory"),
        ({"weights": "b"}, "--weights and --model must be"),
        ({"run": "a", "model": "resnet8"}, "--weights and --model must be"),
        ({"run": "a", "batch_size": 0}, "batch_size 0 is too small"),
        ({"run": "a", "image_size": 0}, "image_size 0 is too small"),
    ],
)
def test_options_that_do_not_go_together(options, part):
    with pytest.raises(ConfigError, match=part):
        EvaluateConfig(**options)


def test_other_values_in_a_config_are_refused(run):
    _, folder = run
    sound = (folder / "config.json").read_text()
    for path, value in (
        (("sha256",), 5),
        (("sha256",), None),
        (("dataset",), None),
        (("class_names",), ["a"]),
        (("class_names",), [1] * 10),
        (("model", "num_classes"), 10**12),
        (("model", "in_channels"), 10**12),
        (("model", "in_channels"), "3"),
        (("model", "stem"), 3),
        (("model", "color"), 3),
        (("model", "dtype"), "x"),
        (("model", "width"), "8"),
        (("model", "width"), -3),
        (("model", "whiten"), 1),
        (("preprocessing", "image_size"), 10**9),
        (("preprocessing", "size"), True),
    ):
        inner = info = json.loads(sound)
        for name in path[:-1]:
            inner = inner[name]
        inner[path[-1]] = value
        (folder / "config.json").write_text(json.dumps(info))
        with pytest.raises(DataError, match="does not describe an exported network"):
            resnet_jax.load_pretrained(folder)


def test_a_network_is_torchvisions_only_with_its_epsilon():
    model = {"model": "resnet18", "stem": None, "bn_eps": 1e-5, "bn_momentum": 0.01}
    assert export.is_torchvisions(model) and export.is_timms(model)
    assert not export.is_torchvisions({**model, "bn_eps": 1e-3})


def test_the_card_states_an_unusual_epsilon(run, tmp_path):
    info = json.loads((run[1] / "config.json").read_text())
    _, variables, _ = resnet_jax.load_pretrained(run[1])
    for epsilon in (1e-5, 1e-3):
        info["model"]["bn_eps"] = epsilon
        export.write(tmp_path / f"{epsilon}", variables, info)
    usual, unusual = (
        (tmp_path / f"{e}" / "README.md").read_text() for e in (1e-5, 1e-3)
    )
    assert "epsilon" not in usual and "\n\nBatchNorm's epsilon is 0.001.\n\n" in unusual


def test_the_epsilon_of_a_network_goes_with_its_weights(run, tmp_path, capsys):
    def score(**options):
        """Returns the last line of evaluate.py, without a note on its images."""
        capsys.readouterr()
        evaluate.main(EvaluateConfig(**options))
        return capsys.readouterr().out.splitlines()[-1].partition(" (")[0]

    _, folder = run
    info = json.loads((folder / "config.json").read_text())
    assert info["model"]["bn_eps"] == 1e-5
    usual = score(run=str(folder))
    info["model"]["bn_eps"] = 0.3
    (folder / "config.json").write_text(json.dumps(info))
    found = score(run=str(folder))
    assert resnet_jax.load_pretrained(folder)[0].bn_eps == 0.3
    bare = shutil.copy(folder / "model.safetensors", tmp_path / "bare.safetensors")
    own = {"weights": str(bare), "model": "resnet8"}
    own |= {"dataset": "digits", "normalize": "half"}
    assert score(**own) == usual != found == score(**own, bn_eps=0.3)
    model = resnet_jax.create_model("resnet8", num_classes=10)
    message = "has another BatchNorm epsilon than the model: use --bn-eps 0.3"
    with pytest.raises(ConfigError, match=message):
        pretrained.begin_from({}, model, source=str(folder), name="resnet8")
    model = resnet_jax.create_model("resnet8", num_classes=10, norm="none")
    variables = training.variable_shapes(model, (32, 32, 3))
    with pytest.raises(DataError):  # not for its epsilon
        pretrained.begin_from(variables, model, source=str(folder), name="resnet8")
