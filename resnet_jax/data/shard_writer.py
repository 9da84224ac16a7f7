"""Writes a folder of images to a few large files, which are faster to read."""

import contextlib
import logging
from dataclasses import dataclass
from io import BytesIO
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, Literal

import numpy as np

from resnet_jax import files, limits, waiting
from resnet_jax.data import folder, pillow
from resnet_jax.data.shards import INFO, SIZE, SPLITS
from resnet_jax.errors import ConfigError, DataError, first_line
from resnet_jax.fields import Group, ranged

log = logging.getLogger(__name__)

_PER_FILE = 2**13  # maximum number of images per file


@dataclass(frozen=True)
class ShardsConfig(Group):
    """Options for storing images."""

    short_side: int = ranged(256, at_least=1, at_most=8192)
    """Length in pixels to which the shorter side of larger images is reduced."""
    encoding: Literal["jpeg", "pixels"] = "jpeg"
    """Encoding of the images: jpeg, or pixels, which is uncompressed and takes six
    times as much space."""
    quality: int = ranged(90, at_least=1, at_most=100)
    """Quality of the JPEG encoding, from 1 to 100."""
    skip_bad_images: bool = False
    """Skip images that cannot be read, and report how many there are."""


def write(source: Path, target: Path, how: ShardsConfig) -> dict[str, int]:
    """Writes the images of the folder `source` to array_record files in `target`.

    The images are rotated according to their EXIF orientation, converted to RGB, and
    written in the same order as in the folder. `target` appears only when all files are
    complete.

    Returns:
      The number of images in each split.

    Raises:
      ConfigError: if `target` already exists.
      DataError: if `source` does not contain class folders, or if an image cannot be
        read.
    """
    if target.exists():
        raise ConfigError(
            f"{target} already exists: remove it, or choose another folder"
        )
    listing = folder.scan(source)
    files.check_writable(target.parent, "folder", "OUT")
    info: dict[str, Any] = {
        "format": 1,
        "classes": list(listing.class_names),
        "short_side": how.short_side,
        "encoding": how.encoding,
        "quality": how.quality if how.encoding == "jpeg" else None,
        "splits": {},
    }
    with files.scratch(target.parent) as scratch:
        whole = Path(scratch, "whole")
        whole.mkdir()
        for name, split in zip(SPLITS, listing.splits, strict=True):
            counts, labels = _write_split(whole, name, split, how)
            np.save(whole / f"{name}.labels.npy", labels)
            info["splits"][name] = counts
        files.write_json(whole / INFO, info)
        whole.rename(target)
    return {name: sum(counts.values()) for name, counts in info["splits"].items()}


def _write_split(
    target: Path, name: str, split: folder.Split, how: ShardsConfig
) -> tuple[dict[str, int], np.ndarray]:
    """Writes a split, and returns each file's image count along with the labels."""
    from array_record.python.array_record_module import ArrayRecordWriter

    counts: dict[str, int] = {}
    labels, bad, file = [], [], ""

    def encode(path: Path) -> bytes | str:
        try:
            return encoded(path, how)
        except Exception as error:  # Pillow raises many exception types
            return first_line(error)

    # Pillow releases the GIL.
    with ThreadPool(limits.cpus()) as pool, contextlib.ExitStack() as stack:
        each = pool.imap(encode, split.paths, chunksize=16)
        found = waiting.over(each, len(split.paths), f"writing {name}")
        writer: Any = None
        for path, label, record in zip(split.paths, split.labels, found, strict=True):
            if isinstance(record, str):
                if not how.skip_bad_images:
                    raise DataError(
                        f"{path} cannot be read ({record}): remove it, or skip such "
                        "images with --skip-bad-images"
                    )
                bad.append(path)
                continue
            if writer is None or counts[file] == _PER_FILE:
                stack.close()
                file = f"{name}-{len(counts):05}.array_record"
                writer = ArrayRecordWriter(str(target / file), "group_size:1")
                stack.callback(writer.close)
                counts[file] = 0
            writer.write(record)
            counts[file] += 1
            labels.append(label)
    if bad:
        log.warning("unreadable images skipped: %d (the first is %s)", len(bad), bad[0])
    kept = np.array(labels, np.int32)
    for label, folder_name in enumerate(split.folders):
        if label not in kept:
            raise DataError(f"{split.root / folder_name} has no readable images")
    return counts, kept


def encoded(path: Path, how: ShardsConfig) -> bytes:
    """Returns the image at `path`, encoded for storage."""
    from PIL import Image

    with pillow.opened(path) as file:
        image = pillow.decode(file)
    shorter = min(image.size)
    if shorter > how.short_side:
        width, height = (int(how.short_side * side / shorter) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    if how.encoding == "pixels":
        return SIZE.pack(*image.size) + image.tobytes()
    content = BytesIO()
    image.save(content, "JPEG", quality=how.quality)
    return content.getvalue()
