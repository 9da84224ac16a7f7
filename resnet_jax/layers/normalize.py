"""Normalization by batch statistics, with a closed-form gradient."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.layers.keep import keep
from resnet_jax.layers.linear_map import linear_map


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def normalize(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
    shift: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalizes x by its mean and biased variance; returns (y, mean, variance).

    All arithmetic uses the dtype of x [..., C]; scale, bias and shift have the shape
    [C]. The gradient is computed in closed form, which requires fewer memory reads than
    letting JAX differentiate the two-pass variance.

    Args:
      shift: values close to the mean, which allow the variance to be computed in one
        pass. The variance is less precise if these values are far from the mean (see
        BatchNorm). If `shift` is None, the variance is computed in two passes.
    """
    return moments(x, scale, bias, epsilon, shift)[0]


def moments(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
    shift: jax.Array | None,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    axes = tuple(range(x.ndim - 1))
    if shift is None:
        mean = keep(x.mean(axes))
        centered = _kept(x - _expand(mean, x))
        var = keep(jnp.square(centered).mean(axes))
    else:
        moved = x - _expand(shift, x)
        sums = _sums(moved, jnp.square(moved))
        beside, square = (total * (x.shape[-1] / x.size) for total in sums)
        mean = keep(shift + beside)
        var = keep(jnp.maximum(square - jnp.square(beside), 0))
        centered = _kept(x - _expand(mean, x))
    inverse = lax.rsqrt(var + epsilon)
    gain = scale.astype(x.dtype) * inverse
    y = centered * _expand(gain, x) + _expand(bias.astype(x.dtype), x)
    return (y, mean, var), (centered, inverse)


@normalize.defjvp
def _normalize_jvp(
    epsilon: float, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Any, Any]:
    x, scale, bias, shift = primals
    found, (centered, inverse) = moments(x, scale, bias, epsilon, shift)
    moves, axes = [jnp.asarray(t) for t in tangents[:3]], tuple(range(x.ndim - 1))
    dy = linear_map(forward, backward, (centered, inverse, scale), *moves)
    d_var = 2 * (centered * moves[0]).mean(axes)
    return found, (dy, moves[0].mean(axes), d_var)


def forward(
    centered: jax.Array,
    inverse: jax.Array,
    scale: jax.Array,
    dx: jax.Array,
    d_scale: jax.Array,
    d_bias: jax.Array,
) -> jax.Array:
    axes, scale = tuple(range(dx.ndim - 1)), scale.astype(dx.dtype)
    d_inverse = -(inverse**3) * (centered * dx).mean(axes)
    d_gain = d_scale.astype(dx.dtype) * inverse + scale * d_inverse
    gain = scale * inverse
    moved = d_bias.astype(dx.dtype) - gain * dx.mean(axes)
    return _expand(gain, dx) * dx + centered * _expand(d_gain, dx) + _expand(moved, dx)


def backward(
    centered: jax.Array, inverse: jax.Array, scale: jax.Array, dy: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Applies the transpose of `forward` to `dy`.

    The gradient with respect to the bias has the dtype of `scale`.
    """
    count = dy.size // dy.shape[-1]
    d_bias, along = _sums(dy, dy * centered)
    d_scale = along * inverse
    gain = scale.astype(dy.dtype) * inverse
    dx = _expand(gain, dy) * (
        dy
        - _expand(d_bias / count, dy)
        - centered * _expand(d_scale * inverse / count, dy)
    )
    return dx, d_scale.astype(scale.dtype), d_bias.astype(scale.dtype)


def _sums(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the per-channel sums [C] of x [..., C] and of y [..., C]."""

    def apart(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        axes = tuple(range(x.ndim - 1))
        return x.sum(axes), y.sum(axes)

    def at_once(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        # One CUDA kernel sums within images, and a second one sums across images.
        axes = tuple(range(1, x.ndim - 1))
        both = jnp.stack([x.sum(axes), y.sum(axes)]).sum(1)
        return both[0], both[1]

    found: tuple[jax.Array, jax.Array] = lax.platform_dependent(
        x, y, cuda=at_once, default=apart
    )
    return found


def _kept(x: jax.Array) -> jax.Array:
    """Wraps x in an optimization barrier on CPUs, so that XLA computes it only once."""
    found: jax.Array = lax.platform_dependent(
        x, cpu=lax.optimization_barrier, default=lambda x: x
    )
    return found


def _expand(value: jax.Array, x: jax.Array) -> jax.Array:
    """Reshapes `value` [C] to [1, ..., C], with as many dimensions as `x`."""
    return value.reshape((1,) * (x.ndim - 1) + value.shape)
