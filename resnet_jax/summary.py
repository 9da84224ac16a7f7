"""A model's layers as a table: shapes, parameters, multiply-adds."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.layers import BatchNorm, Conv, Linear


def summarize(model: nn.Module, image_shape: tuple[int, int, int]) -> str:
    """The layers of `model` for one picture of image_shape (H, W, C), as a table.

    Multiply-adds are those of convolutions and linear layers, as torchvision and the
    papers count them. Nothing is computed: shapes alone.
    """
    rows: list[tuple[str, str, str, int, int]] = []

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        y = call(*args, **kwargs)
        layer = context.module
        if context.method_name == "__call__" and isinstance(
            layer, Conv | Linear | BatchNorm
        ):
            params = layer.variables["params"]
            macs = 0
            if not isinstance(layer, BatchNorm):
                kernel = params["kernel"].shape
                macs = math.prod(kernel) * math.prod(y.shape[1:-1])
            rows.append(
                (
                    ".".join(layer.path),
                    type(layer).__name__,
                    "x".join(map(str, y.shape[1:])),
                    sum(leaf.size for leaf in jax.tree.leaves(params)),
                    macs,
                )
            )
        return y

    with nn.intercept_methods(watch):
        jax.eval_shape(
            lambda: model.init(
                jax.random.key(0), jnp.zeros((1, *image_shape)), train=False
            )
        )
    header = ("layer", "type", "output", "parameters", "multiply-adds")
    body = [(*row[:3], f"{row[3]:,}", f"{row[4]:,}") for row in rows]
    num_params, num_macs = (sum(row[column] for row in rows) for column in (3, 4))
    shape = "x".join(map(str, image_shape))
    total = ("total", f"input {shape}", "", f"{num_params:,}", f"{num_macs:,}")
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
