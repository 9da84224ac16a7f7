"""Surveys the files of a split: image sizes, formats, and unreadable files."""

from collections import Counter
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resnet_jax import limits, waiting
from resnet_jax.data import pillow
from resnet_jax.data.folder import Split
from resnet_jax.errors import first_line


class Survey(NamedTuple):
    """The result of reading every file of a split once."""

    split: Split
    good: np.ndarray  # [N] bool: whether each file can be read
    shapes: np.ndarray  # [good.sum(), 2] int: width and height after EXIF rotation
    kinds: Counter[str]  # formats of the readable files, such as "JPEG RGB"
    bad: list[tuple[Path, str]]  # unreadable files and the reasons

    @property
    def counts(self) -> np.ndarray:
        """Returns the number [C] of readable images in each class."""
        labels = self.split.labels[self.good]
        return np.bincount(labels, minlength=len(self.split.folders))


def look(split: Split, side: int) -> Survey:
    """Reads every file of `split`, with a progress bar on a terminal.

    Args:
      side: the length to which the shorter side is resized for training. A file whose
        image is too narrow to be resized to this length counts as unreadable.
    """

    def read(path: Path) -> tuple[tuple[int, int], str] | str:
        try:
            with pillow.opened(path) as file:
                kind = f"{file.format} {file.mode}"
                shape = pillow.decode(file).size
            pillow.resized(shape, side)
            return shape, kind
        except Exception as error:  # Pillow raises many exception types
            # Messages from Pillow and the OS repeat the path, which is already shown.
            return first_line(error).replace(f" {str(path)!r}", "").rstrip(":")

    paths = split.paths
    found: list[tuple[tuple[int, int], str] | str] = []
    with ThreadPool(limits.cpus()) as pool:
        each = pool.imap(read, paths, chunksize=16)
        found += waiting.over(each, len(paths), f"reading {split.root.name}")
    sound = [one for one in found if not isinstance(one, str)]
    return Survey(
        split,
        np.array([not isinstance(one, str) for one in found], bool),
        np.array([shape for shape, _ in sound], np.int64).reshape(-1, 2),
        Counter(kind for _, kind in sound),
        [(p, why) for p, why in zip(paths, found, strict=True) if isinstance(why, str)],
    )


def imbalance(counts: np.ndarray) -> float:
    """Returns the ratio of the largest to the smallest count, or inf if any is 0."""
    return float(counts.max() / counts.min()) if counts.min() else float("inf")
