"""Layers whose arithmetic and initialisation are PyTorch's."""

from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.errors import ConfigError

Init = Literal["torch", "kaiming"]

# nn.Conv2d and nn.Linear draw from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), which is what
# kaiming_uniform_(a=sqrt(5)) comes to; torchvision's ResNet redraws its convolutions
# with kaiming_normal_(mode="fan_out").
KERNEL_INITS: dict[str, jax.nn.initializers.Initializer] = {
    "torch": jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
    "kaiming": jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
}


def _bias_init(fan_in: int) -> jax.nn.initializers.Initializer:
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def storage_dtype(dtype: jnp.dtype, param_dtype: jnp.dtype | None = None) -> jnp.dtype:
    """The type of parameters and statistics of a layer that computes in `dtype`."""
    return jnp.promote_types(dtype, jnp.float32) if param_dtype is None else param_dtype


def convolve(
    x: jax.Array, kernel: jax.Array, *, stride: int, padding: int
) -> jax.Array:
    """The convolution of x [B, H, W, C] with kernel [K, K, C, F], padded with zeros."""

    def by_xla(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(stride, stride),
            padding=((padding, padding), (padding, padding)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    # XLA's convolution for CPUs runs at a fiftieth of its speed on such maps, which are
    # those of ImageNet's networks on small pictures.
    if x.shape[1] * x.shape[2] > 4:
        return by_xla(x, kernel)
    by_dot = partial(_convolve_by_dot, stride=stride, padding=padding)
    return lax.platform_dependent(x, kernel, cpu=by_dot, default=by_xla)


def _convolve_by_dot(
    x: jax.Array, kernel: jax.Array, *, stride: int, padding: int
) -> jax.Array:
    """convolve, as one product of the pixels below each tap that meets the picture."""
    size = kernel.shape[0]
    height, width = (
        (length + 2 * padding - size) // stride + 1 for length in x.shape[1:3]
    )
    edge = (padding, padding)
    padded = jnp.pad(x, ((0, 0), edge, edge, (0, 0)))

    def meets(tap: int, count: int, length: int) -> bool:
        places = range(tap, tap + stride * count, stride)
        return any(padding <= place < padding + length for place in places)

    taps = [
        (i, j)
        for i in range(size)
        for j in range(size)
        if meets(i, height, x.shape[1]) and meets(j, width, x.shape[2])
    ]
    columns = [
        padded[
            :,
            i : i + stride * (height - 1) + 1 : stride,
            j : j + stride * (width - 1) + 1 : stride,
        ]
        for i, j in taps
    ]
    weights = jnp.concatenate([kernel[i, j] for i, j in taps])
    return jnp.concatenate(columns, axis=-1) @ weights


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
        scale = self.param("scale", nn.initializers.ones, shape, param_dtype)
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
            axes = tuple(range(x.ndim - 1))
            mean = x.mean(axes)
            centred = x - per_channel(mean)
            var = jnp.square(centred).mean(axes)
            if not self.is_initializing() and self.is_mutable_collection("batch_stats"):
                unbiased = var * (count / (count - 1))
                running_mean.value += self.momentum * (mean - running_mean.value)
                running_var.value += self.momentum * (unbiased - running_var.value)
        else:
            mean, var = running_mean.value, running_var.value
            centred = x - per_channel(mean)
        gain = per_channel(scale) * per_channel(lax.rsqrt(var + self.epsilon))
        return (centred * gain + per_channel(bias)).astype(self.dtype)
