"""Reads the published CIFAR archives into arrays without unpacking them to disk."""

import io
import json
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnet_jax.data.tfds import Arrays, Coarse
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
# The names are in the official order, which is alphabetical.
CLASS_NAMES_100 = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy
    bridge bus butterfly camel can castle caterpillar cattle chair chimpanzee clock
    cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest
    fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
    lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
    otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum
    rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail
    snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
    television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf
    woman worm""".split()
)
COARSE_NAMES_100 = tuple(
    """aquatic_mammals fish flowers food_containers fruit_and_vegetables
    household_electrical_devices household_furniture insects large_carnivores
    large_man-made_outdoor_things large_natural_outdoor_scenes
    large_omnivores_and_herbivores medium_mammals non-insect_invertebrates people
    reptiles small_mammals trees vehicles_1 vehicles_2""".split()
)
# Maps each fine class to its coarse class.
COARSE_100 = (
    *(4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11),
    *(6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5),
    *(5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17),
    *(10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13),
    *(16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13),
)
_MAX_MEMBER = 2**26  # in bytes; the largest CIFAR-10 file has 31 million
_MAX_MEMBER_100 = 2**28  # in bytes; the largest CIFAR-100 file has 156 million
_FILES = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]


class Part(NamedTuple):
    """The contents of one file in an archive."""

    images: np.ndarray  # [N, 32, 32, 3] uint8
    labels: np.ndarray  # [N]
    coarse: np.ndarray | None = None  # [N]


def read(
    path: Path, read_parts: Callable[[Callable[[str], bytes]], Iterator[Part]]
) -> Arrays:
    """Returns the arrays in an archive.

    Args:
      read_parts: one of the functions below, which yield the parts of an archive, with
        the test split last.
    """
    is_100 = read_parts in (binary_100, python_100)
    limit = _MAX_MEMBER_100 if is_100 else _MAX_MEMBER

    def read(name: str) -> bytes:
        file = archive.extractfile(name)  # read into memory, not unpacked to disk
        if file is None:
            raise KeyError(name)
        content = file.read(limit + 1)
        if len(content) > limit:
            whole = f"CIFAR-10{'0' * is_100}"
            raise ValueError(f"{name} unpacks to more bytes than any {whole} file")
        return content

    try:
        with tarfile.open(path) as archive:
            parts = list(read_parts(read))
    except (
        *(KeyError, ValueError, TypeError, EOFError, OSError),
        *(tarfile.TarError, zlib.error, pickle.UnpicklingError),
    ) as error:
        raise DataError(f"{path.name} cannot be read ({error})") from error
    images = np.concatenate([part.images for part in parts])
    labels = np.concatenate([part.labels for part in parts]).astype(np.int32)
    count = len(labels) - len(parts[-1].labels)
    train, test = (
        (images[rows], labels[rows]) for rows in (slice(count), slice(count, None))
    )
    if not is_100:
        return Arrays(train, test, CLASS_NAMES)
    one, other = (np.asarray(part.coarse, np.int32) for part in parts)
    return Arrays(train, test, CLASS_NAMES_100, Coarse(one, other, COARSE_NAMES_100))


def _planes_to_images(planes: np.ndarray) -> np.ndarray:
    """Converts red, green and blue planes [N, 3072] to images [N, 32, 32, 3]."""
    return np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def binary(read: Callable[[str], bytes]) -> Iterator[Part]:
    for name in _FILES:
        records = _records(read(f"cifar-10-batches-bin/{name}.bin"), 1)
        yield Part(_planes_to_images(records[:, 1:]), records[:, 0])


def binary_100(read: Callable[[str], bytes]) -> Iterator[Part]:
    for name in ("train", "test"):
        records = _records(read(f"cifar-100-binary/{name}.bin"), 2)
        yield Part(_planes_to_images(records[:, 2:]), records[:, 1], records[:, 0])


def _records(content: bytes, num_labels: int) -> np.ndarray:
    return np.frombuffer(content, np.uint8).reshape(-1, num_labels + 3072)


def python(read: Callable[[str], bytes]) -> Iterator[Part]:
    for name in _FILES:
        batch = _unpickle(read(f"cifar-10-batches-py/{name}"))
        labels = np.array(batch[b"labels"], np.uint8)
        yield Part(_planes_to_images(batch[b"data"]), labels)


def python_100(read: Callable[[str], bytes]) -> Iterator[Part]:
    for name in ("train", "test"):
        batch = _unpickle(read(f"cifar-100-python/{name}"))
        fine, coarse = (
            np.array(batch[key], np.uint8) for key in (b"fine_labels", b"coarse_labels")
        )
        yield Part(_planes_to_images(batch[b"data"]), fine, coarse)


def _unpickle(content: bytes) -> Any:
    return _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()


class _ArrayUnpickler(pickle.Unpickler):
    """Rejects classes other than NumPy's, because md5 cannot prove a file's origin."""

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
        raise ValueError(f"the pickle refers to {module}.{name}, which is not allowed")


def npm(read: Callable[[str], bytes]) -> Iterator[Part]:
    from PIL import Image

    labels = {
        # The package itself misspells "labels".
        split: np.array(json.loads(read(f"package/{split}_lables.json")), np.uint8)
        for split in ("train", "test")
    }
    for index, name in enumerate(_FILES):
        with Image.open(io.BytesIO(read(f"package/{name}.png"))) as picture:
            rows = np.asarray(picture.convert("RGB"))  # one image per row
        images = rows.reshape(-1, 32, 32, 3)
        split, start = ("test", 0) if name == "test_batch" else ("train", index)
        start *= len(images)
        yield Part(images, labels[split][start : start + len(images)])
