"""The trained network that is included in the package."""

import tomllib
from pathlib import Path

import jax
import pytest
from PIL import Image

import resnet_jax
from resnet_jax import files
from resnet_jax.report.options import SubjectConfig
from resnet_jax.weights import exported, hub
from resnet_jax.weights.published import SHIPPED

(NAME,) = SHIPPED
ROOT = Path(resnet_jax.__file__).parents[1]
CAT = ROOT / "docs" / "pictures" / "cat.jpg"


def test_it_is_small_whole_and_what_its_card_says():
    folder = hub.locate(NAME)
    info = exported.read_info(folder)
    assert (folder / exported.WEIGHTS).stat().st_size <= 1_200_000
    assert files.file_digest(folder / exported.WEIGHTS) == info["sha256"]
    assert info["metrics"]["accuracy"] >= 0.92 and info["metrics"]["count"] == 10_000
    shown = f"accuracy of {100 * info['metrics']['accuracy']:.2f} %"
    assert shown in (folder / exported.CARD).read_text()
    assert info["metrics"]["note"] == ""


def test_every_file_beside_the_modules_is_in_the_wheel():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())
    globs = listed["tool"]["setuptools"]["package-data"]["resnet_jax"]
    package = ROOT / "resnet_jax"
    packed = {path for pattern in globs for path in package.glob(pattern)}
    others = {
        path
        for path in package.rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    }
    assert hub.locate(NAME) / exported.WEIGHTS in others
    assert packed == others


@pytest.mark.process
def test_it_is_loaded_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, variables, preprocessing = resnet_jax.load_pretrained(NAME)
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == 269_722
    logits = model.apply(variables, preprocessing([CAT]), train=False)
    assert preprocessing.class_names[int(logits.argmax())] == "cat"

    model, variables, preprocessing = resnet_jax.load_pretrained(NAME, num_classes=3)
    assert variables["params"]["fc"]["kernel"].shape == (64, 3)
    assert preprocessing.class_names is None

    # A local folder of weights with that name takes precedence.
    home = tmp_path / NAME
    home.mkdir()
    assert hub.locate(NAME) != Path(NAME)  # it has no weights yet
    (home / exported.WEIGHTS).touch()
    assert hub.locate(NAME) == Path(NAME)


@pytest.mark.process
def test_where_only_images_are_named_it_classifies_them(
    command, image, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nothing"))
    said = f"no run given: using {NAME}, which recognizes the classes of CIFAR-10\n"
    code, out, err = command("predict", CAT, "--saliency")
    first, likeliest, *_ = out.splitlines()
    assert (code, err) == (0, said) and out.count(str(CAT)) == 1
    assert first == str(CAT) and likeliest.endswith(" %  cat")
    with Image.open(tmp_path / "saliency" / "0-cat.png") as saved:
        assert saved.width > 500

    expected = command("predict", CAT, image)
    assert expected[::2] == (0, said) and expected[1].count(" %  ") == 10
    assert command("predict", NAME, CAT, image) == (0, expected[1], "")
    code, out, err = command("predict", NAME, CAT, "--saliency")
    assert code == 0 and not (tmp_path / NAME).exists()
    assert command("predict", "--weights", NAME, CAT, image) == (0, expected[1], "")
    folder = tmp_path / "photographs"
    folder.mkdir()
    image.rename(folder / "b.png")
    code, out, err = command("predict", folder)
    assert (code, err) == (0, said) and out.startswith(f"{folder / 'b.png'}\n")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("missing.png",), 3, "read: missing.png (No such file or directory)"),
        (("html.png",), 3, "read: html.png (cannot identify image file)"),
        (("missing", "a.png"), 2, "no run at missing"),
        (("empty",), 2, "specify the image files: resnet-jax predict RUN a.jpg"),
        (("lost",), 2, "specify the image files: resnet-jax predict RUN a.jpg"),
        (("a.png", "--checkpoint", "best"), 2, "--checkpoint applies only to a run: "),
        (("a.png", "--model", "resnet18"), 3, "is a resnet20: use --model resnet20"),
        (("model.pth", "a.png"), 2, "no run at model.pth"),
        (("runs", "a.png"), 2, "runs is not a run: it has no config.json"),
        (
            ("a.png", "--data-dir", "x"),
            2,
            "--data-dir does not apply to resnet20-cifar10",
        ),
    ],
)
def test_a_run_that_is_not_there_is_no_image(
    arguments, code, message, command, image, tmp_path, monkeypatch
):
    """A run without config.json still has PNGs in report/, which are not input."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "lost" / "checkpoints").mkdir(parents=True)
    (tmp_path / "lost" / "curves.png").write_bytes(image.read_bytes())
    (tmp_path / "model.pth").touch()
    (tmp_path / "html.png").write_text("<html>")
    (tmp_path / "runs" / "one" / "checkpoints").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "curves.png").write_bytes(image.read_bytes())
    found, out, err = command("predict", *arguments)
    assert (found, out) == (code, "") and message in err.splitlines()[-1]
    assert err.count(arguments[0]) <= 1


@pytest.mark.optimized
@pytest.mark.process  # for its 20 seconds
def test_the_real_test_set_gives_its_published_figure(command, real_data_dir):
    metrics = exported.read_info(hub.locate(NAME))["metrics"]
    code, out, _ = command("evaluate", NAME, "--data-dir", real_data_dir)
    assert code == 0 and out.splitlines()[-1].startswith(
        f"Acc@1 {100 * metrics['accuracy']:.3f} "
        f"Acc@5 {100 * metrics['accuracy_top5']:.3f} "
    )
    assert out.splitlines()[-1].endswith(" n 10000")


def test_options_know_it_by_its_name():
    SubjectConfig(weights=NAME).check()


@pytest.mark.parametrize("as_given", [str, Path, Image.open])
def test_preprocessing_takes_a_single_image_too(as_given):
    preprocessing = resnet_jax.load_pretrained(NAME).preprocessing
    one = preprocessing(as_given(str(CAT)))
    assert one.shape == (1, 32, 32, 3)
    assert (one == preprocessing([CAT])).all()
