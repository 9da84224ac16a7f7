"""Decodes batches of image files in threads, staying one batch ahead."""

from collections.abc import Iterator, Sequence
from multiprocessing.pool import AsyncResult, ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnet_jax import limits
from resnet_jax.data import pillow
from resnet_jax.errors import reason_for


class Decoded(NamedTuple):
    """The images read from a batch of files, and the files that could not be read."""

    paths: list[Path]
    images: np.ndarray  # [len(paths), size, size, channels] uint8
    bad: list[tuple[Path, str]]  # unreadable files and the reasons


def read_batches(
    paths: Sequence[Path], batch_size: int, *, size: int, channels: int = 3, **how: Any
) -> Iterator[Decoded]:
    """Yields the images of `paths` in order, `batch_size` files at a time.

    The next batch is read while the current one is in use; only these two batches are
    in memory.

    Args:
      how: crop_pct and interpolation; see pillow.fit.
    """

    def read(path: Path) -> np.ndarray | str:
        try:
            return pillow.read_image(path, size=size, channels=channels, **how)
        except Exception as error:  # Pillow raises many exception types
            return reason_for(path, error)

    def collect(part: Sequence[Path], found: list[np.ndarray | str]) -> Decoded:
        pairs = list(zip(part, found, strict=True))
        images = [image for image in found if not isinstance(image, str)]
        none = np.zeros((0, size, size, channels), np.uint8)
        return Decoded(
            [path for path, image in pairs if not isinstance(image, str)],
            np.stack(images) if images else none,
            [(path, image) for path, image in pairs if isinstance(image, str)],
        )

    parts = [paths[i : i + batch_size] for i in range(0, len(paths), batch_size)]
    # Pillow releases the GIL while it decodes and resizes.
    with ThreadPool(max(min(limits.cpus(), len(paths)), 1)) as pool:
        ahead: AsyncResult[list[np.ndarray | str]] | None = None
        for number, part in enumerate(parts):
            current = ahead or pool.map_async(read, part, chunksize=1)
            found = current.get()
            if number + 1 < len(parts):
                ahead = pool.map_async(read, parts[number + 1], chunksize=1)
            yield collect(part, found)
