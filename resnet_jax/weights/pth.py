"""What torch.save wrote, zip or legacy, read without torch and without running code."""

import io
import mmap
import pickle
import pickletools
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

ZIP_MAGIC = b"PK\x03\x04"
# torch.serialization's magic number, as pickle protocol 2 writes it.
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

_DTYPES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_MAX_PICKLE = 2**26  # bytes; names and shapes of a large network take a thousandth
_MAX_OPCODES = 2**20  # a network of a thousand tensors has 50,000
_MAX_SIZE = 2**24  # objects, those counted again that stand in several places


class RefusedError(pickle.UnpicklingError):
    """A pickle that names something besides tensors and the containers of them."""


def read_zip(path: Path) -> Any:
    """The object in a file of torch.save's zip format, tensors as NumPy arrays.

    Raises:
      RefusedError, pickle.UnpicklingError, zipfile.BadZipFile, ValueError, KeyError,
      EOFError: it is not such a file, damaged, or names something else; the zip's
      checksums find a flipped bit.
    """
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        # torch.save compresses nothing, so what unpacks to more is a bomb.
        if sum(info.file_size for info in entries.values()) > path.stat().st_size:
            raise ValueError("it unpacks to more than its own size: a zip bomb?")
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
                    raise ValueError(f"storage {key} has {len(content)} bytes")
                storages[key] = np.frombuffer(content, dtype)
            return storages[key]

        if entries[pickles[0]].file_size > _MAX_PICKLE:
            raise ValueError("its pickle is too large for a network's weights")
        return _load(io.BytesIO(archive.read(pickles[0])), load)


def read_legacy(path: Path) -> Any:
    """The object in a file of torch.save's format before PyTorch 1.6, as read_zip."""
    size = path.stat().st_size
    storages: dict[str, np.ndarray] = {}

    def allocate(key: str, dtype: Any, count: int) -> np.ndarray:
        if key not in storages:
            if not 0 <= count * np.dtype(dtype).itemsize <= size:
                raise ValueError(f"storage {key} of {count} elements is not in it")
            storages[key] = np.zeros(count, dtype)
        return storages[key]

    def plain(file: mmap.mmap) -> Any:
        return _load(file, allocate)

    # Mapped, for a length in a damaged file would have read() ask for as much memory.
    with (
        path.open("rb") as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as file,
    ):
        plain(file)  # the magic number
        if plain(file) != 1001:
            raise ValueError("its protocol is none that is known")
        system = plain(file)
        _check_order(bool(system["little_endian"]))
        content = plain(file)
        for key in plain(file):  # the storages' bytes follow, each after its length
            storage = storages[key]
            count = int.from_bytes(file.read(8), "little")
            if count != len(storage):
                raise ValueError(f"storage {key} has {count} elements")
            content_bytes = file.read(storage.nbytes)
            if len(content_bytes) != storage.nbytes:
                raise EOFError("it ends in the middle of a storage")
            storage.view(np.uint8)[:] = np.frombuffer(content_bytes, np.uint8)
        return content


# What torch.save writes, by any protocol of pickle; what GLOBAL may name, find_class
# says. Not among them: EXT's registry, and BYTEARRAY8, which takes its memory first.
_OPCODES = frozenset(
    {
        *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "NONE"),
        *("NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2"),
        *("LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE"),
        *("SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES"),
        *("EMPTY_LIST", "APPEND", "APPENDS", "LIST", "EMPTY_DICT", "DICT"),
        *("SETITEM", "SETITEMS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
        *("GET", "BINGET", "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"),
        *("GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID"),
    }
)


def _load(file: io.BytesIO | mmap.mmap, load: Callable[[str, Any, int], Any]) -> Any:
    """The object of the pickle that begins here; its opcodes are looked at first."""
    start = file.tell()
    _check_opcodes(file)
    file.seek(start)
    return _Unpickler(file, load).load()  # type: ignore[arg-type]


