"""Layers whose arithmetic and initialisation are PyTorch's."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.convolution import convolve
from resnet_jax.errors import ConfigError

Init = Literal["torch", "kaiming"]


def _torch_init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    bound = math.prod(shape[:-1]) ** -0.5
    return bound * _draw(partial(jax.random.uniform, minval=-1), key, shape, dtype)


def _kaiming_init(
    key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype
) -> jax.Array:
    fan_out = math.prod(shape) // shape[-2]
    return (2 / fan_out) ** 0.5 * _draw(jax.random.normal, key, shape, dtype)


def _draw(
    distribution: Callable[..., jax.Array],
    key: jax.Array,
    shape: tuple[int, ...],
    dtype: jnp.dtype,
) -> jax.Array:
    # In one row: XLA takes up to ten times as long to compile it in this shape.
    return distribution(key, (math.prod(shape),), dtype).reshape(shape)


# nn.Conv2d and nn.Linear draw from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), which is what
# kaiming_uniform_(a=sqrt(5)) comes to; torchvision's ResNet redraws its convolutions
# with kaiming_normal_(mode="fan_out").
KERNEL_INITS: dict[str, jax.nn.initializers.Initializer] = {
    "torch": _torch_init,
    "kaiming": _kaiming_init,
}


def _bias_init(fan_in: int) -> jax.nn.initializers.Initializer:
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def storage_dtype(dtype: jnp.dtype, param_dtype: jnp.dtype | None = None) -> jnp.dtype:
    """The type of parameters and statistics of a layer that computes in `dtype`."""
    return jnp.promote_types(dtype, jnp.float32) if param_dtype is None else param_dtype


class Conv(nn.Module):
    """A 2-D convolution with torch.nn.Conv2d's padding and initialisation.

    Maps x [B, H, W, C] to [B, H', W', features] with
    H' = (H + 2 * padding - kernel_size) // stride + 1.
    """

    features: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    use_bias: bool = True
    weight_init: Init = "torch"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.weight_init not in KERNEL_INITS:
            raise ConfigError(
                f"no weight_init {self.weight_init!r}: one of {', '.join(KERNEL_INITS)}"
            )
        param_dtype = storage_dtype(self.dtype, self.param_dtype)
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param(
            "kernel", KERNEL_INITS[self.weight_init], shape, param_dtype
        )
        x = convolve(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            stride=self.stride,
            padding=self.padding,
        )
        if self.use_bias:
            fan_in = self.kernel_size**2 * shape[2]
            bias = self.param("bias", _bias_init(fan_in), (self.features,), param_dtype)
            x = x + bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return x


class Whitening(nn.Module):
    """A fixed convolution, padded: x [B, H, W, C] to [B, H, W, size * size * C].

    Its kernel lies with the statistics, in `batch_stats`: it is one of the data's, see
    whitening.fit, and no training step moves it. At first it copies the patches.
    """

    size: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = self.size**2 * x.shape[-1]
        shape = (self.size, self.size, x.shape[-1], features)

        def copies() -> jax.Array:
            return jnp.eye(features, dtype=storage_dtype(self.dtype)).reshape(shape)

        kernel = self.variable("batch_stats", "kernel", copies).value
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return convolve(x, kernel, stride=1, padding=self.size // 2)


class Linear(nn.Module):
    """torch.nn.Linear with its initialisation: x [B, C] to [B, features]."""

    features: int
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        param_dtype = storage_dtype(self.dtype, self.param_dtype)
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", KERNEL_INITS["torch"], shape, param_dtype)
        bias = self.param("bias", _bias_init(shape[0]), (self.features,), param_dtype)
        x = x.astype(self.dtype) @ kernel.astype(self.dtype)
        return x + bias.astype(self.dtype).reshape(1, -1)


class BatchNorm(nn.Module):
    """torch.nn.BatchNorm2d over every axis but the last: x [..., C] to [..., C].

    In training (`train=True`) x is normalised by the mean and the *biased* variance of
    the batch, computed in two passes, and the running statistics in the `batch_stats`
    collection move, where it is mutable, by

        running = (1 - momentum) * running + momentum * batch

    with the batch's *unbiased* variance. In inference the running statistics normalise
    and nothing moves; initialisation moves nothing either. Arithmetic and statistics
    have promote_types(dtype, float32). Under jit over a sharded batch the statistics
    are those of the global batch.

    Raises:
      ConfigError: in training with one value per channel, whose variance is undefined.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        stats_dtype = storage_dtype(self.dtype)
        param_dtype = storage_dtype(self.dtype, self.param_dtype)
        shape = (x.shape[-1],)
        running_mean = self.variable(
            "batch_stats", "mean", lambda: jnp.zeros(shape, stats_dtype)
        )
        running_var = self.variable(
            "batch_stats", "var", lambda: jnp.ones(shape, stats_dtype)
        )
        scale = self.param("scale", self.scale_init, shape, param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, param_dtype)

        def per_channel(value: jax.Array) -> jax.Array:
            return value.astype(stats_dtype).reshape((1,) * (x.ndim - 1) + shape)

        x = x.astype(stats_dtype)
        if train:
            count = x.size // x.shape[-1]
            if count == 1 and not self.is_initializing():
                raise ConfigError(
                    f"BatchNorm {'.'.join(self.path)} cannot train on one value per "
                    f"channel (input {x.shape}): use a larger batch or picture, or "
                    "drop the last partial batch"
                )
            y, mean, var = normalize(x, scale, bias, self.epsilon)
            if not self.is_initializing() and self.is_mutable_collection("batch_stats"):
                unbiased = var * (count / (count - 1))
                running_mean.value += self.momentum * (mean - running_mean.value)
                running_var.value += self.momentum * (unbiased - running_var.value)
        else:
            gain = scale * lax.rsqrt(running_var.value + self.epsilon)
            y = (x - per_channel(running_mean.value)) * per_channel(gain)
            y = y + per_channel(bias)
        return y.astype(self.dtype)


