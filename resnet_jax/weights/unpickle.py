"""Reads a pickle from torch.save without running any code that it names."""

import io
import mmap
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

DTYPES: dict[str, Any] = {
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
MAX_PICKLE = 2**26  # bytes; the names and shapes of a large network need 0.1 % of this
_MAX_OPCODES = 2**20  # a network with a thousand tensors needs 50,000
_MAX_SIZE = 2**24  # number of objects, each counted once per reference
_MAX_DEPTH = 200  # nesting depth of objects

LoadStorage = Callable[[str, Any, int], np.ndarray]  # takes a key, a dtype and a count


class RefusedError(pickle.UnpicklingError):
    """Raised for a pickle with opcodes that no weights file needs."""


class UnreadableError(ValueError):
    """Raised for a valid file that cannot be read. Callers prepend the file's name."""


class StandIn:
    """A placeholder for an object of a class named in a pickle.

    The class is neither imported nor called. The object's content is discarded, but
    `is_module` records whether the object is a torch.nn.Module.
    """

    origin = ""  # "module.name" of the class
    is_module = False

    def __new__(cls, *args: Any, **kwargs: Any) -> "StandIn":
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any = None) -> None:
        if isinstance(self, StandIn) and isinstance(state, dict):
            self.is_module = "_modules" in state

    def _ignore(self, *args: Any, **kwargs: Any) -> "StandIn":
        return self

    __call__ = append = extend = add = update = __setitem__ = _ignore


def load(file: io.BytesIO | mmap.mmap, load_storage: LoadStorage) -> Any:
    """Returns the object in the pickle that starts at the file's current position.

    The pickle's opcodes are checked first. Tensors become NumPy arrays; numbers,
    strings and containers stay unchanged; and everything else becomes a StandIn.

    Raises:
      RefusedError: if the pickle has an opcode that torch.save does not write.
      ValueError, pickle.UnpicklingError, EOFError, ...: if the pickle is damaged.
    """
    start = file.tell()
    _check_opcodes(file)
    file.seek(start)
    return _Unpickler(file, load_storage).load()  # type: ignore[arg-type]


# Opcodes that add their operands to the object below the operands on the stack.
_FILLING = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}
# Opcodes that hash every second operand (the keys), and opcodes that hash all operands.
_KEYED = {"SETITEM", "SETITEMS", "DICT"}
_SETS = {"ADDITEMS", "FROZENSET"}
# Opcodes that make hashable containers, and opcodes that make integers.
_HASHABLE = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"}
_INTEGERS = {"INT", "LONG", "LONG1", "LONG4"}

