"""A folder of images as a few large files."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from resnet_jax import data
from resnet_jax.config import DataConfig
from resnet_jax.data import pillow, shard_writer, shards, stream
from resnet_jax.data.shard_writer import ShardsConfig
from resnet_jax.errors import ConfigError, DataError

PIXELS = ShardsConfig(short_side=48, encoding="pixels")


@pytest.fixture
def photos(tmp_path):
    """Makes two classes of images of several sizes, one rotated by EXIF."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            home = tmp_path / "photos" / split / name
            home.mkdir(parents=True)
            for index, size in enumerate([(64, 48), (48, 80), (120, 96)]):
                coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
                exif = Image.Exif()
                exif[274] = 6 if index == 1 else 1
                path = home / f"{index}.png"
                coarse.resize(size, Image.Resampling.BICUBIC).save(path, exif=exif)
    return tmp_path / "photos"


def load(directory, **fields):
    own = {"dataset": "folder", "data_dir": str(directory), "image_size": 32}
    return data.load(DataConfig(**own, **{"resize": 48, **fields}))


@pytest.mark.parametrize("is_streamed", [False, True])
def test_pixels_are_those_of_the_folder(photos, is_streamed, tmp_path):
    """Shorter sides of 48 are unchanged; others are resized as in evaluation."""
    target = tmp_path / "out"
    counts = shard_writer.write(photos, target, PIXELS)
    assert counts == {"train": 6, "test": 6}
    assert sorted(path.name for path in target.iterdir()) == [
        *("shards.json", "test-00000.array_record", "test.labels.npy"),
        *("train-00000.array_record", "train.labels.npy"),
    ]
    found, expected = load(target, stream=is_streamed), load(photos)
    assert isinstance(found.train.images, stream.Images) is is_streamed
    for name in ("train", "test"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        np.testing.assert_array_equal(np.asarray(ours.images), theirs.images)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        assert ours.class_names == theirs.class_names == ("cat", "dog")


def test_jpegs_are_nearly_those_of_the_folder_and_smaller(photos, tmp_path):
    shard_writer.write(photos, tmp_path / "pixels", PIXELS)
    how = ShardsConfig(short_side=48, quality=95)
    shard_writer.write(photos, tmp_path / "jpeg", how)
    found, expected = load(tmp_path / "jpeg").train, load(tmp_path / "pixels").train
    apart = np.abs(found.images.astype(int) - expected.images)
    assert 0 < apart.mean() < 4
    path = photos / "train" / "cat" / "0.png"
    assert len(shard_writer.encoded(path, how)) < len(
        shard_writer.encoded(path, PIXELS)
    )


def test_many_images_are_in_several_files(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_writer, "_PER_FILE", 4)
    shard_writer.write(photos, tmp_path / "out", PIXELS)
    listing = shards.read(tmp_path / "out")
    assert list(listing.counts["train"].values()) == [4, 2]
    whole = load(tmp_path / "out").train.images
    reader = load(tmp_path / "out", stream=True).train.images.read
    np.testing.assert_array_equal(reader(np.array([5, 0, 3])), whole[[5, 0, 3]])
    # Each process opens the files itself.
    again = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(again(np.array([4])), whole[[4]])
    for index, opened in zip((5, 1), reader.open(np.array([5, 1])), strict=True):
        with opened as image:
            np.testing.assert_array_equal(
                pillow.fit(image, size=32, crop_pct=32 / 48), whole[index]
            )


def test_bad_images_are_named_or_left_out(photos, tmp_path, caplog):
    path = photos / "train" / "cat" / "1.png"
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match=f"{path} cannot be read .*--skip-bad-images"):
        shard_writer.write(photos, tmp_path / "out", PIXELS)
    assert not (tmp_path / "out").exists()
    skipping = ShardsConfig(short_side=48, encoding="pixels", skip_bad_images=True)
    counts = shard_writer.write(photos, tmp_path / "out", skipping)
    assert counts == {"train": 5, "test": 6}
    assert f"unreadable images skipped: 1 (the first is {path})" in caplog.text
    np.testing.assert_array_equal(load(tmp_path / "out").train.labels, [0, 0, 1, 1, 1])
    with pytest.raises(ConfigError, match="out already exists"):
        shard_writer.write(photos, tmp_path / "out", skipping)


def spoil_json(directory, **fields):
    path = directory / shards.INFO
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / shards.INFO).write_text("{"), "shards.json is damaged"),
        (lambda d: spoil_json(d, format=2), "unsupported version"),
        (lambda d: spoil_json(d, splits={"train": {}}), "KeyError"),
        (lambda d: spoil_json(d, splits={"train": 3, "test": {}}), "is damaged"),
        (lambda d: (d / "test-00000.array_record").unlink(), "the file is missing"),
        (lambda d: (d / "train.labels.npy").write_bytes(b"x"), "labels.npy is damaged"),
        (
            lambda d: np.save(d / "train.labels.npy", np.arange(6, dtype=np.int32)),
            "it does not contain valid labels for 6 images",
        ),
        (
            lambda d: spoil_json(
                d,
                splits={
                    "train": {"train-00000.array_record": 7},
                    "test": {"test-00000.array_record": 6},
                },
            ),
            "it does not contain valid labels for 7 images",
        ),
        (
            lambda d: (d / "train-00000.array_record").write_bytes(
                (d / "test-00000.array_record").read_bytes()[:-70000]
            ),
            "is damaged",
        ),
    ],
)
def test_damage_is_one_line(photos, tmp_path, spoil, message):
    target = tmp_path / "out"
    shard_writer.write(photos, target, PIXELS)
    spoil(target)
    with pytest.raises(DataError, match=message) as caught:
        load(target)
    assert "write it again with `resnet-jax prepare folder`" in str(caught.value)


def test_a_record_that_is_no_image_is_named(photos, tmp_path):
    shard_writer.write(photos, tmp_path / "out", PIXELS)
    spoil_json(tmp_path / "out", encoding="jpeg")
    with pytest.raises(DataError, match=r"out is damaged \(train image 0: "):
        load(tmp_path / "out")


def test_the_damaged_file_is_the_one_that_is_named(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_writer, "_PER_FILE", 2)
    shard_writer.write(photos, tmp_path / "out", PIXELS)
    (tmp_path / "out" / "train-00001.array_record").write_bytes(b"short")
    with pytest.raises(DataError, match="out/train-00001.array_record is damaged"):
        load(tmp_path / "out")


def test_a_class_or_a_split_without_images_is_refused(photos, tmp_path):
    for path in (photos / "train" / "dog").iterdir():
        path.write_bytes(b"no image")
    skipping = ShardsConfig(short_side=48, encoding="pixels", skip_bad_images=True)
    with pytest.raises(DataError, match="train/dog has no readable images"):
        shard_writer.write(photos, tmp_path / "out", skipping)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_another_way_of_storing_is_other_data(photos, tmp_path):
    """Only images in memory are identified by their pixels, for resuming."""
    found = []
    for name, how in (("a", PIXELS), ("b", ShardsConfig(short_side=48))):
        shard_writer.write(photos, tmp_path / name, how)
        found.append(load(tmp_path / name, stream=True).identity["training data"])
    found.append(load(photos, stream=True).identity["training data"])
    assert len(set(found)) == 3
