"""Runs the commands as functions, and checks output, files and errors."""

import json
import re
import shutil
import sys
import types
import typing
from pathlib import Path

import jax.export
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import resnet_jax
from resnet_jax import commands
from resnet_jax.commands import doctor, export
from resnet_jax.data import sources
from resnet_jax.devices import platform
from resnet_jax.weights import exported

OPTIONS = ("--dataset", "digits", "--normalize", "half", "--stem", "cifar")


_TRAINED = []


@pytest.fixture
def run_dir(digits_run, tmp_path):
    """A copy of a short run on few digits."""
    if not _TRAINED:
        _TRAINED.append(digits_run(epochs=1, max_train_samples=64)[1])
    return shutil.copytree(_TRAINED[0], tmp_path / "trained")


def last_line(text):
    return text.splitlines()[-1]


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_command_has_its_help(name, command):
    code, out, err = command(name, "--help")
    assert (code, err) == (0, "") and f"resnet-jax {name}" in out
    _, listed, _ = command("--help")
    assert re.search(rf"^  {name} +\S", listed, re.MULTILINE)


def test_a_command_that_is_not_there(command):
    code, out, err = command("nonsense")
    assert (code, out) == (2, "")
    assert err == (
        "resnet-jax: unknown command 'nonsense' (`resnet-jax --help` lists the "
        "commands)\n"
    )
    code, out, err = command("--help")
    assert (code, err) == (0, "") and "evaluate" in out


def test_the_networks_are_listed(command, one_block):
    code, out, _ = command("models", "list")
    assert code == 0 and out.splitlines() == resnet_jax.list_models()
    assert {"hresnet", "resnet18", "resnet9", one_block} <= set(out.splitlines())


def test_a_network_is_summarized(command):
    code, out, _ = command(
        *("models", "summary", "resnet8", "--num-classes", 10, "--image-size", 32)
    )
    assert code == 0 and "75,290" in out and "multiply-adds" in out
    code, out, _ = command(
        *("models", "summary", "resnet8", "--num-classes", 10, "--image-size", 32),
        *("--in-channels", 1),
    )
    assert code == 0 and f"{75_290 - 2 * 9 * 16:,}" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("models", "summary"), "specify a network: resnet-jax models summary"),
        (("models", "summary", "resnet19"), "unknown model 'resnet19'"),
        (("predict", "run"), "specify the image files: resnet-jax predict RUN"),
        (("predict", "nowhere", "a.png"), "no run at nowhere"),
        (("compare",), "specify the run directories: resnet-jax compare RUN RUN"),
        (("export", "run"), "specify the output folder: resnet-jax export RUN DIR"),
        (("export", "nowhere", "folder"), "no run at nowhere"),
        (("export", "--weights", "a.pth", "folder"), "--weights and --model must"),
    ],
)
def test_what_a_command_cannot_do_is_one_line(arguments, message, command):
    code, out, err = command(*arguments)
    assert code == 2 and out == ""
    assert err.startswith(f"resnet-jax {arguments[0]}: {message}")
    assert err.count("\n") == 1


def test_a_file_is_classified_the_same_by_a_run_its_export_and_its_weights(
    command, run_dir, image, one_block, tmp_path
):
    code, expected, err = command("predict", run_dir, image)
    assert (code, err) == (0, "")
    first, *classes = expected.splitlines()
    assert first == str(image) and len(classes) == 5
    percents = [float(line.split()[0]) for line in classes]
    assert percents == sorted(percents, reverse=True) and percents[0] >= 10

    folder = tmp_path / "folder"
    code, out, err = command("export", run_dir, folder)
    assert (code, out, err) == (0, f"exported: {folder}\n", "")
    assert command("predict", folder, image) == (0, expected, "")
    weights = tmp_path / "bare.safetensors"
    weights.write_bytes((folder / exported.WEIGHTS).read_bytes())
    named = ("--weights", weights, "--model", one_block, *OPTIONS)
    said = f"weights: {weights}, with its fc\n"
    assert command("predict", *named, image) == (0, expected, said)
    assert command("predict", *named, image, image) == (0, 2 * expected, said)

    # Bare weights are exported again in full.
    again = tmp_path / "again"
    assert command("export", *named, again)[:2] == (0, f"exported: {again}\n")
    for name, array in load_file(weights).items():
        np.testing.assert_array_equal(load_file(again / exported.WEIGHTS)[name], array)
    assert last_line(command("evaluate", folder)[1]) == last_line(
        command("evaluate", run_dir)[1]
    )


