import os
import struct
import unicodedata
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from resnet_jax import data
from resnet_jax.config import DataConfig
from resnet_jax.data import folder, pillow
from resnet_jax.errors import ConfigError, DataError


def make_image(seed, size=(20, 12), mode="RGB"):
    rng = np.random.default_rng(seed)
    shape = (size[1], size[0], *((len(mode),) if len(mode) > 1 else ()))
    return Image.fromarray(rng.integers(0, 256, shape, np.uint8), mode)


@pytest.fixture
def root(tmp_path):
    """Makes a folder of two classes; its test split has one image of each."""
    for split, count in (("train", 3), ("test", 1)):
        for label, name in enumerate(("cat", "dog")):
            directory = tmp_path / split / name
            directory.mkdir(parents=True)
            for index in range(count):
                make_image(10 * label + index).save(directory / f"{index}.png")
    return tmp_path


def load(root, split="train", size=8, crop_pct=1.0, **options):
    part = folder.scan(root).splits[("train", "test").index(split)]
    return folder.load(part, size=size, crop_pct=crop_pct, **options)


def describe(root, **fields):
    return data.describe(DataConfig(dataset="folder", data_dir=str(root), **fields))


def test_classes_and_order_are_those_of_the_folders(root):
    train, test = data.load_dataset("folder", root, image_size=8)
    assert train.class_names == test.class_names == ("cat", "dog")
    assert train.images.shape == (6, 8, 8, 3) and train.images.dtype == np.uint8
    np.testing.assert_array_equal(train.labels, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(test.labels, [0, 1])
    assert describe(root, image_size=8)[:2] == (2, (8, 8, 3))
    assert describe(root)[:2] == (2, (224, 224, 3))


def test_an_image_of_the_right_size_is_itself(root):
    square = make_image(5, (8, 8))
    square.save(root / "train" / "cat" / "a.png")
    images, _ = load(root)
    np.testing.assert_array_equal(images[3], np.asarray(square))  # after 0, 1, 2


def test_the_shorter_side_is_resized_and_the_middle_cropped(root):
    image = Image.new("RGB", (32, 16))  # left, middle and right in three colors
    image.paste((255, 0, 0), (0, 0, 4, 16))
    image.paste((0, 255, 0), (4, 0, 28, 16))
    image.paste((0, 0, 255), (28, 0, 32, 16))
    path = root / "wide.png"
    image.save(path)
    found = pillow.read_image(path, size=8, crop_pct=1.0)
    np.testing.assert_array_equal(found, np.full((8, 8, 3), (0, 255, 0)))
    part = pillow.read_image(path, size=8, crop_pct=0.25)  # 32 high, the middle 8
    np.testing.assert_array_equal(part, np.full((8, 8, 3), (0, 255, 0)))


def test_suffixes_nested_folders_and_other_files(root):
    nested = root / "train" / "cat" / "more"
    nested.mkdir()
    make_image(1).save(nested / "a.JPG", "jpeg")
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    (root / "train" / "notes.txt").write_text("no class")
    assert len(load(root)[1]) == 7


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_other_modes_become_rgb(root, mode):
    make_image(1, mode=mode).save(root / "train" / "cat" / "0.png")
    assert load(root)[0].shape == (6, 8, 8, 3)


def test_a_gray_image_is_read_for_a_network_of_one_channel(root):
    gray = make_image(3, (8, 8), "L")
    gray.save(root / "gray.png")
    found = pillow.read_image(root / "gray.png", size=8, crop_pct=1.0, channels=1)
    np.testing.assert_array_equal(found, np.asarray(gray)[..., None])
    colored = pillow.read_image(
        root / "train" / "cat" / "0.png", size=8, crop_pct=1.0, channels=1
    )
    assert colored.shape == (8, 8, 1)


def test_an_image_is_turned_as_its_exif_says(root):
    image = make_image(7, (8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    image.save(root / "turned.png", exif=exif)
    found = pillow.read_image(root / "turned.png", size=8, crop_pct=1.0)
    np.testing.assert_array_equal(found, np.rot90(np.asarray(image), -1))


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n"])
def test_an_unreadable_image_is_named_or_left_out(root, content, caplog):
    bad = root / "train" / "dog" / "1.png"
    bad.write_bytes(content)
    with pytest.raises(DataError, match=f"{bad} cannot be read .*--skip-bad-images"):
        load(root)
    images, labels = load(root, skip_bad=True)
    assert len(images) == 5
    np.testing.assert_array_equal(labels, [0, 0, 0, 1, 1])
    assert f"unreadable images skipped: 1 (the first is {bad})" in caplog.text


def test_a_truncated_image_is_refused(root):
    bad = root / "train" / "dog" / "1.png"
    bad.write_bytes(bad.read_bytes()[:-200])
    with pytest.raises(DataError, match="1.png cannot be read"):
        load(root)


@pytest.mark.parametrize("pixels", [30, 100])  # Pillow warns or raises
def test_an_image_that_would_fill_the_memory_is_refused(root, monkeypatch, pixels):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20 * 12 - pixels * 1.3)
    with pytest.raises(DataError, match="0.png cannot be read .*decompression bomb"):
        load(root)


def test_classes_that_are_empty_missing_or_strange(root):
    def refused(match):
        with pytest.raises(DataError, match=match):
            data.load_dataset("folder", root, image_size=8)

    (root / "test" / "bird").mkdir()
    refused("test/bird is a class that .*train lacks")
    (root / "test" / "bird").rmdir()
    (root / "test" / "dog" / "0.png").unlink()
    refused("test/dog has no image")
    (root / "test" / "dog").rmdir()
    refused("test/dog is missing")


def test_a_class_without_a_readable_image(root):
    (root / "test" / "dog" / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match="test/dog has no readable images"):
        load(root, "test", skip_bad=True)


def test_no_folder_at_all(tmp_path):
    with pytest.raises(ConfigError, match="needs --data-dir"):
        data.load_dataset("folder")
    with pytest.raises(DataError, match="train is not a folder: put images in"):
        describe(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="train has no class"):
        describe(tmp_path)


def png(width, height):
    """Returns a PNG of zeros in a few bytes."""

    def chunk(kind, content):
        parts = struct.pack(">I", len(content)), kind, content
        return b"".join((*parts, struct.pack(">I", zlib.crc32(kind + content))))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width + 1) * min(height, 1000)), 9)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b""))
    )


