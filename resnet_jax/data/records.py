"""Reads records from tensorflow-datasets files by position, without TensorFlow."""

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_MAX_RECORD = 2**30  # in bytes; a larger length means that the TFRECORD file is damaged


class TFRecords(Sequence[bytes]):
    """A sequence of records in TFRECORD files that behaves like ArrayRecordDataSource.

    Each record has the layout <u64 length><u32 crc><bytes><u32 crc>. Initially, only
    the lengths are read. Threads and processes may share the sequence, because no file
    stays open. Checksums are not verified.

    Raises:
      ValueError: if a file ends in the middle of a record, or if a record has an
        impossible length.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        where = [np.array(list(_places(path)), np.int64) for path in paths]
        self._places = np.concatenate([one.reshape(-1, 2) for one in where])
        self._ends = np.cumsum([len(one) for one in where])

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, position: Any) -> Any:
        # Indexing a range handles negative positions and raises IndexError for invalid
        # ones.
        index = range(len(self))[position]
        path = self._paths[int(np.searchsorted(self._ends, index, side="right"))]
        start, length = map(int, self._places[index])
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            record = file.read(length)
        if len(record) < length:
            raise ValueError(f"{path.name} has become shorter")
        return record


def _places(path: Path) -> Iterator[tuple[int, int]]:
    """Yields (offset, length) for each record in a file."""
    size, start = path.stat().st_size, 0
    with path.open("rb") as file:
        while start < size:
            file.seek(start)
            header = file.read(12)
            if len(header) < 12:
                raise ValueError(f"{path.name} ends in the middle of a record")
            (length,) = struct.unpack("<Q", header[:8])
            if length > _MAX_RECORD:
                raise ValueError(
                    f"{path.name} has a record of {length} bytes, which is too large"
                )
            if start + length + 16 > size:
                raise ValueError(f"{path.name} ends in the middle of a record")
            yield start + 12, length
            start += length + 16


def open_split(builder: Any, directory: Path, split: str) -> Sequence[bytes]:
    """Returns the serialized examples of `split` in a prepared directory, in order.

    Args:
      builder: the result of tfds.builder_from_directory.

    Raises:
      ValueError: if the number of records does not match the metadata, or if the format
        is neither array_record nor TFRECORD.
      OSError: if a file cannot be read.
    """
    info = builder.info.splits[split]
    paths = [directory / name for name in sorted(info.filenames)]
    kind = builder.info.file_format.value
    found: Sequence[bytes]
    if kind == "tfrecord":
        found = TFRecords(paths)
    elif kind == "array_record":
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        found = ArrayRecordDataSource([str(path) for path in paths])
    else:
        raise ValueError(f"the files are {kind}, not array_record or tfrecord")
    if len(found) != info.num_examples:
        raise ValueError(f"{split} has {len(found)} records, not {info.num_examples}")
    return found
