"""Other data sets prepared by tensorflow-datasets."""

import io
import json
import os
import pickle
import shutil
import struct

import numpy as np
import pytest
from PIL import Image

from resnet_jax import data
from resnet_jax.config import DataConfig
from resnet_jax.data import examples, pillow, records, sources, stream
from resnet_jax.data import tfds as tfds_files
from resnet_jax.errors import ConfigError, DataError

NAMES = ("cat", "dog", "owl")
COUNTS = {"train": 7, "validation": 4, "test": 2}


def draw(index, side=None, mode="RGB"):
    """Returns an image whose size depends on its index, unless `side` is given."""
    shape = (side, side) if side else (20 + 3 * (index % 5), 31 - 2 * (index % 7))
    bands = () if mode == "L" else (len(mode),)
    pixels = np.random.default_rng(index).integers(0, 256, (*shape, *bands), np.uint8)
    return Image.fromarray(pixels)


def numbers(split):
    """Returns the numbers of the images of a split, which are unique among splits."""
    start = {"train": 0, "validation": 10, "test": 20, "val": 10}[split]
    return range(start, start + COUNTS.get(split, 4))


@pytest.fixture
def prepare(tfds, tmp_path):
    """Prepares a data set with a tensorflow-datasets builder; returns its directory."""

    def prepare(
        *,
        name="animals",
        shape=(None, None, 3),
        side=None,
        splits=tuple(COUNTS),
        features=None,
        config=None,
        version="1.0.0",
        label=lambda index: index % 3,
        keys=("image", "label"),
        mode="RGB",
    ):
        chosen = features or {
            "image": tfds.features.Image(shape=shape),
            "label": tfds.features.ClassLabel(names=NAMES),
            "file_name": tfds.features.Text(),
        }

        def info(builder):
            return tfds.core.DatasetInfo(
                builder=builder,
                features=tfds.features.FeaturesDict(chosen),
                supervised_keys=keys,
            )

        def generate(builder, split):
            for index in numbers(split):
                known = {
                    "image": draw(index, side, mode),
                    "photo": draw(index, side, mode),
                    "mask": draw(0, 5, "L"),
                    "label": label(index),
                    "kind": label(index),
                    "file_name": str(index),
                    "number": index,
                }
                yield index, {key: known[key] for key in chosen}

        members = {
            "name": name,
            "VERSION": tfds.core.Version(version),
            "_info": info,
            "_generate_examples": generate,
            "_split_generators": lambda builder, manager: {
                split: builder._generate_examples(split) for split in splits
            },
        }
        if config:
            members["BUILDER_CONFIGS"] = [
                tfds.core.BuilderConfig(name=config, version=version)
            ]
        with tfds.core.registered.skip_registration():
            made = type("Animals", (tfds.core.GeneratorBasedBuilder,), members)
            builder = made(data_dir=tmp_path / "data", file_format="array_record")
        tfds.disable_progress_bar()
        builder.download_and_prepare()
        return tfds_files.Path(builder.data_dir)

    return prepare


