"""Image readers for the different kinds of sources; see stream.Reader."""

import contextlib
import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.data import examples, folder, pillow, tfds
from resnet_jax.data.stream import Images, Opened, Reader
from resnet_jax.errors import DataError, first_line

_opening = threading.Lock()


@dataclass(frozen=True)
class _Folder:
    """Reads the images of a folder; see pillow.read_image."""

    paths: list[Path]
    size: int
    crop_pct: float
    interpolation: str

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        shape = (len(indices), self.size, self.size, 3)
        images = np.empty(shape, np.uint8)
        for image, index in zip(images, indices, strict=True):
            path = self.paths[index]
            try:
                image[:] = pillow.read_image(
                    path,
                    size=self.size,
                    crop_pct=self.crop_pct,
                    interpolation=self.interpolation,
                )
            except Exception as error:  # Pillow raises many exception types
                raise self.fault(index, first_line(error)) from None
        return images

    def open(self, indices: np.ndarray) -> Iterable[Opened]:
        return (pillow.opened(self.paths[index]) for index in indices)

    def fault(self, index: int, reason: str) -> DataError:
        return DataError(f"{self.paths[index]} cannot be read ({reason}): remove it")


@dataclass(frozen=True)
class Arrays:
    """Reads uint8 images [N, H, W, C] from memory, for augmentation on the host."""

    images: np.ndarray

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.images[indices]
        return found

    def open(self, indices: np.ndarray) -> Iterable[Opened]:
        from PIL import Image

        is_gray = self.images.shape[-1] == 1
        for pixels in self(indices):
            image = Image.fromarray(pixels[..., 0] if is_gray else pixels)
            yield contextlib.nullcontext(image)

    def fault(self, index: int, reason: str) -> DataError:
        return DataError(f"image {index} of the training split: {reason}")


@dataclass(frozen=True)
class Rows:
    """Reads image rows[i] of another reader for each index i; `rows` has shape [N]."""

    reader: Reader
    rows: np.ndarray

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        return self.reader(self.rows[indices])

    def open(self, indices: np.ndarray) -> Iterable[Opened]:
        return self.reader.open(self.rows[indices])

    def fault(self, index: int, reason: str) -> DataError:
        return self.reader.fault(int(self.rows[index]), reason)


class _Records:
    """Reads the images in the array_record files of a prepared directory."""

    def __init__(self, directory: Path, split: str, positions: np.ndarray) -> None:
        self._place = directory, split
        self._positions = positions
        self._source: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_source": None}  # each process opens the files itself

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        directory, split = self._place
        with tfds.reading(directory):
            with _opening:  # concurrent imports of tensorflow-datasets deadlock
                if self._source is None:
                    # A worker process has its own logging level.
                    logging.getLogger("absl").setLevel(logging.ERROR)
                    self._source = tfds.open_records(directory, split)
            positions = self._positions[indices].tolist()
            records = self._source.__getitems__(positions)
            return np.stack([record["image"] for record in records])

    def open(self, indices: np.ndarray) -> Iterable[Opened]:
        return Arrays(self(indices)).open(np.arange(len(indices)))

    def fault(self, index: int, reason: str) -> DataError:
        directory, split = self._place
        return tfds.damaged(directory, f"{split} image {index}: {reason}")


def from_folder(
    split: folder.Split,
    *,
    size: int,
    crop_pct: float,
    interpolation: str = "bilinear",
) -> tuple[Images, np.ndarray]:
    """Returns the same as folder.load, but with images that are read on demand."""
    images = Images(
        _Folder(split.paths, size, crop_pct, interpolation),
        np.arange(len(split.paths)),
        (size, size, 3),
        is_cropped=True,
    )
    return images, split.labels


def from_records(
    directory: Path, split: str, published: tfds.Published
) -> tuple[Images, np.ndarray]:
    """Returns (images, labels) of a split in a prepared directory, ordered by id.

    Raises:
      DataError: if the directory cannot be read or has no array_record files, or if
        its examples or labels do not match `published`.
    """
    positions, labels = tfds.index(directory, split, published)
    read, rows = _Records(directory, split, positions), np.arange(len(labels))
    return Images(read, rows, published.image_shape), labels


def from_examples(reader: examples.Reader) -> tuple[Images, np.ndarray]:
    """Returns the same as reader.load, but with images that are read on demand.

    Raises:
      DataError: if the labels cannot be read.
    """
    labels = reader.labels()
    rows, is_cropped = np.arange(len(labels)), reader.is_cropped
    return Images(reader, rows, reader.image_shape, is_cropped=is_cropped), labels
