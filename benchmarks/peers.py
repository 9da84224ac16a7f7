"""Networks for comparison, written as Flax users typically write them."""

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.models import Bottleneck, ResNet

_WIDTHS = (64, 128, 256, 512)


class FlaxExample(nn.Module):
    """The ResNet of Flax's ImageNet example, reimplemented from its description.

    It uses flax.linen.BatchNorm with axis_name=None, which computes the variance as
    E[x^2] - E[x]^2, and flax.linen.Conv with "SAME" padding except in the first
    convolution. The scale of the last BatchNorm of each block starts at zero.
    """

    stage_sizes: tuple[int, ...]
    is_deep: bool  # whether blocks are bottlenecks: 1x1, 3x3 and 1x1 convolutions
    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
        )
        x = conv(64, (7, 7), (2, 2), padding=[(3, 3), (3, 3)])(x)
        x = nn.max_pool(nn.relu(norm()(x)), (3, 3), (2, 2), padding="SAME")
        for stage, size in enumerate(self.stage_sizes):
            for index in range(size):
                stride = 2 if stage > 0 and index == 0 else 1
                x = self.block(x, 64 * 2**stage, (stride, stride), conv, norm)
        logits = nn.Dense(self.num_classes, dtype=self.dtype)(x.mean((1, 2)))
        return logits.astype(jnp.float32)

    def block(
        self,
        x: jax.Array,
        width: int,
        strides: tuple[int, int],
        conv: Callable[..., Any],
        norm: Callable[..., Any],
    ) -> jax.Array:
        layers = [(width, 3, strides), (width, 3, (1, 1))]
        if self.is_deep:
            one = (1, 1)
            layers = [(width, 1, one), (width, 3, strides), (4 * width, 1, one)]
        y = x
        for features, size, step in layers[:-1]:
            y = nn.relu(norm()(conv(features, (size, size), step)(y)))
        features, size, step = layers[-1]
        y = conv(features, (size, size), step)(y)
        y = norm(scale_init=nn.initializers.zeros)(y)
        if x.shape != y.shape:
            x = norm()(conv(features, (1, 1), strides)(x))
        return nn.relu(x + y)


class WithFlaxNorm(ResNet):
    """Our network with flax.linen.BatchNorm instead of our own."""

    @nn.nowrap
    def make_layers(self, x: jax.Array, use_bias: bool) -> tuple[Any, Any]:
        conv, _ = super().make_layers(x, use_bias)

        def norm(**options: Any) -> Callable[..., jax.Array]:
            own = {"momentum": 1 - self.bn_momentum, "epsilon": self.bn_eps}
            layer = nn.BatchNorm(dtype=self.dtype, **own, **options)
            return lambda x, *, train: layer(x, use_running_average=not train)

        return conv, norm


def flax_example(ours: Any) -> FlaxExample | None:
    """Returns Flax's version of `ours`, or None if Flax's example does not have one."""
    if not isinstance(ours, ResNet) or ours.widths != _WIDTHS[: len(ours.widths)]:
        return None
    is_deep = ours.block is Bottleneck
    return FlaxExample(ours.stage_sizes, is_deep, ours.num_classes, ours.dtype)


def with_flax_norm(model: Any) -> WithFlaxNorm | None:
    """Returns `model` with flax.linen.BatchNorm, or None if it is not a ResNet."""
    if not isinstance(model, ResNet):
        return None
    own = [field.name for field in fields(model)]
    chosen = {n: getattr(model, n) for n in own if n not in ("parent", "name")}
    return WithFlaxNorm(**chosen)
