"""A folder of images as a few large files, which are quicker to read."""

import contextlib
import logging
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tqdm import tqdm

from resnet_jax import files, limits
from resnet_jax.data import folder, pillow
from resnet_jax.errors import ConfigError, DataError, first_line
from resnet_jax.fields import Group, ranged

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

INFO = "shards.json"
SPLITS = ("train", "test")
_PER_FILE = 2**13  # images
_SIZE = struct.Struct("<II")  # width and height, before bare pixels


@dataclass(frozen=True)
class ShardsConfig(Group):
    """How images are stored."""

    short_side: int = ranged(256, at_least=1, at_most=8192)
    """Larger images are made smaller, to this shorter side."""
    encoding: Literal["jpeg", "pixels"] = "jpeg"
    """Of each image: JPEG, or its pixels as they are, six times as large."""
    quality: int = ranged(90, at_least=1, at_most=100)
    """JPEG's."""
    skip_bad_images: bool = False
    """Leave out, and count, images that cannot be read."""


def is_shards(directory: Path) -> bool:
    """Whether `directory` is what write leaves."""
    return (directory / INFO).is_file()


def write(source: Path, target: Path, how: ShardsConfig) -> dict[str, int]:
    """Writes the images of `source`, see folder.scan, to array_record files.

    They are upright, RGB, and in the order of the folder. `target` is there only when
    it is whole.

    Returns:
      The number of images of each split.

    Raises:
      ConfigError: `target` is there already.
      DataError: the folder is none, or an image cannot be read.
    """
    if target.exists():
        raise ConfigError(f"{target} is there already: name another, or remove it")
    listing = folder.scan(source)
    files.check_writable(target.parent, "folder", "OUT")
    partial = target.with_name(f"{target.name}.partial")
    partial.mkdir(exist_ok=True)
    for old in partial.iterdir():  # of an attempt that ended early
        old.unlink()
    info: dict[str, Any] = {
        "format": 1,
        "classes": list(listing.class_names),
        "short_side": how.short_side,
        "encoding": how.encoding,
        "quality": how.quality if how.encoding == "jpeg" else None,
        "splits": {},
    }
    for name, split in zip(SPLITS, listing.splits, strict=True):
        counts, labels = _write_split(partial, name, split, how)
        np.save(partial / f"{name}.labels.npy", labels)
        info["splits"][name] = counts
    files.write_json(partial / INFO, info)
    partial.rename(target)
    return {name: sum(counts.values()) for name, counts in info["splits"].items()}


def _write_split(
    target: Path, name: str, split: folder.Split, how: ShardsConfig
) -> tuple[dict[str, int], np.ndarray]:
    """The number of images by file, and their labels."""
    from array_record.python.array_record_module import ArrayRecordWriter

    counts: dict[str, int] = {}
    labels, bad, file = [], [], ""

    def encode(path: Path) -> bytes | str:
        try:
            return encoded(path, how)
        except Exception as error:  # Pillow's readers raise of every kind
            return first_line(error)

    # Pillow decodes, resizes and encodes without the GIL.
    with ThreadPool(limits.cpus()) as pool, contextlib.ExitStack() as stack:
        found = pool.imap(encode, split.paths, chunksize=16)
        writer: Any = None
        for path, label, record in zip(
            split.paths, split.labels, tqdm(found, name, len(split.paths)), strict=True
        ):
            if isinstance(record, str):
                if not how.skip_bad_images:
                    raise DataError(
                        f"{path} cannot be read ({record}): remove it, or leave out "
                        "such images with --skip-bad-images"
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
        log.warning("%d images left out, the first %s", len(bad), bad[0])
    return counts, np.array(labels, np.int32)


def encoded(path: Path, how: ShardsConfig) -> bytes:
    """The image at `path` as it is stored."""
    from PIL import Image

    with pillow.opened(path) as file:
        image = pillow.decode(file)
    shorter = min(image.size)
    if shorter > how.short_side:
        width, height = (int(how.short_side * side / shorter) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    if how.encoding == "pixels":
        return _SIZE.pack(*image.size) + image.tobytes()
    content = BytesIO()
    image.save(content, "JPEG", quality=how.quality)
    return content.getvalue()


@dataclass(frozen=True)
class Listing:
    """What a directory of shards says of itself."""

    directory: Path
    class_names: tuple[str, ...]
    encoding: str
    counts: dict[str, dict[str, int]]  # of images by file, of each split

    def labels(self, split: str) -> np.ndarray:
        """The labels [N] int32 of a split.

        Raises:
          DataError: they are damaged.
        """
        path = self.directory / f"{split}.labels.npy"
        try:
            labels: np.ndarray = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise _damaged(path, first_line(error)) from None
        num = sum(self.counts[split].values())
        is_sound = labels.shape == (num,) and labels.dtype == np.int32
        if not is_sound or not np.isin(labels, range(len(self.class_names))).all():
            raise _damaged(path, f"it has not the labels of {num} images")
        return labels


def read(directory: Path) -> Listing:
    """Looks at `directory`; no image is read.

    Raises:
      DataError: its description is damaged, or a file is missing.
    """
    path = directory / INFO
    try:
        info = files.read_json(path)
        counts = {name: dict(info["splits"][name]) for name in SPLITS}
        names, encoding = tuple(info["classes"]), info["encoding"]
        if info["format"] != 1 or encoding not in ("jpeg", "pixels"):
            raise ValueError("of another version")
        flat = [count for split in counts.values() for count in split.values()]
        if not all(type(count) is int and count > 0 for count in flat):
            raise ValueError("counts that are none")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, repr(error)) from None
    for split in counts.values():
        for name in split:
            if not (directory / name).is_file():
                raise _damaged(directory / name, "it is missing")
    return Listing(directory, names, encoding, counts)


def _damaged(path: Path, what: str) -> DataError:
    return DataError(
        f"{path} is damaged ({what}): `resnet-jax prepare folder` writes it again"
    )


class Reader:
    """Reads the images of one split; see stream.Reader."""

    def __init__(self, listing: Listing, split: str, **how: Any) -> None:
        """how: of pillow.fit, for evaluation."""
        self._listing, self._split, self._how = listing, split, how
        self._source: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_source": None}  # each process opens its own

    def _records(self, indices: list[int]) -> list[bytes]:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        home, counts = self._listing.directory, self._listing.counts[self._split]
        try:
            if self._source is None:
                source = ArrayRecordDataSource([str(home / name) for name in counts])
                if len(source) != sum(counts.values()):
                    raise ValueError("not as many images as it says")
                self._source = source
            found: list[bytes] = self._source.__getitems__(indices)
        except Exception as error:  # array_record raises of every kind
            raise _damaged(home / min(counts), first_line(error)) from None
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
            except Exception as error:  # Pillow's readers raise of every kind
                raise _damaged(Path(self.name(index)), first_line(error)) from None
        return images

    def open(
        self, indices: np.ndarray
    ) -> Iterator[contextlib.AbstractContextManager["Image.Image"]]:
        for record in self._records(indices.tolist()):
            yield _opened(record, self._listing.encoding)

    def name(self, index: int) -> str:
        return f"{self._listing.directory}: {self._split} image {index}"


@contextlib.contextmanager
def _opened(record: bytes, encoding: str) -> Iterator["Image.Image"]:
    if encoding == "pixels":
        from PIL import Image

        size = _SIZE.unpack_from(record)
        yield Image.frombuffer("RGB", size, record[_SIZE.size :], "raw", "RGB", 0, 1)
        return
    with pillow.opened(BytesIO(record)) as file:
        yield file