def to_tfrecord(directory):
    """Converts a prepared directory to the tfds.load default format, in two shards."""
    from array_record.python.array_record_module import ArrayRecordReader

    path = directory / "dataset_info.json"
    info = json.loads(path.read_text())
    info["fileFormat"] = "tfrecord"
    for split in info["splits"]:
        (old,) = directory.glob(f"*-{split['name']}.array_record*")
        reader = ArrayRecordReader(str(old))
        contents = [reader.read([index])[0] for index in range(reader.num_records())]
        reader.close()
        old.unlink()
        half = len(contents) // 2
        shards = contents[:half], contents[half:]
        split["shardLengths"] = [str(len(shard)) for shard in shards]
        split["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        for number, shard in enumerate(shards):
            stem = old.name.partition(".array_record")[0]
            with (directory / f"{stem}.tfrecord-{number:05d}-of-00002").open("wb") as f:
                for content in shard:
                    f.write(struct.pack("<QI", len(content), 0) + content + bytes(4))
    path.write_text(json.dumps(info))
    return directory


def load(tmp_path, name="tfds:animals", **fields):
    return data.load_dataset(name, tmp_path / "data", **fields)


def images_of(part):
    """Returns a set of the images of a split, which is shuffled on disk."""
    return {image.tobytes() for image in np.asarray(part.images)}


@pytest.mark.parametrize("kind", ["array_record", "tfrecord"])
def test_images_of_any_size_go_the_folders_way(prepare, tmp_path, kind):
    directory = prepare()
    if kind == "tfrecord":
        to_tfrecord(directory)
    how = {"image_size": 16, "crop_pct": 0.8, "interpolation": "bicubic"}
    fitted = {"size": 16, "crop_pct": 0.8, "interpolation": "bicubic"}
    for part, split in zip(load(tmp_path, **how), ("train", "validation"), strict=True):
        assert part.images.shape == (COUNTS[split], 16, 16, 3)
        assert part.images.dtype == np.uint8 and part.labels.dtype == np.int32
        assert part.class_names == NAMES
        expected = {
            pillow.fit(draw(index), **fitted).tobytes(): index % 3
            for index in numbers(split)
        }
        found = zip(part.images, part.labels.tolist(), strict=True)
        assert {image.tobytes(): label for image, label in found} == expected


@pytest.mark.parametrize("kind", ["array_record", "tfrecord"])
@pytest.mark.parametrize("side", [None, 12])
def test_streamed_they_are_the_same_in_the_same_order(prepare, tmp_path, side, kind):
    directory = prepare(shape=(side, side, 3), side=side)
    if kind == "tfrecord":
        to_tfrecord(directory)
    for part, streamed in zip(
        load(tmp_path, image_size=16),
        load(tmp_path, image_size=16, stream=True),
        strict=True,
    ):
        assert isinstance(streamed.images, stream.Images)
        assert streamed.images.shape == part.images.shape
        np.testing.assert_array_equal(streamed.labels, part.labels)
        np.testing.assert_array_equal(np.asarray(streamed.images), part.images)
        rows = np.array([2, 0, 1])
        sent = pickle.dumps(streamed.images[rows])  # a worker opens its own
        assert b"tensorflow_datasets" not in sent
        sent = pickle.loads(sent)
        np.testing.assert_array_equal(np.asarray(sent), part.images[rows])


def test_squares_of_one_size_stay_as_they_are(prepare, tmp_path):
    prepare(shape=(12, 12, 3), side=12)
    where = {"dataset": "tfds:animals", "data_dir": str(tmp_path / "data")}
    train, _ = load(tmp_path, image_size=16)  # resized on the device
    expected = {np.asarray(draw(index, 12)).tobytes() for index in numbers("train")}
    assert images_of(train) == expected
    assert data.describe(DataConfig(**where))[:3] == (3, (12, 12, 3), "cifar10")
    cfg = DataConfig(**where, image_size=16)
    assert data.image_shape(cfg) == (16, 16, 3) and not sources.is_cropped(cfg)


def test_images_of_any_size_are_described(prepare, tmp_path):
    prepare()
    where = {"dataset": "tfds:animals", "data_dir": str(tmp_path / "data")}
    assert data.describe(DataConfig(**where))[:2] == (3, (224, 224, 3))
    cfg = DataConfig(**where, image_size=16, in_channels=1)
    assert data.image_shape(cfg) == (16, 16, 1) and sources.is_cropped(cfg)


@pytest.mark.parametrize("side", [None, 12])
def test_gray_images_have_one_channel(prepare, tmp_path, side):
    prepare(shape=(side, side, 1), side=side, mode="L")
    train, _ = load(tmp_path, image_size=16)
    assert train.images.shape == (7, side or 16, side or 16, 1)
    if side:
        whole = {np.asarray(draw(i, 12, "L")).tobytes() for i in numbers("train")}
        assert images_of(train) == whole
    cfg = DataConfig(dataset="tfds:animals", data_dir=str(tmp_path / "data"))
    assert data.describe(cfg).normalization == ".5/.25"


@pytest.mark.parametrize(
    ("splits", "scored"),
    [
        (("train", "test"), "test"),
        (("train", "val"), "val"),
        (("test", "train", "validation"), "validation"),
    ],
)
def test_the_split_that_is_scored(prepare, tmp_path, caplog, splits, scored):
    caplog.set_level("INFO")
    prepare(splits=splits, shape=(12, 12, 3), side=12)
    _, second = load(tmp_path)
    expected = {np.asarray(draw(index, 12)).tobytes() for index in numbers(scored)}
    assert images_of(second) == expected
    assert f"scored on {scored}" in caplog.text


def test_a_set_without_a_split_to_score_is_refused(prepare, tmp_path):
    directory = prepare(splits=("train",))
    with pytest.raises(ConfigError, match=f"{directory} has the splits train: .*valid"):
        load(tmp_path)


def test_a_set_is_found_by_name_configuration_and_version(prepare, tmp_path):
    home = tmp_path / "data"
    old = prepare(config="small", version="1.0.0")
    new = prepare(config="small", version="1.10.0")
    assert examples.find("tfds:animals", home) == new
    assert examples.find("tfds:animals/small", home) == new
    assert examples.find("tfds:animals:1.0.0", home) == old
    assert examples.find("tfds:animals/small:1.0.0", home) == old
    other = prepare(config="large")
    assert examples.find("tfds:animals/large", home) == other
    with pytest.raises(ConfigError, match="tfds:animals/large, tfds:animals/small"):
        examples.find("tfds:animals", home)
    for name, what in (
        ("animals/small:2.0.0", "animals/small 2.0.0"),
        ("animals/tiny", "animals/tiny"),
        ("plants", "plants"),
    ):
        with pytest.raises(DataError, match=f"^{what} is not prepared in {home}: pre"):
            examples.find(f"tfds:{name}", home)


@pytest.mark.parametrize(
    "name", ["tfds:", "tfds:..", "tfds:a/../b", "tfds:a/b/c", "tfds:a:1.0", "tfds:/etc"]
)
def test_a_name_that_is_none_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="is not the name of a data set: use tfds"):
        load(tmp_path, name)


