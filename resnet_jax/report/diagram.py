"""Draws a block diagram of a network from the model itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn

from resnet_jax.models import summary
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.resnet9 import ResNet9
from resnet_jax.models.summary import Block, Layer, Structure

_FILLS = {
    **{"Conv": "#CFE3F2", "Whitening": "#E9DDF2", "BatchNorm": "#FBE3C4"},
    **{"Linear": "#D5EFE6", "Pooling": "#F6D9D5", "": "#EEEEEE"},
}
_RELU = ("ReLU", "")
Row = tuple[str, list[tuple[str, str]], str | None]  # see list_rows
_SHORTCUTS = {
    "identity": "identity",
    "pad": "every 2nd pixel, channels zero-padded",
    "conv": "1x1 convolution",
    "conv_bn": "1x1 convolution, BatchNorm",
}


def draw(model: nn.Module, image_shape: tuple[int, int, int], path: Path) -> None:
    """Saves a diagram of `model` for images of shape (H, W, C) as a PNG at `path`.

    The rows show the stem, the blocks of each stage, any layers between stages, and the
    head. Each stage has a row for its first block, and another row for the
    remaining blocks if they differ from the first.
    """
    from matplotlib.figure import Figure

    pooling = {ResNet: "average", ResNet9: "max"}.get(type(model))
    rows = list_rows(summary.structure(model, image_shape), pooling)
    widest = max(len(boxes) for _, boxes, _ in rows)
    width = 3.6 + 1.25 * widest
    figure = Figure(figsize=(width, 1.3 * len(rows) + 0.1))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(-1.3 * len(rows), 0.1))
    axes.axis("off")
    for index, (title, boxes, shortcut) in enumerate(rows):
        y = -1.3 * index - 0.75
        axes.text(0.1, y, title, va="center", fontsize=9)
        if index:
            _arrow(axes, (0.6, y + 0.92), (0.6, y + 0.5))
        _draw_row(axes, y, boxes, shortcut)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def list_rows(found: Structure, pooling: str | None = None) -> list[Row]:
    """Returns a tuple (title, boxes, shortcut) for each row of the diagram.

    Each box is a tuple (text, kind). The shortcut of a row without blocks is None.

    Args:
      pooling: "average" or "max" if the head contains global pooling.
    """
    inside: dict[str, list[Layer]] = {b.name: [] for b in found.blocks}
    outside: dict[str, list[Layer]] = {"": []}  # keys: preceding block; "" for the stem
    latest = ""
    for layer in found.layers:
        owner = layer.name.split(".downsample")[0]
        owner = owner if owner in inside else owner.rpartition(".")[0]
        latest = owner if owner in inside else latest
        (inside if owner in inside else outside).setdefault(latest, []).append(layer)
    before, behind = outside.pop(""), outside.pop(latest, [])
    # Pre-activation blocks begin with (BatchNorm and) ReLU instead of ending with ReLU.
    is_preact = any(block.kind == "PreActBlock" for block in found.blocks)
    stem = _boxes(before, last=not is_preact)
    rows: list[Row] = [(_title("stem", before), stem, None)] if before else []
    stages: dict[str, list[Block]] = {}
    for block in found.blocks:
        stages.setdefault(block.name.split(".")[0], []).append(block)
    firsts = [blocks[0] for blocks in stages.values()]
    if before and firsts and firsts[0].input[:2] != before[-1].output[:2]:
        pooled = f"\nthen pooled to {summary.shape(firsts[0].input[:2])}"
        rows = [(rows[0][0] + pooled, *rows[0][1:])]
    for (stage, blocks), follows in zip(
        stages.items(), [*firsts[1:], None], strict=True
    ):
        layers = [layer for block in blocks for layer in inside[block.name]]
        kinds = {_kind(b): b for b in reversed(blocks)}
        pooled = ""
        if follows and follows.input[:2] != blocks[-1].output[:2]:
            pooled = f"\nthen pooled to {summary.shape(follows.input[:2])}"
        for number, block in enumerate(reversed(kinds.values())):
            main = [x for x in inside[block.name] if ".downsample" not in x.name]
            same = [b for b in blocks if _kind(b) == _kind(block)]
            title = f"{len(same)} x {block.kind}\n{_sizes(block)}"
            if not number:
                title = f"{_title(stage, layers)}\n{title}"
            title += pooled if number == len(kinds) - 1 else ""
            rows.append((title, _boxes(main, first=is_preact), block.shortcut))
        between = outside.get(blocks[-1].name, [])
        if between:
            names = dict.fromkeys(layer.name.split(".")[0] for layer in between)
            title = _title(" and ".join(names), between)
            rows.append((title, _boxes(between, last=True), None))
    boxes = _boxes(behind, first=is_preact, last=True)
    if pooling is not None:
        where = sum(kind != "Linear" for _, kind in boxes)  # Linear comes last
        boxes.insert(where, (f"global\n{pooling}\npooling", "Pooling"))
    rows.append((_title("head", behind), boxes, None))
    return rows


def _kind(block: Block) -> tuple[str, bool]:
    return block.shortcut, block.input == block.output


def _sizes(block: Block) -> str:
    return f"{summary.shape(block.input)} to {summary.shape(block.output)}"


def _title(name: str, layers: Sequence[Layer]) -> str:
    num_params = sum(layer.num_params for layer in layers)
    num_macs = sum(layer.num_macs for layer in layers)
    return f"{name}: {num_params:,} parameters\n{num_macs:,} multiply-adds"


def _boxes(
    layers: Sequence[Layer], *, first: bool = False, last: bool = False
) -> list[tuple[str, str]]:
    """Returns a tuple (text, kind) for each box, including the ReLU boxes.

    Args:
      first: whether to begin with a ReLU if the first layer is not a BatchNorm.
      last: whether a ReLU also follows the last layer, unless that layer is linear.
    """
    boxes = [_RELU] if first and (not layers or layers[0].kind != "BatchNorm") else []
    for index, layer in enumerate(layers):
        text = layer.name.rsplit(".", 1)[-1]
        if layer.size:
            text += f"\n{layer.size}, {layer.output[-1]}"
        elif layer.kind == "Linear":
            text += f"\n{layer.output[-1]}"
        boxes.append((text, layer.kind))
        ends = index == len(layers) - 1
        follows = None if ends else layers[index + 1].kind
        if layer.kind == "Linear":
            relu = not ends
        elif layer.kind == "Whitening":
            relu = False
        else:
            relu = follows != "BatchNorm" and (last or not ends)
        if relu:
            boxes.append(_RELU)
    return boxes


def ends_with_relu(boxes: Sequence[tuple[str, str]]) -> bool:
    """Returns whether ReLU follows the sum of a block whose main path is `boxes`."""
    return _RELU not in boxes[: 2 if boxes[0][1] == "BatchNorm" else 1]


def _draw_row(
    axes: Any, y: float, boxes: Sequence[tuple[str, str]], shortcut: str | None
) -> None:
    x, start = 3.0, 3.0
    for index, (text, kind) in enumerate(boxes):
        axes.text(
            x + 0.45,
            y,
            text,
            ha="center",
            va="center",
            fontsize=8,
            bbox={
                "boxstyle": "round",
                "facecolor": _FILLS[kind],
                "edgecolor": "#555555",
            },
        )
        if index:
            _arrow(axes, (x - 0.32, y), (x - 0.02, y))
        x += 1.15
    if shortcut is None:
        return
    _arrow(axes, (x - 0.32, y), (x - 0.02, y))
    joined = shortcut != "none"
    _arrow(axes, (start - 0.3, y), (start - 0.02, y))
    axes.text(x + 0.1, y, "+" if joined else "", ha="center", va="center", fontsize=14)
    if ends_with_relu(boxes):
        axes.text(x + 0.3, y, "ReLU", va="center", fontsize=8)
    if joined:
        top = y + 0.45
        path = [start - 0.3, start - 0.3, x + 0.1], [y, top, top]
        axes.plot(*path, color="#333333", linewidth=1)
        _arrow(axes, (x + 0.1, top), (x + 0.1, y + 0.12))
        axes.text((start + x) / 2, top, _SHORTCUTS[shortcut], fontsize=8, va="bottom")


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    arrow = {"arrowstyle": "->", "color": "#333333", "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=end, xytext=start, arrowprops=arrow)
