"""A folder of pictures by class to arrays, in torchvision's ImageFolder layout."""

import logging
import os
import sys
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np

from resnet_jax.errors import DataError

log = logging.getLogger(__name__)

_MAX_PIXELS = 2**26  # of a resized picture; a crop of 4096 with .5 beside it has these
# torchvision.datasets.folder's.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def class_names(data_dir: Path) -> tuple[str, ...]:
    """The names of the folders in data_dir/train, sorted: the index is the label.

    Raises:
      DataError: there is no such folder, or no class in it.
    """
    train = data_dir / "train"
    if not train.is_dir():
        raise DataError(
            f"{train} is no folder: pictures belong in {train}/CLASS/* and "
            f"{data_dir / 'test'}/CLASS/*"
        )
    found = tuple(sorted(entry.name for entry in train.iterdir() if entry.is_dir()))
    if not found:
        raise DataError(f"{train} has no class: pictures belong in {train}/CLASS/*")
    return found


def load(
    data_dir: Path, split: str, *, size: int, crop_pct: float, skip_bad: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """(images [N, size, size, 3] uint8, labels [N] int32) of data_dir/split/CLASS/*.

    Pictures are turned as their EXIF says and made RGB; their shorter side becomes
    size / crop_pct, bilinear and antialiased, and the middle is cropped: what
    torchvision's Resize(256) and CenterCrop(224) do at size 224 and crop_pct .875.
    The order is torchvision's ImageFolder's.

    Args:
      skip_bad: leave out what cannot be read, with one warning that counts it.

    Raises:
      DataError: a picture cannot be read, a class is empty or missing, or one is there
        that data_dir/train has not.
    """
    paths, kept = listing(data_dir, split)

    def read(path: Path) -> np.ndarray | str:
        try:
            return read_picture(path, size=size, crop_pct=crop_pct)
        except Exception as error:  # Pillow's readers raise of every kind
            return (str(error).strip() or repr(error)).splitlines()[0][:200]

    images = np.zeros((len(paths), size, size, 3), np.uint8)
    good = np.ones(len(paths), bool)
    with ThreadPool() as pool:  # Pillow decodes and resizes without the GIL
        for index, picture in enumerate(pool.imap(read, paths, chunksize=16)):
            if isinstance(picture, str):
                if not skip_bad:
                    raise DataError(
                        f"{paths[index]} cannot be read ({picture}): remove it, or "
                        "leave out such pictures with --skip-bad-images"
                    )
                good[index] = False
            else:
                images[index] = picture
    if not good.all():
        first = paths[int(np.argmin(good))]
        log.warning("%d pictures left out, the first %s", (~good).sum(), first)
        images = images[good]
    kept = kept[good]
    for label, name in enumerate(class_names(data_dir)):
        if label not in kept:
            raise DataError(
                f"{data_dir / split / name} has no picture that can be read"
            )
    return images, kept


def listing(data_dir: Path, split: str) -> tuple[list[Path], np.ndarray]:
    """(paths, labels [N] int32) of data_dir/split/CLASS/*, in ImageFolder's order.

    Raises:
      DataError: a class is empty or missing, or is there that data_dir/train has not.
    """
    names = class_names(data_dir)
    root = data_dir / split
    there = {e.name for e in root.iterdir() if e.is_dir()} if root.is_dir() else set()
    strangers = sorted(there - set(names))
    if strangers:
        raise DataError(
            f"{root / strangers[0]} is a class that {data_dir / 'train'} has not: "
            "give both the same folders"
        )
    paths, labels = [], []
    for label, name in enumerate(names):
        if name not in there:
            raise DataError(f"{root / name} is missing: every class needs its folder")
        files = list(_pictures(root / name))
        if not files:
            raise DataError(
                f"{root / name} has no picture ({', '.join(SUFFIXES)}): "
                "fill it, or remove the class"
            )
        paths += files
        labels += [label] * len(files)
    return paths, np.array(labels, np.int32)


def _pictures(directory: Path) -> Iterator[Path]:
    for folder, _, files in sorted(os.walk(directory, followlinks=True)):
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES):
                yield Path(folder, name)


def read_picture(path: Path, *, size: int, crop_pct: float) -> np.ndarray:
    """One picture as [size, size, 3] uint8, see load; a huge one raises."""
    from PIL import Image, ImageOps

    with Image.open(path) as file:
        # Pillow only warns of these, and warnings are of all threads alike.
        if file.width * file.height > (Image.MAX_IMAGE_PIXELS or sys.maxsize):
            raise ValueError(f"{file.width}x{file.height}: a decompression bomb?")
        picture = ImageOps.exif_transpose(file).convert("RGB")
    side = round(size / crop_pct)
    width, height = picture.size
    # torchvision's Resize(int): the longer side is cut to an integer.
    if width <= height:
        shape = (side, int(side * height / width))
    else:
        shape = (int(side * width / height), side)
    # A strip of one pixel's width is small until its width is a picture's.
    if shape[0] * shape[1] > _MAX_PIXELS:
        raise ValueError(f"{width}x{height} would become {shape[0]}x{shape[1]} pixels")
    picture = picture.resize(shape, Image.Resampling.BILINEAR)
    left, top = (round((length - size) / 2) for length in shape)
    return np.asarray(picture.crop((left, top, left + size, top + size)))
