import gzip
import struct
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from resnet_jax import data
from resnet_jax.config import DataConfig
from resnet_jax.data import dataset, folder, pillow, sources
from resnet_jax.data import tfds as tfds_files
from resnet_jax.errors import ConfigError, DataError

COUNTS = {"train": 6, "t10k": 4}
FILES = [
    f"{split}-{kind}-ubyte.gz"
    for split in COUNTS
    for kind in ("images-idx3", "labels-idx1")
]


@pytest.fixture
def fashion(tmp_path, monkeypatch):
    """Writes a small fashion_mnist that passes as the published one."""
    rng = np.random.default_rng(0)
    found = {}
    for split, count in COUNTS.items():
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        labels = np.arange(count, dtype=np.uint8)
        found[split] = images, labels
        contents = {
            "images-idx3": struct.pack(">4I", 2051, count, 28, 28) + images.tobytes(),
            "labels-idx1": struct.pack(">2I", 2049, count) + labels.tobytes(),
        }
        for kind, content in contents.items():
            path = tmp_path / f"{split}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(content))
    _, load = sources.SOURCES["fashion_mnist"].open(DataConfig())
    published = load.func.__self__.published
    for split, count in zip(("train", "test"), COUNTS.values(), strict=True):
        monkeypatch.setitem(published.num_examples, split, count)
    return found


def load_fashion(data_dir):
    return data.load_dataset("fashion_mnist", data_dir)


def test_fashion_mnist_is_read_from_its_files(fashion, tmp_path):
    for part, (images, labels) in zip(
        load_fashion(tmp_path), fashion.values(), strict=True
    ):
        assert part.images.shape == (len(labels), 28, 28, 1)
        assert part.images.dtype == np.uint8 and part.labels.dtype == np.int32
        np.testing.assert_array_equal(part.images[..., 0], images)
        np.testing.assert_array_equal(part.labels, labels)
        assert len(part.class_names) == 10 and part.class_names[9] == "Ankle boot"


def test_fashion_mnist_is_described_without_its_files(tmp_path):
    cfg = DataConfig(dataset="fashion_mnist", data_dir=str(tmp_path))
    assert data.describe(cfg)[:3] == (10, (28, 28, 1), ".286/.353")


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        *(
            (name, fault)
            for name in FILES
            for fault in ("truncated", "changed", "other")
        ),
        *((name, "missing") for name in FILES[1:]),  # the first determines the folder
    ],
)
def test_a_damaged_file_of_fashion_mnist_is_named(fashion, tmp_path, name, fault):
    path = tmp_path / name
    content = path.read_bytes()
    if fault == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif fault == "changed":
        path.write_bytes(content[:-8] + bytes(4) + content[-4:])  # its checksum
    elif fault == "other":
        path.write_bytes(b"no gzip")
    else:
        path.unlink()
    with pytest.raises(DataError, match=f"{path} cannot be read") as caught:
        load_fashion(tmp_path)
    assert "\n" not in str(caught.value)


def test_images_of_another_size_are_refused(fashion, tmp_path):
    content = struct.pack(">4I", 2051, 6, 27, 27) + bytes(6 * 27 * 27)
    path = tmp_path / FILES[0]
    path.write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match=f"{path} cannot be read .*reshape"):
        load_fashion(tmp_path)
    content = struct.pack(">4I", 2051, 5, 28, 28) + bytes(5 * 28 * 28)
    path.write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match=r"train images are uint8 \[5, 28, 28, 1\]"):
        load_fashion(tmp_path)


def test_fashion_mnist_without_files_says_where_they_go(tmp_path, monkeypatch):
    # Debian's package may be installed on the machine.
    exists = sources.Path.exists
    monkeypatch.setattr(
        sources.Path,
        "exists",
        lambda path: not path.is_relative_to("/usr/share") and exists(path),
    )
    with pytest.raises(DataError, match=f"not prepared in {tmp_path}: put its .*gz"):
        load_fashion(tmp_path)


def test_fashion_mnist_is_not_streamed(fashion, tmp_path):
    with pytest.raises(DataError, match="fashion_mnist can be streamed only from"):
        data.load_dataset("fashion_mnist", tmp_path, stream=True)


