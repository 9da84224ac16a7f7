import os
import shutil
import struct
import threading

import numpy as np
import pytest

from resnet_jax import data, files
from resnet_jax.data import cache, cifar
from resnet_jax.data import tfds as tfds_files
from resnet_jax.data.prepared import Prepared
from resnet_jax.errors import DataError


def assert_same(a, b):
    for split in ("train", "test"):
        for x, y in zip(getattr(a, split), getattr(b, split), strict=True):
            np.testing.assert_array_equal(x, y)
    assert a.class_names == b.class_names


@pytest.fixture
def directory(prepared_dir, tmp_path):
    """Copies the prepared directory, so tests can damage it."""
    copy = tmp_path / "tfds"
    shutil.copytree(prepared_dir, copy)
    return copy / "cifar10" / "3.0.2"


def test_what_is_written_reads_the_same_by_tfds_itself(directory, fake_arrays, tfds):
    assert_same(tfds_files.read(directory), fake_arrays)
    source = tfds.data_source("cifar10", data_dir=directory.parents[1], split="test")
    by_id = {example["id"].decode(): example for example in source}
    assert len(by_id) == 10
    np.testing.assert_array_equal(by_id["test_00003"]["image"], fake_arrays.test[0][3])
    assert by_id["test_00003"]["label"] == 3


def test_writing_leaves_nothing_else(prepared_dir):
    assert os.listdir(prepared_dir) == ["cifar10"]
    assert os.listdir(prepared_dir / "cifar10") == ["3.0.2"]


def test_two_may_prepare_at_once(fake_arrays, tfds, tmp_path):
    barrier, errors = threading.Barrier(2), []

    def write():
        try:
            barrier.wait()
            tfds_files.write_cifar10(fake_arrays, tmp_path)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert os.listdir(tmp_path) == ["cifar10"]
    assert_same(tfds_files.read(tfds_files.find("cifar10", tmp_path)), fake_arrays)


def test_find_takes_the_newest_version_that_is_whole(tmp_path):
    assert tfds_files.find("cifar10", tmp_path) is None
    for version in ("3.0.2", "3.0.10", "3.1.0"):
        (tmp_path / "cifar10" / version).mkdir(parents=True)
    for version in ("3.0.2", "3.0.10"):
        (tmp_path / "cifar10" / version / "dataset_info.json").touch()
    assert tfds_files.find("cifar10", tmp_path).name == "3.0.10"


def test_default_data_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert tfds_files.default_data_dir() == tmp_path
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tfds_files.default_data_dir() == tmp_path / "tensorflow_datasets"


def test_tfrecord_is_read_too(directory, fake_arrays):
    # The tfds.load default: the same serialized examples in other files.
    from array_record.python.array_record_module import ArrayRecordReader

    for path in list(directory.glob("*.array_record*")):
        reader = ArrayRecordReader(str(path))
        records = [reader.read([index])[0] for index in range(reader.num_records())]
        reader.close()
        with open(str(path).replace("array_record", "tfrecord"), "wb") as file:
            for record in records:
                file.write(struct.pack("<QI", len(record), 0) + record + bytes(4))
        path.unlink()
    info = directory / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    assert_same(tfds_files.read(directory), fake_arrays)

    (path,) = directory.glob("*test.tfrecord*")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match="ends in the middle of a record"):
        tfds_files.read(directory)


@pytest.mark.parametrize("fault", ["missing", "truncated", "info"])
def test_a_damaged_directory_is_refused_by_name(directory, fault):
    (path,) = directory.glob("*train.array_record*")
    if fault == "missing":
        path.unlink()
    elif fault == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        (directory / "dataset_info.json").write_text("{")
    message = f"{directory} is damaged .*--rebuild-data"
    with pytest.raises(DataError, match=message):
        tfds_files.read(directory)
    with pytest.raises(DataError, match=message):
        data.load_dataset("cifar10", directory.parents[1], stream=True)


@pytest.mark.parametrize(
    "num_examples, num_classes, message",
    [
        (51, 10, "train has 50 records, not 51"),
        (50, 9, "train labels range from 0 to 9"),
    ],
)
def test_an_index_of_other_data_is_refused(
    directory, num_examples, num_classes, message
):
    published = cifar.CIFAR10._replace(
        num_examples={"train": num_examples}, num_classes=num_classes
    )
    with pytest.raises(DataError, match=f"is damaged .{message}.: prepare it again"):
        tfds_files.index(directory, "train", published)


def test_the_cache_serves_until_the_directory_changes(directory, fake_arrays):
    assert cache.load("cifar10", directory) is None
    cache.save("cifar10", directory, fake_arrays)
    assert_same(cache.load("cifar10", directory), fake_arrays)
    os.utime(directory / "features.json", (1, 1))
    assert cache.load("cifar10", directory) is None


def test_a_damaged_cache_is_passed_over_with_a_warning(directory, fake_arrays, caplog):
    cache.save("cifar10", directory, fake_arrays)
    path = files.cache_dir() / "cifar10.npz"
    path.write_bytes(path.read_bytes()[:-100])
    assert cache.load("cifar10", directory) is None
    assert "is damaged" in caplog.text


def test_an_unwritable_cache_only_warns(
    directory, fake_arrays, caplog, monkeypatch, tmp_path
):
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("RESNET_JAX_CACHE", str(blocked / "cache"))
    cache.save("cifar10", directory, fake_arrays)
    assert "cannot be written (Not a directory)" in caplog.text


def test_loading_by_name_goes_through_directory_and_cache(
    prepared_dir, small_cifar, caplog
):
    caplog.set_level("INFO")
    how = Prepared(cifar.CIFAR10)
    first, second = how.arrays(prepared_dir), how.arrays(prepared_dir)
    assert_same(first, small_cifar)
    assert_same(second, small_cifar)
    assert "from the cache of" in caplog.messages[-1]
    assert "from the cache of" not in caplog.messages[0]


def test_published_data_with_other_bytes_are_refused(prepared_dir, small_cifar):
    cifar.CIFAR10.sha256["test"] = ("0" * 64, cifar.CIFAR10.sha256["test"][1])
    with pytest.raises(DataError, match="the test images do not have the published"):
        Prepared(cifar.CIFAR10).arrays(prepared_dir)
    assert not (files.cache_dir() / "cifar10.npz").exists()
