"""`resnet-jax data`: what it prints, refuses and writes."""

import base64
import re

import numpy as np
import pytest
from odd_images import write
from PIL import Image

from resnet_jax import recipes
from resnet_jax.commands import data as command_of_data
from resnet_jax.data import survey
from resnet_jax.report import gallery, samples


@pytest.fixture
def root(tmp_path):
    """Three classes of 8, 2 and 1 training images; the test split is val."""
    rng = np.random.default_rng(0)
    for split, counts in (("train", (8, 2, 1)), ("val", (1, 1, 1))):
        for name, count in zip(("ant", "bee", "c$_1$"), counts, strict=True):
            home = tmp_path / "pets" / split / name
            home.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (10 + index, 12, 3), np.uint8)
                Image.fromarray(pixels).save(home / f"{index}.png")
    return tmp_path / "pets"


def test_a_folder_is_described_and_shown(root, command, tmp_path, monkeypatch):
    write("animated.gif", root / "train" / "ant" / "a.gif")
    (root / "train" / "ant" / "bad.jpg").write_bytes(b"no image")
    (root / "classes.txt").write_text("ant giant ant, Formicidae\n")
    page = tmp_path / "page.html"
    shown = []

    def keep(images, augmented, names, path):
        shown.extend([images, augmented, names])
        plot(images, augmented, names, path)

    plot = gallery.plot_samples
    monkeypatch.setattr(gallery, "plot_samples", keep)
    code, out, err = command("data", root, "--output", page, "--image-size", 16)
    assert code == 0
    lines = out.splitlines()
    assert lines[:6] == [
        f"{root}: 3 classes",
        "class      train  val",
        "giant ant      8    1",
        "bee            2    1",
        "c$_1$          1    1",
        "all           11    3",
    ]
    assert lines[6:9] == [
        "        min  median  max",
        "width    12      12   12",
        "height   10      11   17",
    ]
    assert lines[9:11] == [
        "formats: 14 PNG RGB",
        f"{root / 'train'}: ignored files without an image suffix: 1 .gif",
    ]
    assert lines[11] == (
        "class imbalance of train: 8 (largest: giant ant, 8 images; smallest: c$_1$, 1)"
    )
    assert "--class-weights balanced" in lines[12] and "--sampler bal" in lines[12]
    assert lines[13].startswith("unreadable images: 1; --skip-bad-images")
    assert lines[14].startswith(
        f"  {root}/train/ant/bad.jpg: cannot identify image file"
    )
    assert lines[15:] == [f"page: {page}"]
    assert f"scoring {root / 'val'} because" in err
    text = page.read_text(encoding="utf-8")
    assert "http" not in re.sub(r"base64,[^\"]+", "", text)
    pictures = re.findall(r"base64,([^\"]+)\"", text)
    assert len(pictures) == 2
    for content in pictures:
        assert base64.b64decode(content).startswith(b"\x89PNG")
    assert (
        "random crop with padding 4 (black), flip random" in text and "bad.jpg" in text
    )
    images, augmented, names = shown
    assert names == ["giant ant"] * 5 + ["bee"] * 2 + ["c$_1$"]
    assert images.shape == augmented.shape == (8, 16, 16, 3)
    assert images.dtype == augmented.dtype == np.uint8


def test_a_balanced_folder_has_no_hint(root, command, tmp_path):
    for index in range(3, 8):
        (root / "train" / "ant" / f"{index}.png").unlink()
    code, out, _ = command("data", root, "--output", tmp_path / "page.html")
    assert code == 0 and "imbalance of train: 3 (" in out and "hint" not in out
    assert "every image can be read" in out


def test_of_many_unreadable_files_the_first_are_named(root, command, tmp_path):
    for index in range(25):
        (root / "train" / "bee" / f"bad{index:02d}.png").write_bytes(b"")
    code, out, _ = command("data", root, "--output", tmp_path / "page.html")
    assert code == 0 and "unreadable images: 25; " in out and "; the first 20:\n" in out
    assert out.count("bad") == 21 and "bad19.png" in out  # and --skip-bad-images


def config(**options):
    return command_of_data.config_of(
        command_of_data.DataPageConfig(data_dir="d", **options)
    )


def test_the_augmentation_is_a_recipes_changed_by_flags():
    finetune = recipes.RECIPES["finetune"][1]
    assert config().augment == finetune.augment
    chosen = config(recipe="fast", flip="none", cutout=3, image_size=64)
    fast = recipes.RECIPES["fast"][1].augment
    assert (chosen.augment.crop_fill, chosen.augment.flip) == (fast.crop_fill, "none")
    assert (chosen.augment.cutout, chosen.data.image_size) == (3, 64)
    assert chosen.data.dataset == "folder"


def test_samples_are_augmented_as_in_training():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 16, 16, 3), np.uint8)
    labels = np.zeros(6, np.int32)
    plain = config(recipe="hresnet")
    same = samples.augment_samples(images, labels, 2, plain)
    np.testing.assert_array_equal(same, images)
    flipped = samples.augment_samples(images, labels, 2, config(crop_padding=0))
    turned = [
        np.array_equal(one, image[:, ::-1])
        for one, image in zip(flipped, images, strict=True)
    ]
    stayed = [
        np.array_equal(one, image) for one, image in zip(flipped, images, strict=True)
    ]
    assert any(turned) and any(stayed)
    assert all(a != b for a, b in zip(turned, stayed, strict=True))


@pytest.mark.parametrize("num_classes", [1, 12, 70])
def test_counts_are_drawn_for_any_number_of_classes(tmp_path, num_classes):
    counts = np.arange(2 * num_classes).reshape(-1, 2)
    names = [f"$class_{index}$ of a name that is long" for index in range(num_classes)]
    path = tmp_path / "counts.png"
    gallery.plot_counts(counts, names, ["train", "test"], path)
    with Image.open(path) as image:
        assert image.width > 900


def test_samples_are_spread_over_classes_and_images(root, monkeypatch):
    from resnet_jax.data import folder

    monkeypatch.setattr(samples, "NUM_CLASSES", 2)
    monkeypatch.setattr(samples, "PER_CLASS", 3)
    read = []
    monkeypatch.setattr(
        samples.pillow,
        "read_image",
        lambda path, **how: read.append(path) or np.zeros(1),
    )
    split = folder.scan(root).splits[0]
    _, _, labels = samples.read_samples(survey.look(split, 18), config())
    assert labels.tolist() == [0, 0, 0, 2]
    assert [path.stem for path in read] == ["0", "4", "7", "0"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("",), 2, "specify the folder of images: resnet-jax data DIR"),
        (("DIR", "--recipe", "best"), 2, "unknown recipe 'best' ("),
        (("DIR", "--output", "DIR/classes.txt/a.html"), 2, "--output"),
        (("DIR", "--class-names", "names"), 3, "names: class names cannot be read"),
        (("nowhere",), 3, "nowhere/train is not a folder: put images in"),
    ],
)
def test_what_cannot_be_described_is_one_line(root, command, options, code, message):
    (root / "classes.txt").touch()
    given = [option.replace("DIR", str(root)) for option in options if option]
    found, out, err = command("data", *given)
    assert (found, out) == (code, "") and message in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("resnet-jax data: ")
