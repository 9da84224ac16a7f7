"""What the files of a folder's split are: sizes, formats, and what cannot be read."""

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
    """A split, each of whose files was read once."""

    split: Split
    good: np.ndarray  # [N] bool, of all its files those that can be read
    shapes: np.ndarray  # [good.sum(), 2] int, width and height, upright
    kinds: Counter[str]  # "JPEG RGB" and the like, of those that can be read
    bad: list[tuple[Path, str]]  # the others, and why

    @property
    def counts(self) -> np.ndarray:
        """Images [C] of each class that can be read."""
        labels = self.split.labels[self.good]
        return np.bincount(labels, minlength=len(self.split.folders))


def look(split: Split, side: int) -> Survey:
    """Reads every file of `split`; a progress bar shows where stderr is a terminal.

    Args:
      side: what the shorter side becomes in training, which some cannot.
    """

    def read(path: Path) -> tuple[tuple[int, int], str] | str:
        try:
            with pillow.opened(path) as file:
                kind = f"{file.format} {file.mode}"
                shape = pillow.decode(file).size
            pillow.resized(shape, side)
            return shape, kind
        except Exception as error:  # Pillow's readers raise of every kind
            # Pillow and the system repeat the path, which is told beside it.
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
    """The largest class over the smallest; infinite where one has nothing."""
    return float(counts.max() / counts.min()) if counts.min() else float("inf")