@jax.custom_vjp
def normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(x by its own mean and biased variance, scaled and moved, these two).

    All is of the type of x [..., C]; scale and bias are [C]. The gradient is by y
    alone, in closed form: it passes fewer times over memory than that which JAX derives
    from the two passes of the variance. It has derivatives in reverse mode alone.
    """
    return _normalize(x, scale, bias, epsilon)[0]


def _normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    mean = x.mean(range(x.ndim - 1))
    centred = _kept(x - _expand(mean, x))
    var = jnp.square(centred).mean(range(x.ndim - 1))
    inverse = lax.rsqrt(var + epsilon)
    gain = scale.astype(x.dtype) * inverse
    y = centred * _expand(gain, x) + _expand(bias.astype(x.dtype), x)
    return (y, mean, var), (centred, inverse, scale, bias)


def _normalize_backward(
    saved: tuple[jax.Array, ...], cotangents: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    centred, inverse, scale, bias = saved
    dy, axes = cotangents[0], range(centred.ndim - 1)
    count = centred.size // centred.shape[-1]
    d_bias = dy.sum(axes)
    d_scale = (dy * centred).sum(axes) * inverse
    gain = scale.astype(dy.dtype) * inverse
    dx = _expand(gain, dy) * (
        dy
        - _expand(d_bias / count, dy)
        - centred * _expand(d_scale * inverse / count, dy)
    )
    return dx, d_scale.astype(scale.dtype), d_bias.astype(bias.dtype), None


normalize.defvjp(_normalize, _normalize_backward)


def _kept(x: jax.Array) -> jax.Array:
    """x, which XLA for CPUs would compute anew for each that reads it."""
    return lax.platform_dependent(x, cpu=lax.optimization_barrier, default=lambda x: x)


def _expand(value: jax.Array, x: jax.Array) -> jax.Array:
    """`value` [C] in as many dimensions as `x`."""
    return value.reshape((1,) * (x.ndim - 1) + value.shape)
