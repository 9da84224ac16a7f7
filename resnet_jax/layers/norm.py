"""Batch normalization with PyTorch's arithmetic and a closed-form gradient."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.errors import ConfigError
from resnet_jax.layers.inputs import name_of
from resnet_jax.layers.linear import storage_dtype
from resnet_jax.layers.linear_map import linear_map


class BatchNorm(nn.Module):
    """torch.nn.BatchNorm2d over every axis but the last: x [..., C] to [..., C].

    In training (`train=True`) x is normalised by the mean and the *biased* variance of
    the batch, computed in two passes, and the running statistics in the `batch_stats`
    collection, which must be mutable, move by

        running = (1 - momentum) * running + momentum * batch

    with the batch's *unbiased* variance. In inference the running statistics normalise
    and nothing moves; initialisation moves nothing either. Arithmetic and statistics
    have promote_types(dtype, float32). Under jit over a sharded batch the statistics
    are those of the global batch.

    Of bfloat16 the variance is E[d^2] - E[d]^2, d = x - running mean, in float32 and in
    one pass, which compilers join to the convolution before. Its rounding is at most
    a twentieth of that of the values, which have 8 bits, whatever their mean.

    Raises:
      ConfigError: in training with one value per channel, whose variance is undefined.
      flax.errors.ModifyScopeVariableError: in training where apply was not called with
        mutable=["batch_stats"].
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

        x = jnp.asarray(x)
        is_coarse = x.dtype == jnp.bfloat16
        x = x.astype(stats_dtype)
        if train:
            count = x.size // x.shape[-1]
            if count == 1 and not self.is_initializing():
                raise ConfigError(
                    f"{name_of(self)} cannot train on one value per channel (input "
                    f"{x.shape}): use a larger batch or image, or drop the last "
                    "partial batch"
                )
            shift = running_mean.value if is_coarse else None
            y, mean, var = normalize(x, scale, bias, self.epsilon, shift)
            mean, var = lax.stop_gradient((mean, var))
            if not self.is_initializing():
                unbiased = var * (count / (count - 1))
                running_mean.value += self.momentum * (mean - running_mean.value)
                running_var.value += self.momentum * (unbiased - running_var.value)
        else:
            gain = scale * lax.rsqrt(running_var.value + self.epsilon)
            y = (x - per_channel(running_mean.value)) * per_channel(gain)
            y = y + per_channel(bias)
        return y.astype(self.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def normalize(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
    shift: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(x by its own mean and biased variance, scaled and moved, these two).

    All is of the type of x [..., C]; scale, bias and shift are [C]. The gradient is in
    closed form: it passes fewer times over memory than that which JAX derives from the
    two passes of the variance.

    Args:
      shift: something near the mean, by which the variance is computed in one pass. It
        loses what two passes keep where the mean is far from it, see BatchNorm.
    """
    return _normalize(x, scale, bias, epsilon, shift)[0]


def _normalize(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
    shift: jax.Array | None,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    axes = range(x.ndim - 1)
    if shift is None:
        mean = x.mean(axes)
        centred = _kept(x - _expand(mean, x))
        var = jnp.square(centred).mean(axes)
    else:
        moved = x - _expand(shift, x)
        beside = moved.mean(axes)
        var = jnp.maximum(jnp.square(moved).mean(axes) - jnp.square(beside), 0)
        mean = shift + beside
        centred = _kept(x - _expand(mean, x))
    inverse = lax.rsqrt(var + epsilon)
    gain = scale.astype(x.dtype) * inverse
    y = centred * _expand(gain, x) + _expand(bias.astype(x.dtype), x)
    return (y, mean, var), (centred, inverse)


@normalize.defjvp
def _normalize_jvp(
    epsilon: float, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Any, Any]:
    x, scale, bias, shift = primals
    found, (centred, inverse) = _normalize(x, scale, bias, epsilon, shift)
    moves, axes = tangents[:3], range(x.ndim - 1)
    dy = linear_map(_forward, _backward, (centred, inverse, scale), *moves)
    d_var = 2 * (centred * moves[0]).mean(axes)
    return found, (dy, moves[0].mean(axes), d_var)


def _forward(
    centred: jax.Array,
    inverse: jax.Array,
    scale: jax.Array,
    dx: jax.Array,
    d_scale: jax.Array,
    d_bias: jax.Array,
) -> jax.Array:
    axes, scale = range(dx.ndim - 1), scale.astype(dx.dtype)
    d_inverse = -(inverse**3) * (centred * dx).mean(axes)
    d_gain = d_scale.astype(dx.dtype) * inverse + scale * d_inverse
    gain = scale * inverse
    moved = d_bias.astype(dx.dtype) - gain * dx.mean(axes)
    return _expand(gain, dx) * dx + centred * _expand(d_gain, dx) + _expand(moved, dx)


def _backward(
    centred: jax.Array, inverse: jax.Array, scale: jax.Array, dy: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The transpose of _forward; scale and bias are of one type."""
    axes = range(dy.ndim - 1)
    count = dy.size // dy.shape[-1]
    d_bias = dy.sum(axes)
    d_scale = (dy * centred).sum(axes) * inverse
    gain = scale.astype(dy.dtype) * inverse
    dx = _expand(gain, dy) * (
        dy
        - _expand(d_bias / count, dy)
        - centred * _expand(d_scale * inverse / count, dy)
    )
    return dx, d_scale.astype(scale.dtype), d_bias.astype(scale.dtype)


def _kept(x: jax.Array) -> jax.Array:
    """x, which XLA for CPUs would compute anew for each that reads it."""
    found: jax.Array = lax.platform_dependent(
        x, cpu=lax.optimization_barrier, default=lambda x: x
    )
    return found


def _expand(value: jax.Array, x: jax.Array) -> jax.Array:
    """`value` [C] in as many dimensions as `x`."""
    return value.reshape((1,) * (x.ndim - 1) + value.shape)