# The opcodes that pickle writes in any protocol, except PERSID and the opcodes for the
# extension registry and out-of-band buffers. find_class decides what GLOBAL and INST
# may refer to.
# BYTEARRAY8 allocates memory before reading its data, but _check_opcodes runs first and
# rejects a pickle whose data is longer than the file.
_OPCODES = frozenset(
    {
        *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "NONE"),
        *("NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2"),
        *("LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE"),
        *("SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES"),
        *("BINBYTES8", "BYTEARRAY8"),
        *("EMPTY_LIST", "APPEND", "APPENDS", "LIST", "EMPTY_DICT", "DICT"),
        *("SETITEM", "SETITEMS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
        *("EMPTY_SET", "ADDITEMS", "FROZENSET"),
        *("GET", "BINGET", "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"),
        *("GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "REDUCE", "BUILD"),
        *("NEWOBJ", "NEWOBJ_EX", "BINPERSID"),
    }
)


class _Item(NamedTuple):
    """What is known about an object on the stack."""

    size: int = 1  # number of objects in it, including itself
    depth: int = 0  # number of nesting levels in it
    is_wide: bool = False  # whether it contains an integer of more than 63 bits


_MARK = _Item(0)


def _check_opcodes(file: io.BytesIO | mmap.mmap) -> None:
    """Raises an error if a pickle needs more resources than a network's weights do.

    Python's unpickler allocates a table as long as the largest index in a PUT opcode. A
    hundred-byte pickle can describe a tuple with two references to a second tuple,
    which has two references to a third, and so on. Hashing the outermost tuple as a key
    would take forever, as would inserting many keys with equal hashes, such as certain
    large integers. Hashing a deeply nested tuple would crash the process. To detect
    such pickles, this function simulates the stack.
    """
    stack: list[_Item] = []
    memo: dict[int, _Item] = {}
    num_opcodes = work = 0

    for opcode, argument, _ in pickletools.genops(file):  # type: ignore[arg-type]
        num_opcodes += 1
        name = opcode.name
        if name not in _OPCODES:
            raise RefusedError(
                f"it has the opcode {name}, which torch.save does not write"
            )
        if num_opcodes > _MAX_OPCODES:
            raise UnreadableError("contains a pickle too long for a network's weights")
        if name == "MARK":
            stack.append(_MARK)
        elif name.endswith("PUT") or name == "MEMOIZE":
            number = len(memo) if argument is None else int(str(argument))
            if number > num_opcodes:
                raise ValueError(
                    f"it gives an object the number {number}, which is too large"
                )
            memo[number] = stack[-1]
        elif name.endswith("GET"):
            stack.append(memo[int(str(argument))])
        else:
            before = [kind.name for kind in opcode.stack_before]
            parts: list[_Item] = []
            if "mark" in before:
                while (top := stack.pop()) is not _MARK:
                    parts.append(top)
                before = before[: before.index("mark")]
            parts += [stack.pop() for _ in before]  # the lowest operand is last
            filled = [parts.pop()] if name in _FILLING and parts else []
            whole = _combine(name, argument, parts, filled)
            work += sum(one.size for one in parts)
            if max(whole.size, work) > _MAX_SIZE:
                raise ValueError(
                    "its objects contain too many references to one another"
                )
            if whole.depth > _MAX_DEPTH:
                raise ValueError("its objects are nested too deeply")
            if opcode.stack_after:
                stack.append(whole)


def _combine(
    name: str, argument: object, parts: list[_Item], filled: list[_Item]
) -> _Item:
    """Returns the object that an opcode makes of its operands; rejects wide keys."""
    hashed = parts[1::2] if name in _KEYED else parts if name in _SETS else []
    if any(one.is_wide for one in hashed):
        raise ValueError("it has integers with many digits as keys")
    depths = [1 + one.depth for one in parts] + [one.depth for one in filled]
    is_wide = any(one.is_wide for one in parts) and name in _HASHABLE
    if name in _INTEGERS:
        is_wide = isinstance(argument, int) and argument.bit_length() > 63
    size = 1 + sum(one.size for one in parts + filled)
    return _Item(size, max(depths, default=0), is_wide)


class _Unpickler(pickle.Unpickler):
    """Unpickles tensors, numbers, strings and containers, and replaces the rest."""

    def __init__(self, file: io.BytesIO, load_storage: LoadStorage) -> None:
        super().__init__(file, encoding="utf-8")
        self._load = load_storage
        self._stand_ins: dict[str, type[StandIn]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return _Ordered
        if (module, name) == ("torch", "Size"):
            return tuple
        if module == "torch._utils" and name in _REBUILD:
            return _REBUILD[name]
        if module in ("torch", "torch.cuda") and name in DTYPES:
            return name  # only the name, because a pickle could call a type
        origin = f"{module}.{name}"
        if origin not in self._stand_ins:
            made = type("StandIn", (StandIn,), {"origin": origin})
            self._stand_ins[origin] = made
        return self._stand_ins[origin]

    def persistent_load(self, saved_id: Any) -> Any:
        if len(saved_id) == 4 and saved_id[0] == "module":  # a class in a legacy file
            return saved_id[1]
        kind, dtype, key, _, count, *view = saved_id
        known = kind == "storage" and type(key) is str and type(count) is int
        if not known or any(view):
            raise ValueError("it refers to something that is not a storage")
        if isinstance(dtype, type) and issubclass(dtype, StandIn):
            return dtype()  # a dtype that no supported network uses
        if type(dtype) is not str or dtype not in DTYPES:
            raise ValueError("it refers to something that is not a storage")
        return self._load(key, DTYPES[dtype], count)


class _Ordered(OrderedDict[Any, Any]):
    """An OrderedDict that also accepts items on creation, for pickles from Python 2."""

    def __init__(self, items: Any = ()) -> None:
        if any(type(key) is not str for key, _ in items):
            raise ValueError("an OrderedDict has keys that are not strings")
        super().__init__(items)


class _Rebuild:
    """A function that a pickle may call but cannot modify."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("it sets the state of a function")


def _rebuild_tensor(
    storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Any:
    """Returns a view, with the given size and stride, of a one-dimensional storage."""
    if isinstance(storage, StandIn):
        return storage
    numbers = (offset, *size, *stride)
    if type(storage) is not np.ndarray or {type(n) for n in numbers} != {int}:
        raise ValueError("a tensor lacks a storage, an offset, sizes or strides")
    if len(size) != len(stride) or min(numbers) < 0:
        raise ValueError(
            f"a tensor has an invalid size {size}, stride {stride} or offset {offset}"
        )
    empty = 0 in size
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    count = int(np.prod(size, dtype=object))
    if not empty and last >= len(storage):
        raise ValueError(f"a tensor of size {tuple(size)} is larger than its storage")
    if not empty and count > len(storage):
        return StandIn()  # an expanded tensor, which no network has as a weight
    if empty:
        return np.zeros(size, storage.dtype)
    return np.lib.stride_tricks.as_strided(
        storage[offset:],
        size,
        [step * storage.itemsize for step in stride],
        writeable=False,
    )


def _rebuild_subclass(function: Any, kind: Any, args: tuple[Any, ...], _: Any) -> Any:
    """Returns the plain tensor for a tensor subclass or a tensor with attributes."""
    return function(*args) if isinstance(function, _Rebuild) else StandIn()


_REBUILD = {
    "_rebuild_tensor": _Rebuild(_rebuild_tensor),
    # (..., requires_grad, backward_hooks, metadata)
    "_rebuild_tensor_v2": _Rebuild(_rebuild_tensor),
    # (data, requires_grad, hooks, state)
    "_rebuild_parameter": _Rebuild(lambda data, *_: data),
    "_rebuild_parameter_with_state": _Rebuild(lambda data, *_: data),
    "_rebuild_from_type_v2": _Rebuild(_rebuild_subclass),
}
