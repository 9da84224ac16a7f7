"""Reads a folder of images sorted into classes, in torchvision's ImageFolder layout."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnet_jax import limits, waiting
from resnet_jax.data import class_names, pillow
from resnet_jax.errors import DataError, first_line
from resnet_jax.paths import as_text

log = logging.getLogger(__name__)

# The same suffixes as in torchvision.datasets.folder.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
SCORED = ("test", "val", "valid", "validation")  # the first that exists is evaluated
_HIDDEN = (".", "__MACOSX")
_NO_IMAGES = ("Thumbs.db", "desktop.ini")  # Windows files, ignored without a warning


class Split(NamedTuple):
    """The files of one split, in ImageFolder's order."""

    root: Path
    folders: tuple[str, ...]  # one per class
    paths: list[Path]
    labels: np.ndarray  # [N] int32
    ignored: Counter[str]  # counts of non-image files by suffix


class Listing(NamedTuple):
    """The contents of a folder, found in a single walk through it."""

    class_names: tuple[str, ...]
    splits: tuple[Split, Split]  # train and test


def scan(data_dir: Path, names: Path | None = None) -> Listing:
    """Lists the files in data_dir/train/CLASS and data_dir/test/CLASS for each class.

    The classes are the sorted folders in train, and a class's index is its label. If
    there is no test folder, the test split is the first existing folder among val,
    valid and validation.

    Args:
      names: a file with class names; see class_names.find.

    Raises:
      DataError: if the folder is missing or has no classes; if a class is empty,
        missing or only in test; or if class_names.find raises DataError.
    """
    train = data_dir / "train"
    if not train.is_dir():
        raise DataError(
            f"{train} is not a folder: put images in {train}/CLASS/* and "
            f"{data_dir / 'test'}/CLASS/*, or use --data-dir to specify another "
            "folder"
        )
    found = tuple(sorted(_classes(train)))
    if not found:
        raise DataError(f"{train} has no classes: put images in {train}/CLASS/*")
    splits = _scan_split(train, found), _scan_split(_scored(data_dir), found)
    return Listing(class_names.find(data_dir, names, found), splits)


def _scored(data_dir: Path) -> Path:
    """Returns the folder of the test split."""
    first, *others = (data_dir / name for name in SCORED)
    if first.is_dir():
        return first
    for other in others:
        if other.is_dir():
            log.info("scoring %s because there is no %s", other, first)
            return other
    raise DataError(
        f"{first} is missing: create this folder and put the test images there"
    )


def _classes(root: Path) -> dict[str, Path]:
    """Returns the class folders in `root`, keyed by name.

    Hidden folders, such as .ipynb_checkpoints, are ignored.
    """
    found: dict[str, Path] = {}
    for entry in sorted(root.iterdir()):
        if entry.is_dir() and not entry.name.startswith(_HIDDEN):
            name = as_text(entry.name)
            if name in found:
                raise DataError(
                    f"{root} has two folders named {name}, which differ only in "
                    "Unicode normalization (NFC or NFD): merge them"
                )
            found[name] = entry
    return found


def _scan_split(root: Path, names: tuple[str, ...]) -> Split:
    own = _classes(root)
    strangers = sorted(own.keys() - set(names))
    if strangers:
        raise DataError(
            f"{own[strangers[0]]} is a class that {root.parent / 'train'} lacks: "
            "both splits need the same class folders"
        )
    paths: list[Path] = []
    labels: list[int] = []
    ignored: Counter[str] = Counter()
    said = f"listing {root.name}"
    for label, name in enumerate(waiting.over(names, len(names), said, "class")):
        if name not in own:
            raise DataError(f"{root / name} is missing: every class needs a folder")
        found = list(list_images(own[name], ignored))
        if not found:
            raise DataError(
                f"{own[name]} has no image files ({', '.join(SUFFIXES)}): add some, "
                "or remove the class"
            )
        paths += found
        labels += [label] * len(found)
    if ignored:
        kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(ignored.items()))
        log.warning("%s: ignored files without an image suffix: %s", root, kinds)
    return Split(root, names, paths, np.array(labels, np.int32), ignored)


def load(
    split: Split, *, size: int, skip_bad: bool = False, **how: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (images [N, size, size, 3] uint8, labels [N] int32) of a split.

    Args:
      how: crop_pct and interpolation; see pillow.fit.
      skip_bad: whether to skip files that cannot be read, logging a warning.

    Raises:
      DataError: if an image cannot be read, or if a class has no readable images.
    """
    paths = split.paths

    def read(path: Path) -> np.ndarray | str:
        try:
            return pillow.read_image(path, size=size, **how)
        except Exception as error:  # Pillow raises many exception types
            return first_line(error)

    images = np.zeros((len(paths), size, size, 3), np.uint8)
    good = np.ones(len(paths), bool)
    # Pillow releases the GIL, so threads can decode in parallel.
    with ThreadPool(limits.cpus()) as pool:
        each = pool.imap(read, paths, chunksize=16)
        found = waiting.over(each, len(paths), f"decoding {split.root.name}")
        for index, image in enumerate(found):
            if isinstance(image, str):
                if not skip_bad:
                    raise DataError(
                        f"{paths[index]} cannot be read ({image}): remove it, or "
                        "skip such images with --skip-bad-images"
                    )
                good[index] = False
            else:
                images[index] = image
    kept = split.labels
    if not good.all():
        first = paths[int(np.argmin(good))]
        num_bad = (~good).sum()
        log.warning("unreadable images skipped: %d (the first is %s)", num_bad, first)
        images, kept = images[good], kept[good]
    for label, name in enumerate(split.folders):
        if label not in kept:
            raise DataError(f"{split.root / name} has no readable images")
    return images, kept


def list_images(directory: Path, ignored: Counter[str] | None = None) -> Iterator[Path]:
    """Yields the images under `directory`, in ImageFolder's order.

    Hidden files and folders are ignored. Links are followed unless they lead to a
    folder that was already visited, such as a parent.

    Args:
      ignored: a counter to update with the suffixes of files that are not images.

    Raises:
      DataError: if a folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise DataError(
            f"{error.filename} cannot be read ({error.strerror}): remove it, or make "
            "it readable"
        ) from None

    def is_new(folder: Path) -> bool:
        place = folder.resolve()
        if place in seen:
            log.warning(
                "%s is skipped because it resolves to %s, which contains it or was "
                "already visited",
                *(folder, place),
            )
            return False
        seen.add(place)
        return True

    # Treat parents as visited: following a link to one would add other classes' images.
    seen = {directory.resolve(), *directory.resolve().parents}
    found: list[tuple[str, list[str]]] = []
    for folder, inside, names in os.walk(directory, onerror=fail, followlinks=True):
        shown = sorted(name for name in inside if not name.startswith(_HIDDEN))
        inside[:] = [name for name in shown if is_new(Path(folder, name))]
        found.append((folder, names))
    for folder, names in sorted(found):
        for name in sorted(names):
            if name.startswith(_HIDDEN) or name in _NO_IMAGES:
                continue
            if name.lower().endswith(SUFFIXES):
                yield Path(folder, name)
            elif ignored is not None:
                ignored[Path(name).suffix.lower() or "without a suffix"] += 1
