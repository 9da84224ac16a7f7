"""Image types that are found in folders, compared with Pillow."""

import os
import warnings
from fractions import Fraction

import numpy as np
import pytest
from odd_images import ODD, SKIPPED, write
from PIL import Image

from resnet_jax.data import folder, pillow
from resnet_jax.errors import DataError


@pytest.fixture
def root(tmp_path):
    """Makes a folder of one class, with a valid training and a valid test image."""
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
        write("rgb.png", tmp_path / split / "cat" / "0.png")
    return tmp_path


def theirs(path):
    """Reads a file like the torchvision default loader, without warnings."""
    with warnings.catch_warnings(), Image.open(path) as file:
        warnings.simplefilter("ignore")
        return file.convert("RGB")


@pytest.mark.parametrize("name", ODD)
def test_an_odd_image_is_read_as_pillow_converts_it(tmp_path, name):
    path = tmp_path / name
    write(name, path)
    with pillow.opened(path) as file:
        found = pillow.decode(file)
    assert found.mode == "RGB"
    expected = np.asarray(theirs(path))
    np.testing.assert_array_equal(np.asarray(found), expected)
    assert len(np.unique(expected)) > 1 or "pixel" in name
    gray = pillow.read_image(path, size=8, crop_pct=1.0, channels=1)
    assert gray.shape == (8, 8, 1)


@pytest.mark.parametrize("name", SKIPPED)
def test_what_is_no_image_is_passed_over(root, name):
    path = root / "train" / "cat" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\0\5\x16\7 is no image")
    listing = folder.scan(root)
    assert [path.name for path in listing.splits[0].paths] == ["0.png"]


def test_a_gif_is_left_out_and_counted_as_torchvision_leaves_it_out(root, caplog):
    write("animated.gif", root / "train" / "cat" / "animated.gif")
    train = folder.scan(root).splits[0]
    assert len(train.paths) == 1 and train.ignored == {".gif": 1}
    assert "ignored files without an image suffix: 1 .gif" in caplog.text


@pytest.mark.parametrize("name", ["a b.png", "наш кот.png", "猫 🐈.png", "100%$\\.png"])
def test_names_of_all_scripts_are_read(root, name):
    write("rgb.png", root / "train" / "cat" / name)
    (root / "train" / "cat").rename(root / "train" / "мой $кот$")
    (root / "test" / "cat").rename(root / "test" / "мой $кот$")
    listing = folder.scan(root)
    assert listing.class_names == ("мой $кот$",)
    images, _ = folder.load(listing.splits[0], size=8, crop_pct=1.0)
    np.testing.assert_array_equal(images[0], images[1])


@pytest.mark.parametrize("content", ["half", "no end", "no pixels"])
def test_a_truncated_jpeg_is_named(root, content):
    path = root / "train" / "cat" / "cut.jpg"
    write("rgb.jpg", path)
    whole = path.read_bytes()
    size = {"half": len(whole) // 2, "no end": len(whole) - 40, "no pixels": 200}
    path.write_bytes(whole[: size[content]])
    with pytest.raises(DataError, match=f"^{path} cannot be read") as raised:
        folder.load(folder.scan(root).splits[0], size=8, crop_pct=1.0)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "float.tif",
            "floating-point pixels have no known range: save the image with 8 or 16",
        ),
        ("32 bits.tif", "32-bit pixels have no known range"),
    ],
)
def test_what_has_no_meaning_as_rgb_is_refused_in_one_line(root, name, message):
    path = root / "train" / "cat" / name
    write(name, path)
    with pytest.raises(DataError, match=f"{path} cannot be read .{message}"):
        folder.load(folder.scan(root).splits[0], size=8, crop_pct=1.0)


@pytest.mark.parametrize("name", ["16 bits.png", "16 bits.tif", "big-endian.tif"])
def test_16_bits_are_scaled_where_pillow_clips(tmp_path, name):
    path = tmp_path / name
    write(name, path)
    with Image.open(path) as file:
        deep = np.asarray(file).astype(np.int64)
    assert deep.max() == 65535
    with pillow.opened(path) as file:
        found = np.asarray(pillow.decode(file))
    expected = [[round(Fraction(int(v), 257)) for v in row] for row in deep]
    np.testing.assert_array_equal(found, np.repeat(np.array(expected)[..., None], 3, 2))


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1), (2, 301), (301, 2)])
def test_an_image_of_any_shape_becomes_a_square(tmp_path, size):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8))
    path = tmp_path / "odd.png"
    image.save(path)
    found = pillow.read_image(path, size=16, crop_pct=0.875)
    assert found.shape == (16, 16, 3)
    short = min(size)
    width, height = (int(18 * length / short) for length in size)
    whole = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - 16) / 2), round((height - 16) / 2)
    expected = np.asarray(whole.crop((left, top, left + 16, top + 16)))
    np.testing.assert_array_equal(found, expected)


def test_a_link_to_itself_is_no_folder_and_no_image(root):
    (root / "train" / "cat" / "self").symlink_to("self")
    (root / "train" / "cat" / "there").symlink_to("back")
    (root / "train" / "cat" / "back").symlink_to("there")
    train = folder.scan(root).splits[0]
    assert len(train.paths) == 1
    os.symlink("loop.png", root / "train" / "cat" / "loop.png")
    with pytest.raises(DataError, match="loop.png cannot be read .*symbolic links"):
        folder.load(folder.scan(root).splits[0], size=8, crop_pct=1.0)


def test_a_transparent_image_in_memory_stays_what_it_is():
    image = Image.new("P", (4, 4))
    image.info["transparency"] = b"\0\1"
    pillow.decode(image)
    assert image.mode == "P" and image.info["transparency"] == b"\0\1"