@pytest.mark.parametrize(
    ("width", "height", "message"),
    [
        (50_000, 50_000, "could be decompression bomb"),  # 2.5 gigapixels
        (1, 60_000, "1x60000 would become 224x13440000 pixels"),
        (60_000, 1, "60000x1 would become 13440000x224 pixels"),
    ],
)
def test_a_bomb_is_refused(root, width, height, message):
    path = root / "train" / "cat" / "bomb.png"
    if width * height < 10**6:
        Image.new("L", (width, height)).save(path)
    else:
        path.write_bytes(png(width, height))
    with pytest.raises(DataError, match=f"bomb.png cannot be read .*{message}"):
        load(root, size=224)


def test_hidden_files_and_folders_are_passed_over_in_silence(root, caplog):
    names = ("._0.png", ".hidden.png", "Thumbs.db", "desktop.ini", ".DS_Store")
    for name in names:
        (root / "train" / "cat" / name).write_bytes(b"no image")
    for name in (".ipynb_checkpoints", "__MACOSX"):
        for place in (root / "train", root / "train" / "dog"):
            (place / name).mkdir()
            make_image(1).save(place / name / "0.png")
    images, _ = load(root)
    assert len(images) == 6 and not caplog.records


def test_other_files_are_counted_in_one_warning(root, caplog):
    for name in ("a.gif", "b.GIF", "README", "notes.txt"):
        (root / "train" / "cat" / name).touch()
    (root / "train" / "dog" / "c.gif").touch()
    assert len(load(root)[0]) == 6
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{root / 'train'}: ignored files without an image suffix: "
        "3 .gif, 1 .txt, 1 without a suffix"
    )


