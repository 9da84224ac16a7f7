"""A folder of images by class to arrays, in torchvision's ImageFolder layout."""

import logging
import os
import sys
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resnet_jax.errors import DataError, first_line

log = logging.getLogger(__name__)

_MAX_PIXELS = 2**26  # of a resized image; a crop of 4096 with .5 beside it has these
# torchvision.datasets.folder's.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class Split(NamedTuple):
    """The files of DATA_DIR/train or DATA_DIR/test, in ImageFolder's order."""

    root: Path
    class_names: tuple[str, ...]
    paths: list[Path]
    labels: np.ndarray  # [N] int32


class Listing(NamedTuple):
    """What a folder has: looked through once."""

    class_names: tuple[str, ...]
    splits: tuple[Split, Split]  # train and test


def scan(data_dir: Path) -> Listing:
    """The files of data_dir/train/CLASS/* and data_dir/test/CLASS/*.

    The names of the classes are those of the folders in train, sorted: the index is the
    label.

    Raises:
      DataError: there is no such folder, or no class in it; a class is empty or
        missing, or is in test only.
    """
    train = data_dir / "train"
    if not train.is_dir():
        raise DataError(
            f"{train} is no folder: images belong in {train}/CLASS/* and "
            f"{data_dir / 'test'}/CLASS/*"
        )
    found = tuple(sorted(entry.name for entry in train.iterdir() if entry.is_dir()))
    if not found:
        raise DataError(f"{train} has no class: images belong in {train}/CLASS/*")
    return Listing(
        found, (_scan_split(train, found), _scan_split(data_dir / "test", found))
    )


def _scan_split(root: Path, names: tuple[str, ...]) -> Split:
    there = {e.name for e in root.iterdir() if e.is_dir()} if root.is_dir() else set()
    strangers = sorted(there - set(names))
    if strangers:
        raise DataError(
            f"{root / strangers[0]} is a class that {root.parent / 'train'} has not: "
            "give both the same folders"
        )
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        if name not in there:
            raise DataError(f"{root / name} is missing: every class needs its folder")
        found = list(_images(root / name))
        if not found:
            raise DataError(
                f"{root / name} has no image ({', '.join(SUFFIXES)}): "
                "fill it, or remove the class"
            )
        paths += found
        labels += [label] * len(found)
    return Split(root, names, paths, np.array(labels, np.int32))


def load(
    split: Split, *, size: int, crop_pct: float, skip_bad: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """(images [N, size, size, 3] uint8, labels [N] int32) of the files of a split.

    Images are turned as their EXIF says and made RGB; their shorter side becomes
    size / crop_pct, bilinear and antialiased, and the middle is cropped: what
    torchvision's Resize(256) and CenterCrop(224) do at size 224 and crop_pct .875.

    Args:
      skip_bad: leave out what cannot be read, with one warning that counts it.

    Raises:
      DataError: an image cannot be read, or none of a class.
    """
    paths = split.paths

    def read(path: Path) -> np.ndarray | str:
        try:
            return read_image(path, size=size, crop_pct=crop_pct)
        except Exception as error:  # Pillow's readers raise of every kind
            return first_line(error)

    images = np.zeros((len(paths), size, size, 3), np.uint8)
    good = np.ones(len(paths), bool)
    with ThreadPool() as pool:  # Pillow decodes and resizes without the GIL
        for index, image in enumerate(pool.imap(read, paths, chunksize=16)):
            if isinstance(image, str):
                if not skip_bad:
                    raise DataError(
                        f"{paths[index]} cannot be read ({image}): remove it, or "
                        "leave out such images with --skip-bad-images"
                    )
                good[index] = False
            else:
                images[index] = image
    kept = split.labels
    if not good.all():
        first = paths[int(np.argmin(good))]
        log.warning("%d images left out, the first %s", (~good).sum(), first)
        images, kept = images[good], kept[good]
    for label, name in enumerate(split.class_names):
        if label not in kept:
            raise DataError(f"{split.root / name} has no image that can be read")
    return images, kept


def _images(directory: Path) -> Iterator[Path]:
    for folder, _, files in sorted(os.walk(directory, followlinks=True)):
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES):
                yield Path(folder, name)


def read_image(
    path: Path, *, size: int, crop_pct: float, channels: int = 3
) -> np.ndarray:
    """One image as [size, size, channels] uint8, see load; a huge one raises."""
    from PIL import Image, ImageOps

    with Image.open(path) as file:
        # Pillow only warns of these, and warnings are of all threads alike.
        if file.width * file.height > (Image.MAX_IMAGE_PIXELS or sys.maxsize):
            raise ValueError(f"{file.width}x{file.height}: a decompression bomb?")
        image = ImageOps.exif_transpose(file).convert("L" if channels == 1 else "RGB")
    side = round(size / crop_pct)
    width, height = image.size
    # torchvision's Resize(int): the longer side is cut to an integer.
    if width <= height:
        shape = (side, int(side * height / width))
    else:
        shape = (int(side * width / height), side)
    # A strip of one pixel's width is small until its width is an image's.
    if shape[0] * shape[1] > _MAX_PIXELS:
        raise ValueError(f"{width}x{height} would become {shape[0]}x{shape[1]} pixels")
    image = image.resize(shape, Image.Resampling.BILINEAR)
    left, top = (round((length - size) / 2) for length in shape)
    cropped = np.asarray(image.crop((left, top, left + size, top + size)))
    return cropped.reshape(size, size, channels)
