"""Lists the shapes, parameters and multiply-adds of a model's layers and blocks."""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.layers.conv import Conv
from resnet_jax.layers.linear import Linear
from resnet_jax.layers.norm import BatchNorm
from resnet_jax.models.blocks import BasicBlock, Bottleneck, PreActBlock


class Layer(NamedTuple):
    """A convolutional, linear, BatchNorm or whitening layer, applied to one image."""

    name: str  # PyTorch's name
    kind: str  # Conv, Linear, BatchNorm or Whitening
    size: str  # size and stride of a convolution, such as "3x3 /2"; otherwise, ""
    output: tuple[int, ...]  # (H, W, C) or (C,)
    num_params: int
    num_macs: int  # multiply-adds, as torchvision and the papers count them


class Block(NamedTuple):
    """A residual block, applied to one image."""

    name: str
    kind: str  # BasicBlock, Bottleneck or PreActBlock
    shortcut: str  # the shortcut in effect: identity, pad, conv, conv_bn or none
    input: tuple[int, ...]  # (H, W, C)
    output: tuple[int, ...]


class Structure(NamedTuple):
    """The layers and blocks of a model, in the order of the forward pass."""

    layers: list[Layer]
    blocks: list[Block]


def structure(model: nn.Module, image_shape: tuple[int, int, int]) -> Structure:
    """Returns the layers and blocks of `model` for an image of shape (H, W, C).

    This computes only shapes and does not run the model.
    """
    found = Structure([], [])

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        y = call(*args, **kwargs)
        module = context.module
        if context.method_name != "__call__":
            return y
        name, output = ".".join(module.path), y.shape[1:]
        if isinstance(module, Conv | Linear | BatchNorm):
            found.layers.append(_layer(module, name, output))
        elif isinstance(module, BasicBlock | Bottleneck | PreActBlock):
            own = {layer.name for layer in found.layers}
            shortcut, source = module.shortcut, args[0].shape[1:]
            keeps = ("pad", "conv_bn", "conv" if module.is_preact else "")
            if shortcut in keeps and source == output:
                shortcut = "identity"
            if shortcut == "conv_bn" and f"{name}.downsample.1" not in own:
                shortcut = "conv"  # the network has no BatchNorm
            kind = type(module).__name__
            found.blocks.append(Block(name, kind, shortcut, source, output))
        return y

    with nn.intercept_methods(watch):
        jax.eval_shape(
            lambda: model.init(
                jax.random.key(0), jnp.zeros((1, *image_shape)), train=False
            )
        )
    return found


def _layer(module: nn.Module, name: str, output: tuple[int, ...]) -> Layer:
    params = module.variables.get("params", {})
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    num_macs, size = 0, ""
    if not isinstance(module, BatchNorm):
        kernel = {**params, **module.variables.get("batch_stats", {})}["kernel"]
        num_macs = math.prod(kernel.shape) * math.prod(output[:-1])
    if isinstance(module, Conv):
        side = module.kernel_size
        size = f"{side}x{side}" + (f" /{module.stride}" if module.stride > 1 else "")
    return Layer(name, type(module).__name__, size, output, num_params, num_macs)


def summarize(model: nn.Module, image_shape: tuple[int, int, int]) -> str:
    """Returns a table of the layers of `model` for an image of shape (H, W, C).

    Multiply-adds are counted for convolutions and linear layers, as in torchvision and
    the papers. This computes only shapes and does not run the model.
    """
    layers = structure(model, image_shape).layers
    header = ("layer", "type", "output", "parameters", "multiply-adds")
    body = [
        (x.name, x.kind, shape(x.output), f"{x.num_params:,}", f"{x.num_macs:,}")
        for x in layers
    ]
    num_params = sum(layer.num_params for layer in layers)
    num_macs = sum(layer.num_macs for layer in layers)
    source = f"input {shape(image_shape)}"
    total = ("total", source, "", f"{num_params:,}", f"{num_macs:,}")
    widths = [
        max(len(row[column]) for row in (header, *body, total)) for column in range(5)
    ]
    lines = [
        "  ".join(
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (header, *body, total)
    ]
    rule = "-" * len(lines[0])
    totals = (
        f"{num_params / 1e6:.3f} M parameters, {num_macs / 1e9:.3f} G multiply-adds"
    )
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], totals])


def shape(sizes: tuple[int, ...]) -> str:
    """Formats `sizes` as a string such as 32x32x3."""
    return "x".join(map(str, sizes))