@pytest.mark.parametrize(
    ("name", "place"), [("more/self", "train/cat"), ("up", "train")]
)
def test_a_link_that_leads_up_multiplies_no_images(root, caplog, name, place):
    link = root / "train" / "cat" / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(root / place)
    assert len(load(root)[0]) == 6
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{link} is skipped because it resolves to {root / place}, "
        "which contains it or was already visited"
    )


def test_a_folder_that_two_links_lead_to_is_read_once(root, caplog):
    (root / "elsewhere").mkdir()
    make_image(1).save(root / "elsewhere" / "0.png")
    for name in ("once", "twice"):
        (root / "train" / "cat" / name).symlink_to(root / "elsewhere")
    assert len(load(root)[0]) == 7
    (record,) = caplog.records
    assert (
        f"cat/twice is skipped because it resolves to {root / 'elsewhere'}"
        in record.getMessage()
    )


def test_a_folder_that_cannot_be_read_is_named(root, monkeypatch):
    locked = root / "train" / "cat" / "locked"
    locked.mkdir()
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path) == str(locked):
            raise PermissionError(13, "Permission denied", str(locked))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=f"^{locked} cannot be read .Permission denied"):
        load(root)


def test_a_class_is_the_same_in_both_forms_of_unicode(root):
    composed = "caf\u00e9"
    decomposed = unicodedata.normalize("NFD", composed)
    (root / "train" / "cat").rename(root / "train" / decomposed)
    (root / "test" / "cat").rename(root / "test" / composed)
    found = folder.scan(root)
    assert found.class_names == (composed, "dog")
    assert [len(split.paths) for split in found.splits] == [6, 2]
    (root / "train" / composed).mkdir()
    with pytest.raises(
        DataError,
        match=f"has two folders named {composed}, which differ only in Unicode",
    ):
        folder.scan(root)


def test_a_class_whose_name_is_not_utf_8_is_shown_escaped(root):
    for split in ("train", "test"):
        (root / split / "cat").rename(root / split / os.fsdecode(b"c\xff"))
    found = folder.scan(root)
    assert found.class_names == ("c\\xff", "dog")
    assert len(load(root)[0]) == 6


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bits_are_scaled_and_not_cut_off(root, suffix):
    ramp = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    path = root / f"ramp.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5 16 16 65535\n" + ramp.astype(">u2").tobytes())
    else:
        Image.fromarray(ramp).save(path)
    found = pillow.read_image(path, size=16, crop_pct=1.0, channels=1)
    np.testing.assert_array_equal(found[..., 0], ramp // 257)
    colored = pillow.read_image(path, size=16, crop_pct=1.0)
    np.testing.assert_array_equal(colored, np.repeat(found, 3, -1))


@pytest.mark.parametrize(
    ("dtype", "kind"), [(np.float32, "floating-point"), (np.int32, "32-bit")]
)
def test_pixels_of_no_known_range_are_refused(root, dtype, kind):
    path = root / "train" / "cat" / "deep.tif"
    Image.fromarray(np.zeros((8, 8), dtype)).save(path)
    message = f"deep.tif cannot be read .{kind} pixels have no known range"
    with pytest.raises(DataError, match=message):
        load(root)


def test_exif_that_cannot_be_read_is_not_the_image_s_fault(root, monkeypatch):
    image = make_image(7, (8, 8))
    path = root / "image.png"
    image.save(path, exif=b"Exif\0\0no tags")
    found = pillow.read_image(path, size=8, crop_pct=1.0)
    np.testing.assert_array_equal(found, np.asarray(image))
    for fault in (SyntaxError("not a TIFF file"), struct.error("short"), KeyError(1)):

        def getexif(self, fault=fault):
            raise fault

        monkeypatch.setattr(Image.Image, "getexif", getexif)
        found = pillow.read_image(path, size=8, crop_pct=1.0)
        np.testing.assert_array_equal(found, np.asarray(image))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_all_orientations_are_those_of_pillow(root, suffix):
    image = make_image(7, (8, 8))
    for orientation in range(10):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = root / f"turned.{suffix}"
        image.save(path, exif=exif)
        found = pillow.read_image(path, size=8, crop_pct=1.0)
        with Image.open(path) as opened:
            wanted = np.asarray(ImageOps.exif_transpose(opened))
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_folder_for_validation_is_scored_where_there_is_no_test(root, caplog, name):
    caplog.set_level("INFO")
    first = root / "test"
    described = describe(root, image_size=8)
    assert not caplog.records  # nothing is logged if test is scored
    (root / "test").rename(root / name)
    assert len(describe(root, image_size=8).load()[1]) == 2
    assert f"scoring {root / name} because there is no {first}" in caplog.text
    for later in ("valid", "validation"):
        (root / later).mkdir(exist_ok=True)  # empty, so it would be refused
    if name == "val":
        assert len(describe(root, image_size=8).load()[1]) == 2
    first.mkdir()
    with pytest.raises(DataError, match="test/cat is missing"):
        describe(root)
    assert described.num_classes == 2


def test_without_any_images_to_score(root):
    (root / "test").rename(root / "other")
    with pytest.raises(DataError, match="test is missing: create this folder and"):
        describe(root)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cat tom\ndog rex\n", ("tom", "rex")),
        ("dog\tbig dog\n\n  cat\ttom cat ", ("tom cat", "big dog")),
        ("cat tabby, tabby cat\ndog wolf, hound", ("tabby", "wolf")),
        ("bird tit\ncat\ndog  rex\r\n", ("cat", "rex")),
        ("\ufeffcat крот\ndog caf\u0065\u0301", ("крот", "caf\u00e9")),
        ("cat pet\ndog pet", ("pet (cat)", "pet (dog)")),
    ],
)
@pytest.mark.parametrize("place", ["classes.txt", "named"])
def test_class_names_come_from_a_file(root, text, names, place, caplog):
    path = root / place
    path.write_bytes(text.encode())
    fields = {"class_names": str(path)} if place == "named" else {}
    train, test = describe(root, image_size=8, **fields).load()
    assert train.class_names == test.class_names == names
    assert not caplog.records


