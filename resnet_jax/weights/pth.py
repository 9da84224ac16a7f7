"""Reads torch.save files without using torch or running any code in them."""

import io
import mmap
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.weights import unpickle

ZIP_MAGIC = b"PK\x03\x04"
# torch.serialization's magic number, as pickle protocol 2 writes it.
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def read_zip(path: Path) -> Any:
    """Reads the object in a torch.save zip file, converting tensors to NumPy arrays.

    Raises:
      RefusedError, pickle.UnpicklingError, zipfile.BadZipFile, ValueError, KeyError,
        EOFError: if the file is not a torch.save zip file, is damaged, or refers to
        objects other than tensor storages. The checksums in the zip file detect flipped
        bits.
    """
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        # torch.save does not compress files, so a file that unpacks to more than its
        # own size may be a zip bomb.
        if sum(info.file_size for info in entries.values()) > path.stat().st_size:
            raise unpickle.UnreadableError(
                "unpacks to more than its own size, unlike files from torch.save: "
                "it is a zip bomb or has been recompressed"
            )
        pickles = [name for name in entries if name.split("/", 1)[-1] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError("it is a zip archive that torch.save did not write")
        prefix = pickles[0].removesuffix("data.pkl")
        if f"{prefix}byteorder" in entries:
            _check_order(archive.read(f"{prefix}byteorder") == b"little")
        storages: dict[str, np.ndarray] = {}

        def load(key: str, dtype: Any, count: int) -> np.ndarray:
            if key not in storages:
                content = archive.read(f"{prefix}data/{key}")  # checks the CRC
                if len(content) != count * np.dtype(dtype).itemsize:
                    raise ValueError(
                        f"storage {key} has {len(content)} bytes, not the expected "
                        "number"
                    )
                storages[key] = np.frombuffer(content, dtype)
            return storages[key]

        if entries[pickles[0]].file_size > unpickle.MAX_PICKLE:
            raise unpickle.UnreadableError(
                "contains a pickle that is too large for a weights file"
            )
        return unpickle.load(io.BytesIO(archive.read(pickles[0])), load)


def read_legacy(path: Path) -> Any:
    """Reads the object in a torch.save file from before PyTorch 1.6 (see read_zip)."""
    size = path.stat().st_size
    storages: dict[str, np.ndarray] = {}

    def allocate(key: str, dtype: Any, count: int) -> np.ndarray:
        if key not in storages:
            if not 0 <= count * np.dtype(dtype).itemsize <= size:
                raise ValueError(
                    f"storage {key} with {count} elements does not fit in the file"
                )
            storages[key] = np.zeros(count, dtype)
        return storages[key]

    def plain(file: mmap.mmap) -> Any:
        return unpickle.load(file, allocate)

    # The file is memory-mapped because, with an ordinary read(), a damaged length could
    # cause a huge allocation.
    with (
        path.open("rb") as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as file,
    ):
        plain(file)  # the magic number
        if plain(file) != 1001:
            raise ValueError("its protocol is unknown")
        system = plain(file)
        _check_order(bool(system["little_endian"]))
        content = plain(file)
        for key in plain(file):  # the storages follow, each preceded by its length
            storage = storages[key]
            count = int.from_bytes(file.read(8), "little")
            if count != len(storage):
                raise ValueError(
                    f"storage {key} has {count} elements, not the expected number"
                )
            content_bytes = file.read(storage.nbytes)
            if len(content_bytes) != storage.nbytes:
                raise EOFError("it ends in the middle of a storage")
            storage.view(np.uint8)[:] = np.frombuffer(content_bytes, np.uint8)
        return content


def _check_order(little: bool) -> None:
    if not little or sys.byteorder != "little":
        raise unpickle.UnreadableError(
            "was written or is being read on a big-endian machine, which is not "
            "supported"
        )
