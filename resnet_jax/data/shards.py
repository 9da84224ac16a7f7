"""Reads shards, the few large files that shard_writer creates from a folder."""

import contextlib
import logging
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resnet_jax import files, limits, waiting
from resnet_jax.data import pillow
from resnet_jax.errors import DataError, first_line

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

INFO = "shards.json"
SPLITS = ("train", "test")
_AT_A_TIME = 64  # number of images to load at a time
SIZE = struct.Struct("<II")  # width and height, which precede raw pixels


def is_shards(directory: Path) -> bool:
    """Returns whether `directory` contains shards."""
    return (directory / INFO).is_file()


@dataclass(frozen=True)
class Listing:
    """The description of a directory of shards."""

    directory: Path
    class_names: tuple[str, ...]
    encoding: str
    counts: dict[str, dict[str, int]]  # number of images in each file of each split
    kind: str  # how the images are stored

    def __len__(self) -> int:
        return sum(sum(split.values()) for split in self.counts.values())

    def labels(self, split: str) -> np.ndarray:
        """Returns the labels of a split as an int32 array [N].

        Raises:
          DataError: if the labels are damaged.
        """
        path = self.directory / f"{split}.labels.npy"
        try:
            labels: np.ndarray = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise _damaged(path, first_line(error)) from None
        num = sum(self.counts[split].values())
        is_sound = labels.shape == (num,) and labels.dtype == np.int32
        if not is_sound or not np.isin(labels, range(len(self.class_names))).all():
            raise _damaged(path, f"it does not contain valid labels for {num} images")
        return labels


def read(directory: Path) -> Listing:
    """Reads the description of `directory`, but no images.

    Raises:
      DataError: if the description is damaged, or if a file is missing.
    """
    path = directory / INFO
    try:
        info = files.read_json(path)
        counts = {name: dict(info["splits"][name]) for name in SPLITS}
        names, encoding = tuple(info["classes"]), info["encoding"]
        if info["format"] != 1 or encoding not in ("jpeg", "pixels"):
            raise ValueError("unsupported version")
        flat = [count for split in counts.values() for count in split.values()]
        is_sound = all(type(count) is int and count > 0 for count in flat)
        if not (is_sound and all(counts.values())):
            raise ValueError("invalid counts")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, repr(error)) from None
    for split in counts.values():
        for name in split:
            if not (directory / name).is_file():
                raise _damaged(directory / name, "the file is missing")
    kind = " ".join(map(str, (encoding, info["short_side"], info["quality"])))
    return Listing(directory, names, encoding, counts, kind)


def _damaged(path: Path, what: str) -> DataError:
    return DataError(
        f"{path} is damaged ({what}): write it again with `resnet-jax prepare folder`"
    )


class Reader:
    """Reads the images of one split; see stream.Reader."""

    def __init__(self, listing: Listing, split: str, **how: Any) -> None:
        """Initializes the reader; `how` is passed to pillow.fit during evaluation."""
        self._listing, self._split, self._how = listing, split, how
        self._source: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_source": None}  # each process opens the files itself

    def _records(self, indices: list[int]) -> list[bytes]:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        home, counts = self._listing.directory, self._listing.counts[self._split]
        paths = [str(home / name) for name in counts]
        try:
            if self._source is None:
                for path, count in zip(paths, counts.values(), strict=True):
                    with _naming(Path(path)):
                        if len(ArrayRecordDataSource([path])) != count:
                            raise ValueError(f"it does not have {count} images")
                self._source = ArrayRecordDataSource(paths)
            found: list[bytes] = self._source.__getitems__(indices)
        except DataError:
            raise
        except Exception as error:  # array_record raises many exception types
            raise _damaged(home, first_line(error)) from None
        return found

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        size = self._how["size"]
        images = np.empty((len(indices), size, size, 3), np.uint8)
        for place, (index, opened) in enumerate(
            zip(indices, self.open(indices), strict=True)
        ):
            try:
                with opened as file:
                    images[place] = pillow.fit(file, **self._how)
            except Exception as error:  # Pillow raises many exception types
                raise self.fault(index, first_line(error)) from None
        return images

    def load(self) -> np.ndarray:
        """Returns all images as a uint8 array [N, H, W, C], for evaluation.

        Raises:
          DataError: if an image cannot be read.
        """
        num = sum(self._listing.counts[self._split].values())
        size = self._how["size"]
        images = np.empty((num, size, size, 3), np.uint8)
        starts = range(0, num, _AT_A_TIME)
        with contextlib.ExitStack() as stack:
            # Pillow releases the GIL.
            pool = stack.enter_context(ThreadPool(limits.cpus()))
            rows = (np.arange(s, min(s + _AT_A_TIME, num)) for s in starts)
            bar = stack.enter_context(waiting.bar(num, f"decoding {self._split}"))
            for start, part in zip(starts, pool.imap(self, rows), strict=True):
                images[start : start + len(part)] = part
                bar.update(len(part))
        return images

    def open(
        self, indices: np.ndarray
    ) -> Iterator[contextlib.AbstractContextManager["Image.Image"]]:
        for record in self._records(indices.tolist()):
            yield _opened(record, self._listing.encoding)

    def fault(self, index: int, reason: str) -> DataError:
        """Returns the error for an image that cannot be read."""
        what = f"{self._split} image {index}: {reason}"
        return _damaged(self._listing.directory, what)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Converts any exception into a DataError saying that `path` is damaged."""
    try:
        yield
    except Exception as error:  # array_record raises many exception types
        raise _damaged(path, first_line(error)) from None


@contextlib.contextmanager
def _opened(record: bytes, encoding: str) -> Iterator["Image.Image"]:
    if encoding == "pixels":
        from PIL import Image

        size = SIZE.unpack_from(record)
        yield Image.frombuffer("RGB", size, record[SIZE.size :], "raw", "RGB", 0, 1)
        return
    with pillow.opened(BytesIO(record)) as file:
        yield file