@pytest.fixture
def numbered(monkeypatch):
    """Replaces the digits with images filled with their index."""

    def part(count):
        images = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1)
        return data.Dataset(images, np.arange(count, dtype=np.int32) % 2, ("a", "b"))

    both = part(50), part(20)
    small = sources.Source((1, 1, 1), lambda cfg: (2, lambda: both))
    monkeypatch.setitem(sources.SOURCES, "digits", small)
    return both


def load(**fields):
    return data.load(DataConfig(dataset="digits", **fields))


def numbers(part):
    return part.images[:, 0, 0, 0].tolist()


def test_the_splits_of_a_data_set(numbered):
    splits = load()
    assert numbers(splits.train) == list(range(50))
    assert numbers(splits.test) == list(range(20)) and len(splits.validation) == 0
    assert splits.scored == {"test": splits.test}
    assert splits.identity == {
        "classes": ["a", "b"],
        "training data": data.digest(numbered[0]),
        "test data": data.digest(numbered[1]),
    }


def test_the_validation_split_is_of_the_chosen_training_images(numbered):
    splits = load(max_train_samples=30, validation_split=0.2, max_test_samples=7)
    few, few_tests = data.subset(numbered[0], 30), data.subset(numbered[1], 7)
    assert (len(splits.train), len(splits.validation)) == (24, 6)
    assert sorted(numbers(splits.train) + numbers(splits.validation)) == numbers(few)
    assert numbers(splits.test) == numbers(few_tests)
    assert splits.scored == {"val": splits.validation, "test": splits.test}
    assert splits.identity["training data"] == data.digest(few)
    assert splits.identity["test data"] == data.digest(few_tests)
    # It covers all chosen examples, including the validation split.
    assert load(max_train_samples=30).identity["training data"] == data.digest(few)
    assert load(max_train_samples=31).identity["training data"] != data.digest(few)


def test_the_whole_test_split_is_had_alone_and_without_rebuilding():
    splits = data.load_test(DataConfig(dataset="digits", rebuild_data=True))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (0, 0, 360)
    with pytest.raises(ConfigError, match="rebuild_data is only for cifar10"):
        load(rebuild_data=True)


def test_images_are_hashed_once_a_start(small_cifar, prepared_dir, monkeypatch):
    """The same hash serves to verify and to identify the pixels."""
    hashed = []
    sha256 = tfds_files.sha256

    def counted(array):
        hashed.append(array.shape)
        return sha256(array)

    for module in (tfds_files, dataset):
        monkeypatch.setattr(module, "sha256", counted)
    cfg = DataConfig(data_dir=str(prepared_dir))
    shapes = small_cifar.train[0].shape, small_cifar.test[0].shape
    identities = []
    for _ in ("nothing is cached", "it is cached"):
        identities.append(data.load(cfg).identity)
        images = Counter(shape for shape in hashed if len(shape) == 4)
        assert images == {shape: 1 for shape in shapes}
        hashed.clear()
    # The digests still match the images.
    whole = [data.Dataset(*part, ()) for part in (small_cifar.train, small_cifar.test)]
    for identity in identities:
        assert identity["training data"] == data.digest(whole[0])
        assert identity["test data"] == data.digest(whole[1])


def test_a_folder_is_looked_through_once_a_start(tmp_path, monkeypatch):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            home = tmp_path / split / name
            home.mkdir(parents=True)
            Image.new("RGB", (9, 9)).save(home / "0.png")
    walked, read = [], []
    images, read_image = folder.list_images, pillow.read_image

    def counted(directory, *args):
        walked.append(str(directory.relative_to(tmp_path)))
        return images(directory, *args)

    def noted(path, **options):
        read.append(path)
        return read_image(path, **options)

    monkeypatch.setattr(folder, "list_images", counted)
    monkeypatch.setattr(pillow, "read_image", noted)
    cfg = DataConfig(dataset="folder", data_dir=str(tmp_path), image_size=8)
    described = data.describe(cfg)
    assert not read
    splits = data.load(cfg, described)
    assert len(splits.train) == len(splits.test) == 2 and len(read) == 4
    assert walked == ["train/cat", "train/dog", "test/cat", "test/dog"]