@pytest.mark.process
def test_the_old_options_of_evaluate_do_it_still_and_say_the_new_command(
    command, run_dir, image, tmp_path, monkeypatch
):
    def old(*arguments):
        code, out, err = command("evaluate", *arguments)
        assert code == 0 and err.count("\n") == 1
        (new,) = re.findall("use `resnet-jax (.*)`", err)
        return out, new

    out, new = old(run_dir, "--images", image)
    assert new == "predict RUN FILES" and out == command("predict", run_dir, image)[1]

    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    out, new = old(run_dir, "--export", ours)
    assert new == "export RUN DIR" and f"exported: {ours}\n" in out
    assert last_line(out).startswith("Acc@1 ")
    command("export", run_dir, theirs)
    for name in (exported.WEIGHTS, exported.CONFIG, exported.CARD):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()

    monkeypatch.chdir(run_dir.parent)  # the name is in a legend, which has little space
    out, new = old("--compare", run_dir.name, "--page", "page.html")
    last = json.loads(last_line((run_dir / "metrics.jsonl").read_text()))
    assert new == "compare RUNS" and out.split()[0] == run_dir.name
    assert re.search(rf"^test %, last +{100 * last['test_accuracy']:.2f}$", out, re.M)
    new = command("compare", run_dir.name, "--page", "other.html")
    assert new == (0, out.replace("page: page.html", "page: other.html"), "")
    assert Path("other.html").read_bytes() == Path("page.html").read_bytes()


def test_classes_of_all_sizes_count_alike_in_two_of_the_scores(
    command, run_dir, tmp_path
):
    output = tmp_path / "scores.json"
    code, out, _ = command("evaluate", run_dir, "--output", output)
    assert code == 0
    found = json.loads(output.read_text())
    recalls = [one for one in found["class_accuracy"].values() if one is not None]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls), rel=1e-12)
    assert 0 < found["macro_f1"] < 1
    accuracy, f1 = 100 * found["balanced_accuracy"], 100 * found["macro_f1"]
    *_, line, one_batch, last = out.splitlines()
    assert line == f"balanced accuracy {accuracy:.3f} macro-F1 {f1:.3f}"
    assert one_batch.startswith("one batch: Acc@1 ")
    assert re.fullmatch(r"Acc@1 \S+ Acc@5 \S+ loss \S+ n 40", last)


def test_the_doctor_says_what_is_here_and_checks_the_arithmetic(command):
    code, out, err = command("doctor")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert ["jax", sys.modules["jax"].__version__] in lines
    assert re.search(r"^device +cpu 0: ", out, re.MULTILINE)
    for name in ("cifar10", "cifar100", "fashion_mnist"):
        assert re.search(rf"^data: {name} +not in ", out, re.MULTILINE)
    assert re.search("^weights +in this package: resnet20-cifar10$", out, re.MULTILINE)
    checked = re.findall(r"^check: (.+?) {2,}right, differs by \S+$", out, re.MULTILINE)
    assert checked == list(doctor.CHECKS)


def test_the_doctor_tells_why_jax_chose_the_cpu(command, monkeypatch):
    told = re.compile("^accelerator +none: a reason$", re.MULTILINE)
    monkeypatch.setattr(platform, "missing_accelerator", lambda: "none: a reason")
    assert jax.config.jax_platforms == "cpu"  # by JAX_PLATFORMS; see conftest.py
    assert not told.search(command("doctor")[1])
    jax.config.update("jax_platforms", None)
    try:
        assert told.search(command("doctor")[1])
        assert not told.search(command("doctor", "--platform", "cpu")[1])
    finally:
        jax.config.update("jax_platforms", "cpu")


@pytest.mark.parametrize("difference", [0.01, float("nan")])
def test_a_wrong_check_of_the_doctor_is_exit_1(difference, command, monkeypatch):
    monkeypatch.setitem(doctor.CHECKS, "batch norm", lambda: difference)
    code, out, _ = command("doctor")
    assert code == 1
    assert re.findall(r"^check: (.+?) {2,}WRONG", out, re.MULTILINE) == ["batch norm"]
    assert out.count("right") == 2


def test_the_doctor_would_see_what_is_wrong_by_a_percent(monkeypatch):
    import jax.numpy as jnp

    from resnet_jax import layers

    def worse(owner, name):
        right = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: 1.01 * right(*a, **k))

    worse(layers, "convolve")
    worse(layers.BatchNorm, "__call__")
    worse(jnp, "mean")
    for name, check in doctor.CHECKS.items():
        assert check() > 1e-3, name


