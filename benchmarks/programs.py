"""Analyzes the HLO text of a compiled program: kernels, bytes and collectives."""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

_ARRAY = re.compile(
    r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,<=]*)\](?:\{([\d,]*)([^}]*)\})?"
)
_NAME = re.compile(r"%[\w.\-]+")
_HEADER = re.compile(r"^(ENTRY )?(%[\w.\-]+) \(")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?(%[\w.\-]+) = ")
_CALLED = re.compile(r"(?:calls|to_apply|body|called_computations)=\{?(%[\w.\-]+)")
_TARGET = re.compile(r'custom_call_target="([^"]+)"')

# Operations that launch nothing themselves: they name, join or reinterpret arrays, or
# call other computations.
_FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("partition-id", "replica-id", "call", "while", "conditional", "iota"),
    *("opt-barrier", "optimization-barrier", "async-done", "async-update"),
)
_COLLECTIVES = (
    *("all-reduce", "all-gather", "all-to-all", "collective-permute"),
    "reduce-scatter",
)
_BITS = re.compile(r"\d+")


class Array(NamedTuple):
    """An array's dtype (such as "bf16"), shape, and layout (minor-to-major order)."""

    dtype: str
    shape: tuple[int, ...]
    layout: tuple[int, ...]
    is_near: bool  # whether it is in on-chip memory, such as a TPU's VMEM

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        bits = _BITS.search(self.dtype)
        return self.size * max(1, int(bits[0]) // 8) if bits else self.size


@dataclass(frozen=True)
class Instruction:
    """One operation of a program."""

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    called: tuple[str, ...]  # computations that the operation calls
    target: str  # the target of a custom call
    line: str

    @property
    def is_collective(self) -> bool:
        return self.opcode.removesuffix("-start") in _COLLECTIVES


class Program:
    """The computations of a compiled program by name, with methods to analyze them."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, list[Instruction]] = {}
        entry = current = ""
        for line in text.splitlines():
            if header := _HEADER.match(line):
                current = header[2]
                self.computations[current] = []
                entry = current if header[1] else entry
            elif found := _parse(line):
                self.computations[current].append(found)
        self.entry = entry

    def kernels(self) -> list[Instruction]:
        """Returns the operations launched on the device, counting loop bodies once."""
        return [k for k in self._started(self.entry) if k.opcode not in _FREE]

    def _started(self, computation: str) -> Iterator[Instruction]:
        for instruction in self.computations[computation]:
            yield instruction
            if instruction.opcode in ("call", "while", "conditional", "async-start"):
                for called in instruction.called:
                    yield from self._started(called)

    def inside(self, kernel: Instruction) -> list[Instruction]:
        """Returns a fusion's operations, or the kernel itself if it is not a fusion."""
        if kernel.opcode != "fusion":
            return [kernel]
        return [i for name in kernel.called for i in self.computations[name]]

    def memory_bytes(self) -> int:
        """Returns an upper bound on the bytes read from and written to main memory.

        Each operand and result counts in full, although a fusion may read only a part.
        """
        types = {i.name: i.results for c in self.computations.values() for i in c}

        def far(arrays: Iterable[Array]) -> int:
            return sum(array.num_bytes for array in arrays if not array.is_near)

        total = 0
        for kernel in self.kernels():
            if kernel.opcode.endswith("-done"):
                continue
            if kernel.opcode == "copy-start":  # results: (destination, source, ...)
                total += far(kernel.results[:2])
            elif kernel.opcode.endswith("slice-start"):  # results: (source, slice, ...)
                written = kernel.results[1]
                total += written.num_bytes + far([written])
            else:
                operands = (a for name in kernel.operands for a in types.get(name, ()))
                total += far(kernel.results) + far(operands)
        return total

    def collectives(self) -> list[tuple[str, int]]:
        """Returns (name, operand bytes per chip) for each collective.

        An asynchronous collective counts once. For a combined collective, the bytes of
        all operands are added up.
        """
        types = {i.name: i.results for c in self.computations.values() for i in c}
        found = [i for c in self.computations.values() for i in c if i.is_collective]
        return [
            (
                i.opcode.removesuffix("-start"),
                sum(a.num_bytes for name in i.operands for a in types[name]),
            )
            for i in found
        ]

    def convolutions(self) -> list[Instruction]:
        """Returns the convolutions, including those that cuDNN computes."""
        return [
            i
            for c in self.computations.values()
            for i in c
            if i.opcode == "convolution" or "conv" in i.target
        ]

    def maps(self, least: int, dtype: str | None = None) -> list[Array]:
        """Returns kernel results of rank four or more with at least `least` values."""
        return [
            array
            for kernel in self.kernels()
            for array in kernel.results
            if is_map(array, least)
            and dtype in (None, array.dtype)
            and not kernel.opcode.endswith("-done")
        ]

    def moved_maps(self, least: int) -> list[Instruction]:
        """Returns the kernels that reorder the dimensions of a feature map."""
        return [
            kernel
            for kernel in self.kernels()
            if any(is_map(array, least) for array in kernel.results)
            and any(
                i.opcode in ("transpose", "copy")
                and any(is_map(array, least) for array in i.results)
                for i in self.inside(kernel)
            )
        ]


def is_map(array: Array, least: int) -> bool:
    return len(array.shape) >= 4 and array.size >= least


def _parse(line: str) -> Instruction | None:
    start = _INSTRUCTION.match(line)
    if start is None:
        return None
    rest = line[start.end() :]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    types, rest = rest[:end], rest[end:].lstrip()
    opcode, bracket, rest = rest.partition("(")
    end = _closing("(" + rest)
    operands, attributes = rest[: end - 1], rest[end:]
    attributes = attributes.partition(", metadata=")[0]
    target = _TARGET.search(attributes)
    return Instruction(
        start[1],
        opcode,
        _arrays(types),
        tuple(_NAME.findall(operands)),
        tuple(_CALLED.findall(attributes)),
        target[1] if target else "",
        line,
    )


def _arrays(types: str) -> tuple[Array, ...]:
    def numbers(text: str | None) -> tuple[int, ...]:
        return tuple(int(n.lstrip("<=")) for n in (text or "").split(",") if n)

    return tuple(
        Array(dtype, numbers(shape), numbers(layout), "S(1)" in place)
        for dtype, shape, layout, place in _ARRAY.findall(types)
    )


def _closing(text: str) -> int:
    """Returns the index of the parenthesis that closes the one that opens `text`."""
    depth = 0
    for place, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if not depth:
            return place
    raise ValueError(f"no end of {text[:50]}")
