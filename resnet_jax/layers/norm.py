"""Batch normalization with PyTorch's arithmetic."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.errors import ConfigError
from resnet_jax.layers import projection
from resnet_jax.layers.conv import Conv
from resnet_jax.layers.inputs import name_of
from resnet_jax.layers.linear import storage_dtype
from resnet_jax.layers.normalize import normalize


class Factors(NamedTuple):
    """Inputs and kernel of the 1x1 convolution whose output BatchNorm normalizes.

    The convolution has stride 1 and no bias.
    """

    inputs: jax.Array  # [B, H, W, D]
    kernel: jax.Array  # [1, 1, D, C]


class BatchNorm(nn.Module):
    """torch.nn.BatchNorm2d for channels-last inputs; maps x [..., C] to [..., C].

    In training (`train=True`), x is normalized by the mean and the *biased* variance of
    the batch. The running statistics in the `batch_stats` collection, which must be
    mutable, are updated with the batch's mean and *unbiased* variance:

        running = (1 - momentum) * running + momentum * batch

    In inference, x is normalized by the running statistics. Neither inference nor
    initialization changes the running statistics. Computations and statistics use the
    dtype promote_types(dtype, float32). Under jit with a sharded batch, the statistics
    are computed over the global batch.

    The mean and variance are computed in two passes. For bfloat16 inputs, however, the
    variance is computed in float32 as E[d^2] - E[d]^2, where d = x - running mean. This
    requires only a single pass, which compilers can fuse with the preceding
    convolution. The rounding error is smaller than the error of the inputs themselves,
    which have only 8 significant bits. If `factors` is given, TPUs compute the gradient
    from the factors instead of x (see layers/projection.py).

    Raises:
      ConfigError: if momentum is not a number from 0 to 1 (PyTorch's None, for a
        cumulative average, is not supported); or, in training, if each channel has only
        one value, so that its unbiased variance is undefined.
      flax.errors.ModifyScopeVariableError: in training, if apply was called without
        mutable=["batch_stats"].
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, factors: Factors | None = None
    ) -> jax.Array:
        if self.momentum is None or not 0 <= self.momentum <= 1:
            raise ConfigError(
                f"{name_of(self)} has momentum {self.momentum}: use a number from 0 "
                "to 1; as in PyTorch, momentum is the weight of the new batch"
            )
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

        x = jnp.asarray(x)
        is_coarse = x.dtype == jnp.bfloat16
        x = x.astype(stats_dtype)
        if train:
            count = x.size // x.shape[-1]
            if count == 1 and not self.is_initializing():
                raise ConfigError(
                    f"{name_of(self)} cannot train on one value per channel (input "
                    f"shape {x.shape}): use a larger batch or larger images, or drop "
                    "the last partial batch"
                )
            shift = running_mean.value if is_coarse else None
            if is_coarse and factors is not None:
                y, mean, var = projection.normalize(
                    x, *factors, scale, bias, running_mean.value, self.epsilon
                )
            else:
                y, mean, var = normalize(x, scale, bias, self.epsilon, shift)
            mean, var = lax.stop_gradient((mean, var))
            if not self.is_initializing():
                unbiased = var * (count / (count - 1))
                running_mean.value += self.momentum * (mean - running_mean.value)
                running_var.value += self.momentum * (unbiased - running_var.value)
        else:  # also in frozen layers while training; see training/freezing.py
            gain = scale * lax.rsqrt(running_var.value + self.epsilon)
            y = (x - per_channel(running_mean.value)) * per_channel(gain)
            y = y + per_channel(bias)
        return y.astype(self.dtype)


def no_norm(*, name: str, **options: Any) -> Callable[..., jax.Array]:
    """Returns a replacement for BatchNorm that leaves x unchanged."""
    return lambda x, *, train: x


def normalized(conv: Any, norm: Any, x: jax.Array, train: bool) -> jax.Array:
    """Returns norm(conv(x)) for a 1x1 convolution `conv`.

    In training, if there are at least twice as many output channels as input channels,
    `norm` also receives the convolution's inputs and kernel as Factors.
    """
    y: jax.Array = conv(x)
    options: dict[str, Any] = {}
    # Only this package's BatchNorm accepts `factors`, and only after its own Conv.
    is_own = type(conv) is Conv and type(norm) is BatchNorm
    if train and is_own and conv.stride * conv.groups == 1 and not conv.use_bias:
        kernel = conv.get_variable("params", "kernel")
        if 2 * x.shape[-1] <= y.shape[-1]:
            options["factors"] = Factors(x.astype(y.dtype), kernel.astype(y.dtype))
    found: jax.Array = norm(y, train=train, **options)
    return found