def test_by_default_it_is_looked_for_where_tfds_does(prepare, tmp_path, monkeypatch):
    prepare()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    assert len(data.load_dataset("tfds:animals", image_size=8)[0]) == 7


def test_the_features_are_chosen_as_its_authors_did(prepare, tmp_path, tfds):
    features = {
        "mask": tfds.features.Image(shape=(None, None, 1)),
        "photo": tfds.features.Image(shape=(12, 12, 3)),
        "kind": tfds.features.ClassLabel(num_classes=3),
        "number": tfds.features.Scalar(dtype=np.int64),
    }
    prepare(features=features, keys=("photo", "kind"), side=12)
    train, _ = load(tmp_path)
    expected = {np.asarray(draw(index, 12)).tobytes() for index in numbers("train")}
    assert images_of(train) == expected
    assert train.class_names == ("0", "1", "2")
    shutil.rmtree(tmp_path / "data")
    directory = prepare(features=features, keys=None, side=12)
    with pytest.raises(
        ConfigError, match=f"{directory} needs images with one label each"
    ):
        load(tmp_path)
    shutil.rmtree(tmp_path / "data")
    del features["mask"]
    prepare(features=features, keys=None, side=12)
    assert images_of(load(tmp_path)[0]) == expected


def test_a_set_without_a_label_is_refused(prepare, tmp_path, tfds):
    features = {"image": tfds.features.Image(), "number": np.int64}
    directory = prepare(features=features, keys=None)
    message = (
        f"{directory} needs images with one label each, but its features are "
        "image .Image., n"
    )
    with pytest.raises(ConfigError, match=message):
        load(tmp_path)


def test_images_of_another_kind_are_refused(prepare, tmp_path, tfds):
    features = {
        "image": tfds.features.Image(shape=(None, None, 1), dtype=np.uint16),
        "label": tfds.features.ClassLabel(names=NAMES),
    }
    directory = prepare(features=features, mode="L")
    with pytest.raises(ConfigError, match=f"{directory} has uint16 images"):
        load(tmp_path)