def test_folders_with_spaces_have_names(root):
    for split in ("train", "test"):
        (root / split / "cat").rename(root / split / "big cat")
        (root / split / "dog").rename(root / split / "big")
    (root / "classes.txt").write_text("big cat lion\nbig tiger\nbigger than both\n")
    listing = folder.scan(root)
    assert listing.splits[0].folders == ("big", "big cat")
    assert listing.class_names == ("tiger", "lion")


def test_a_class_without_a_line_keeps_its_folder_or_is_refused(root, caplog):
    path = root / "classes.txt"
    path.write_text("1 cat\n2 dog\n")
    assert folder.scan(root).class_names == ("cat", "dog")
    assert f"{path} has no line for 2 of 2 classes (the first is cat)" in caplog.text
    path.write_text("dog wolf\n")
    assert folder.scan(root).class_names == ("cat", "wolf")
    with pytest.raises(DataError, match=f"^{path} has no line for class cat: add"):
        folder.scan(root, path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            None,
            r"cannot be read \(No such file or directory\): provide a text file with",
        ),
        (b"cat \xff\n", "cannot be read .*codec can't decode"),
        (b"cat a\ndog b\ncat c", "names class cat both a and c: keep only one of"),
    ],
)
def test_a_fault_of_class_names_is_one_line(root, content, message):
    path = root / "names"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=f"^{path}.*{message}"):
        folder.scan(root, path)


@pytest.mark.parametrize("stream", [False, True])
def test_images_are_resized_as_is_asked(root, stream):
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    path = root / "train" / "cat" / "0.png"
    Image.fromarray(noise).save(path)
    sizes = {"image_size": 24, "crop_pct": 0.75}
    for interpolation in ("bilinear", "bicubic"):
        cfg = {**sizes, "interpolation": interpolation, "stream": stream}
        train, _ = describe(root, **cfg).load()
        method = Image.Resampling[interpolation.upper()]
        resized = Image.fromarray(noise).resize((42, 32), method)
        expected = np.asarray(resized.crop((9, 4, 33, 28)))
        found = np.asarray(train.take(slice(1)).images)[0]
        np.testing.assert_array_equal(found, expected)