def _check_opcodes(file: io.BytesIO | mmap.mmap) -> None:
    """Raises where a pickle asks for more than a network's weights do.

    Python's own reader makes a table as long as the largest number that a PUT has; and
    a hundred bytes are enough for a tuple of two that are one tuple of two, and so on:
    to hash it, as the key of a dictionary, would take for ever. So the stack is
    followed here with each object's size alone.
    """
    stack: list[int | None] = []  # None is a mark
    memo: dict[int, int] = {}
    num_opcodes = 0

    def pop_to_mark() -> int:
        size = 0
        while (top := stack.pop()) is not None:
            size += top
        return size

    for opcode, argument, _ in pickletools.genops(file):  # type: ignore[arg-type]
        num_opcodes += 1
        if opcode.name not in _OPCODES:
            raise RefusedError(f"it has the opcode {opcode.name}")
        if num_opcodes > _MAX_OPCODES:
            raise ValueError("its pickle is too long for a network's weights")
        before = [kind.name for kind in opcode.stack_before]
        if opcode.name == "MARK":
            stack.append(None)
        elif opcode.name.endswith("PUT") or opcode.name == "MEMOIZE":
            number = len(memo) if argument is None else int(str(argument))
            if number > num_opcodes:
                raise ValueError(f"it numbers an object {number}")
            memo[number] = stack[-1] or 0
        elif opcode.name.endswith("GET"):
            stack.append(memo[int(str(argument))])
        else:
            size = 1
            if "mark" in before:
                size += pop_to_mark()
                before = before[: before.index("mark")]
            for _ in before:
                size += stack.pop() or 0
            if size > _MAX_SIZE:
                raise ValueError("its objects hold one another too often")
            if opcode.stack_after:
                stack.append(size)


def _check_order(little: bool) -> None:
    if not little or sys.byteorder != "little":
        raise ValueError("it was written, or is read, on a big-endian machine")


class _Unpickler(pickle.Unpickler):
    """Admits tensors of storages, numbers, strings and containers; nothing else."""

    def __init__(
        self, file: io.BytesIO, load: Callable[[str, Any, int], np.ndarray]
    ) -> None:
        super().__init__(file, encoding="utf-8")
        self._load = load

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch", "Size"):
            return tuple
        if module == "torch._utils" and name in _REBUILD:
            return _REBUILD[name]
        if module in ("torch", "torch.cuda") and name in _DTYPES:
            return name  # of a type, which could be called, the name alone
        raise RefusedError(f"it names {module}.{name}")

    def persistent_load(self, saved_id: Any) -> np.ndarray:
        kind, dtype, key, _, count, *view = saved_id
        known = kind == "storage" and type(dtype) is str and dtype in _DTYPES
        if not known or type(key) is not str or type(count) is not int or any(view):
            raise ValueError("it refers to something that is no storage")
        return self._load(key, _DTYPES[dtype], count)


def _rebuild_tensor(
    storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> np.ndarray:
    """A view [size] of the one-dimensional storage; no element lies outside of it."""
    numbers = (offset, *size, *stride)
    if type(storage) is not np.ndarray or {type(n) for n in numbers} != {int}:
        raise ValueError("a tensor is none of a storage, an offset, sizes and strides")
    if len(size) != len(stride) or min(numbers) < 0:
        raise ValueError(f"a tensor has size {size}, stride {stride}")
    empty = 0 in size
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    count = int(np.prod(size, dtype=object))
    if not empty and (last >= len(storage) or count > len(storage)):
        raise ValueError(f"a tensor of size {tuple(size)} is larger than its storage")
    if empty:
        return np.zeros(size, storage.dtype)
    return np.lib.stride_tricks.as_strided(
        storage[offset:],
        size,
        [step * storage.itemsize for step in stride],
        writeable=False,
    )


_REBUILD: dict[str, Callable[..., np.ndarray]] = {
    "_rebuild_tensor": _rebuild_tensor,
    # (..., requires_grad, backward_hooks, metadata); (data, requires_grad, hooks)
    "_rebuild_tensor_v2": lambda *args: _rebuild_tensor(*args[:4]),
    "_rebuild_parameter": lambda data, *_: data,
}
