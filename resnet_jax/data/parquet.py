"""Reads the CIFAR Parquet files from the Hugging Face Hub."""

import io
import itertools
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnet_jax import download, files
from resnet_jax.data.archives import COARSE_100
from resnet_jax.data.tfds import Arrays, Coarse, Published, sha256
from resnet_jax.errors import DataError, first_line

log = logging.getLogger(__name__)

HUB = "https://huggingface.co"
# These are the sha256 digests of the CIFAR-100 files, as reported by users.
USUAL_SHA256 = {
    "train": "694865d6b990e234804f01268586c41e88bcbbb75e20858432c05ad4081aca23",
    "test": "98776c529bb146a9c791229df74a5cf076be9b43d82dbbd334b6a7788d73dc68",
}


class Columns(NamedTuple):
    """Names of the label columns and their classes."""

    label: str
    class_names: tuple[str, ...]
    coarse: str | None = None
    coarse_names: tuple[str, ...] = ()


def fetch(folder: str, columns: Columns, published: Published, **how: float) -> Arrays:
    """Downloads the two files in a Hub folder, and returns the data in official order.

    This function uses ordinary HTTP requests, not huggingface_hub. HF_ENDPOINT and
    HF_HUB_OFFLINE are respected. The downloaded files are not kept. If no digest of the
    pixels is published, the contents are checked, and a log message says what was
    verified.

    Args:
      folder: the path of the folder, for example
        "uoft-cs/cifar10/resolve/main/plain_text".
      how: min_rate; see download.fetch.

    Raises:
      DataError: if a file cannot be downloaded or read, or if its content is wrong.
    """
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in {"1", "ON", "YES", "TRUE"}:
        raise DataError("HF_HUB_OFFLINE is set")
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or HUB
    with tempfile.TemporaryDirectory() as scratch:
        paths = {}
        for split in ("test", "train"):  # the smaller file first
            name = f"{split}-00000-of-00001.parquet"
            paths[split] = Path(scratch, name)
            url = f"{endpoint}/datasets/{folder}/{name}"
            log.info("%s: downloading %s", published.name, url)
            download.fetch(url, "", paths[split], **how)
        arrays = read(paths["train"], paths["test"], columns, published)
        if published.sha256:
            return to_official_order(arrays, published)
        found = {split: files.file_digest(path) for split, path in paths.items()}
    fault = published.find_fault(arrays) or find_fault(arrays)
    if fault is not None:
        raise DataError(f"the Hub's files are not {published.name}: {fault}")
    _tell_unverified(published.name, found)
    return arrays


def _tell_unverified(name: str, found: dict[str, str]) -> None:
    """Logs which properties of the files could be verified."""
    checked = "its image counts and both kinds of labels passed the checks"
    if found == USUAL_SHA256:
        log.info(
            "%s: unverified because no sha256 of its pixels is published; however, "
            "%s, and the Hub's files have the usual sha256",
            name,
            checked,
        )
        return
    log.warning(
        "%s: unverified because no sha256 of its pixels is published, and the Hub's "
        "files (sha256 %s) are not the usual ones; %s",
        name,
        ", ".join(found.values()),
        checked,
    )


def read(train: Path, test: Path, columns: Columns, published: Published) -> Arrays:
    """Reads two files with PNGs in the column `img`, keeping the order of the rows.

    Raises:
      DataError: if pyarrow is not installed, or if a file cannot be read or has the
        wrong number or size of images.
    """
    parts, coarse = [], []
    for split, path in (("train", train), ("test", test)):
        images, labels, others = _read(path, split, columns, published)
        parts.append((images, labels))
        coarse.append(others)
    found = Arrays(parts[0], parts[1], columns.class_names)
    if columns.coarse is None:
        return found
    return found._replace(coarse=Coarse(coarse[0], coarse[1], columns.coarse_names))


def _read(
    path: Path, split: str, columns: Columns, published: Published
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise DataError("pyarrow is not installed: run `pip install -e .`") from None
    count = published.num_examples[split]
    images = np.empty((count, *published.image_shape), np.uint8)
    labels, coarse = np.empty(count, np.int32), np.empty(count, np.int32)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if file.metadata.num_rows != count:
                raise ValueError(f"{file.metadata.num_rows} rows, not {count}")
            for index, row in enumerate(_rows(file, columns)):
                images[index] = _decode(row["img"]["bytes"], published.image_shape)
                labels[index] = row[columns.label]
                coarse[index] = row[columns.coarse] if columns.coarse else 0
    except Exception as error:  # pyarrow and Pillow raise many exception types
        reason = first_line(error)
        raise DataError(f"the Hub's {path.name} cannot be read ({reason})") from error
    return images, labels, coarse


def _rows(file: Any, columns: Columns) -> Iterator[dict[str, Any]]:
    wanted = [name for name in ("img", columns.label, columns.coarse) if name]
    missing = sorted(set(wanted) - set(file.schema_arrow.names))
    if missing:
        raise ValueError(f"no column {', '.join(missing)}")
    for batch in file.iter_batches(batch_size=1000, columns=wanted):
        yield from batch.to_pylist()


def _decode(content: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        if (image.height, image.width, len(image.getbands())) != shape:
            raise ValueError(
                f"an image has mode {image.mode} and size {image.width}x{image.height}"
            )
        return np.asarray(image)


def to_official_order(arrays: Arrays, published: Published) -> Arrays:
    """Returns `arrays` with the contents of the five training files in official order.

    The Hub's copy concatenates these files in the order in which they happen to appear
    in the archive. At most one of the 120 possible orders gives labels with the
    published sha256. If no order matches, or if the images differ, `arrays` is returned
    unchanged.
    """
    images, labels = arrays.train
    digests = published.sha256["train"]
    if len(labels) % 5:
        return arrays
    blocks = np.arange(len(labels)).reshape(5, -1)
    for order in itertools.permutations(range(5)):
        rows = blocks[list(order)].reshape(-1)
        if sha256(labels[rows].astype(np.uint8)) == digests[1]:
            found = images if order == (0, 1, 2, 3, 4) else images[rows]
            if sha256(found) == digests[0]:
                return arrays._replace(train=(found, labels[rows]))
    return arrays


def find_fault(arrays: Arrays) -> str | None:
    """Returns how `arrays` differs from CIFAR-100, or None if no difference is found.

    No digest of the pixels is published, so this function checks that all classes of a
    split have the same number of examples, and that the coarse labels match the
    classes.
    """
    if arrays.coarse is None:
        return "there are no coarse labels"
    for split, labels, coarse in (
        ("train", arrays.train[1], arrays.coarse.train),
        ("test", arrays.test[1], arrays.coarse.test),
    ):
        counts = np.bincount(labels, minlength=len(COARSE_100))
        if counts.min() != counts.max():
            return f"{split} has {counts.min()} to {counts.max()} examples per class"
        if not np.array_equal(coarse, np.array(COARSE_100)[labels]):
            return f"{split} has coarse labels that do not match the classes"
    return None