def test_labels_that_nobody_knows_are_refused(prepare, tmp_path):
    directory = prepare(label=lambda index: -1 if index >= 10 else 0)
    with pytest.raises(
        DataError, match=f"{directory}: labels of validation range from -1 to -1, but"
    ):
        load(tmp_path, image_size=8)


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    ("kind", "fault", "reason"),
    [
        ("array_record", "missing", ""),
        ("array_record", "truncated", ""),
        ("tfrecord", "missing", "No such file"),
        ("tfrecord", "truncated", "ends in the middle of a record"),
        ("tfrecord", "length", "has a record of [0-9]{9,} bytes"),
        ("tfrecord", "shorter", "train has 6 records, not 7"),
        ("tfrecord", "info", ""),
    ],
)
def test_a_damaged_set_is_named(prepare, tmp_path, kind, fault, reason, is_streamed):
    directory = prepare()
    if kind == "tfrecord":
        to_tfrecord(directory)
    path = sorted(directory.glob(f"*-train.{kind}*"))[0]
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    if fault == "missing":
        path.unlink()
    elif fault == "truncated":
        path.write_bytes(content[:-10])
    elif fault == "length":
        path.write_bytes(struct.pack("<Q", 2**40) + content[8:])
    elif fault == "shorter":
        path.write_bytes(content[length + 16 :])
    else:
        (directory / "dataset_info.json").write_text("{")
    message = f"{directory} cannot be read .*{reason}.*: prepare it again with tensorfl"
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path, image_size=8, stream=is_streamed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    ("shape", "content", "reason"),
    [
        ((None, None, 3), b"no image", "cannot identify"),
        ((12, 12, 3), None, "40x30, not 12x12"),
    ],
)
def test_an_image_that_cannot_be_read_is_named(
    prepare, tmp_path, monkeypatch, tfds, shape, content, reason, is_streamed
):
    directory = prepare(shape=shape, side=shape[0])
    if content is None:
        file = io.BytesIO()
        Image.new("RGB", (40, 30)).save(file, "PNG")
        content = file.getvalue()
    skip = tfds.decode.SkipDecoding
    monkeypatch.setattr(skip, "decode_example_np", lambda self, example: content)
    message = f"{directory} cannot be read .image 0 of train: .*{reason}"
    with pytest.raises(DataError, match=message):
        train, _ = load(tmp_path, image_size=8, stream=is_streamed)
        np.asarray(train.images)


def test_the_labels_are_read_once(prepare, tmp_path, monkeypatch):
    directory = to_tfrecord(prepare())
    first, _ = load(tmp_path, image_size=8, stream=True)
    read = []
    getitem = records.TFRecords.__getitem__

    def counted(self, position):
        read.append(position)
        return getitem(self, position)

    monkeypatch.setattr(records.TFRecords, "__getitem__", counted)
    again, _ = load(tmp_path, image_size=8, stream=True)
    np.testing.assert_array_equal(again.labels, first.labels)
    assert not read
    os.utime(directory / "features.json", (1, 1))
    load(tmp_path, image_size=8, stream=True)
    assert len(read) >= 7 + 4


def test_such_a_set_is_not_rebuilt(prepare, tmp_path):
    prepare()
    with pytest.raises(ConfigError, match="rebuild_data is only for .* tfds:animals"):
        load(tmp_path, rebuild_data=True)


def test_a_set_that_is_elsewhere_has_the_size_that_was_given(tmp_path):
    where = {"dataset": "tfds:animals", "data_dir": str(tmp_path)}
    cfg = DataConfig(**where, image_size=16)
    assert data.image_shape(cfg) == (16, 16, 3) and sources.is_cropped(cfg)
    with pytest.raises(DataError, match="animals is not prepared in"):
        data.image_shape(DataConfig(**where))
    with pytest.raises(DataError, match="animals is not prepared in"):
        data.describe(cfg)


def test_the_records_of_a_file_are_had_by_position(tmp_path):
    contents = [[b"a" * 5, b"", b"c"], [], [b"dd"]]
    paths = []
    for number, shard in enumerate(contents):
        paths.append(tmp_path / str(number))
        written = (struct.pack("<QI", len(x), 0) + x + bytes(4) for x in shard)
        paths[-1].write_bytes(b"".join(written))
    found = records.TFRecords(paths)
    assert len(found) == 4 and list(found) == [b"aaaaa", b"", b"c", b"dd"]
    assert found[-1] == b"dd"
    with pytest.raises(IndexError):
        found[4]
    paths[2].write_bytes(b"")
    with pytest.raises(ValueError, match="2 has become shorter"):
        found[3]