def test_messages_name_no_package_that_is_not_ours_to_install():
    """resnet-jax is not on PyPI, so its extras are installed from the checkout."""
    root = Path(resnet_jax.__file__).parent
    texts = [path.read_text(encoding="utf-8") for path in root.rglob("*.py")]
    told = [match for text in texts for match in re.findall(r"pip install(.{4})", text)]
    assert len(told) >= 2 and set(told) == {" -e "}


def test_a_network_goes_out_in_the_format_that_is_named(
    command, run_dir, tmp_path, monkeypatch
):
    assert tuple(export.FORMATS) == typing.get_args(export.Format)
    folder = tmp_path / "folder"
    arguments = ("export", run_dir, folder, "--format")
    assert command(*arguments, "stablehlo") == (0, f"exported: {folder}\n", "")
    said = json.loads((folder / exported.CONFIG).read_text())
    network = jax.export.deserialize((folder / "model.stablehlo").read_bytes())
    test = sources.load_dataset("digits")[1].take(slice(40))
    x = np.float32((test.images / 255 - 0.5) / 0.25)
    right = (np.asarray(network.call(x)).argmax(-1) == test.labels).mean()
    assert right == said["metrics"]["accuracy"]

    with monkeypatch.context() as patch:
        patch.setattr("resnet_jax.data.load_test", None)  # not scored
        arguments = ("export", run_dir, tmp_path / "new", "--format")
        code, out, err = command(*arguments, "timm")
    assert (code, out) == (2, "") and err.startswith("resnet-jax export: timm has no ")
    assert not (tmp_path / "new").exists()

    monkeypatch.setattr("resnet_jax.commands.evaluate.evaluate", None)  # not scored
    arguments = ("export", run_dir, folder, "--format")
    code, out, err = command(*arguments, "torch")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert f"{folder} contains model.stablehlo, which has its own config.json" in err
    code, _, err = command(*arguments, "tensorrt")
    assert code == 2 and "tensorrt" in err
    for name in ("jax2onnx", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            others = {"jax2onnx", "onnxruntime"} - {name}
            for other in others - sys.modules.keys():
                patch.setitem(sys.modules, other, types.ModuleType(other))
            code, out, err = command(
                "export", run_dir, tmp_path / "new", "--format", "onnx"
            )
        needs = f"--format onnx needs {name}: pip install -e '.[onnx]'"
        assert (code, out, err) == (2, "", f"resnet-jax export: {needs}\n")
        assert not (tmp_path / "new").exists()


@pytest.mark.onnx
def test_a_network_goes_out_as_onnx(command, run_dir, tmp_path):
    pytest.importorskip("jax2onnx", reason="pip install -e '.[onnx]' brings it")
    onnxruntime = pytest.importorskip("onnxruntime", reason="as jax2onnx")
    folder = tmp_path / "folder"
    code, out, err = command("export", run_dir, folder, "--format", "onnx")
    assert (code, out, err) == (0, f"exported: {folder}\n", "")
    said = json.loads((folder / exported.CONFIG).read_text())
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    test = sources.load_dataset("digits")[1].take(slice(40))
    x = np.float32((test.images / 255 - 0.5) / 0.25).transpose(0, 3, 1, 2)
    (logits,) = session.run(["logits"], {"images": x})
    assert (logits.argmax(-1) == test.labels).mean() == said["metrics"]["accuracy"]


def test_the_exported_config_says_how_it_scored(command, run_dir, tmp_path):
    command("export", run_dir, tmp_path / "folder")
    said = json.loads((tmp_path / "folder" / exported.CONFIG).read_text())["metrics"]
    line = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert said["accuracy"] == line["test_accuracy"] and said["count"] == 40
    assert said["step"] == line["step"] == 2


def test_a_folder_is_prepared(command, tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        home = tmp_path / "photos" / split / "cat"
        home.mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (8, 8)).save(home / f"{index}.png")
    out = tmp_path / "out"
    code, said, err = command("prepare", "folder", tmp_path / "photos", out)
    assert (code, err) == (0, "")
    assert said == f"prepared: {out} (3 train, 2 test; 0 MB)\n"
    assert np.load(out / "train.labels.npy").tolist() == [0, 0, 0]
    code, said, err = command("prepare", "folder", tmp_path / "photos")
    assert (code, said) == (2, "")
    assert err == (
        "resnet-jax prepare: specify both folders: resnet-jax prepare folder DIR OUT\n"
    )
