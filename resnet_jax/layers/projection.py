"""BatchNorm after a 1x1 convolution, with a special gradient for TPUs.

On TPUs, the gradient is computed without the output of the convolution. Let
x = inputs @ kernel. The gradient with respect to x is dx = gain * dy + along * x +
offset, where gain, along and offset have one value per channel. Matrix products with dx
can therefore be computed without x:

    dx @ kernel.T = dy @ (gain * kernel).T + inputs @ (along * kernel) @ kernel.T + ...
    inputs.T @ dx = gain * inputs.T @ dy + along * (inputs.T @ inputs) @ kernel + ...

Likewise, sum(dy * x) is the sum of kernel * (inputs.T @ dy). These formulas pay off if
the convolution has more output channels than input channels, because the larger output
of the convolution is then neither stored nor read again. For example, the last
convolution of a bottleneck block has four times as many output channels as input
channels.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.layers import conv
from resnet_jax.layers import normalize as norm
from resnet_jax.layers.linear import storage_dtype
from resnet_jax.layers.linear_map import linear_map


@partial(jax.custom_jvp, nondiff_argnums=(6,))
def normalize(
    x: jax.Array,
    inputs: jax.Array,
    kernel: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shift: jax.Array,
    epsilon: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns norm.normalize(x, ...), but with gradients for x's factors instead of x.

    The factors are `inputs` and `kernel`.

    Args:
      x: the convolution of inputs [B, H, W, D] with kernel [1, 1, D, C], in float32.
    """
    return norm.normalize(x, scale, bias, epsilon, shift)


@normalize.defjvp
def _normalize_jvp(
    epsilon: float, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Any, Any]:
    x, inputs, kernel, scale, bias, shift = primals
    # x's own tangent is ignored here; it matters only for second derivatives.
    found, (centered, inverse) = norm.moments(x, scale, bias, epsilon, shift)
    residuals = (centered, found[1], inverse, scale, inputs, kernel)
    dy = linear_map(_forward, _backward, residuals, *tangents[1:5])
    dx = _tangent(inputs, kernel, tangents[1], tangents[2])
    axes = tuple(range(x.ndim - 1))
    return found, (dy, dx.mean(axes), 2 * (centered * dx).mean(axes))


def _tangent(
    inputs: jax.Array,
    kernel: jax.Array,
    d_inputs: jax.Array,
    d_kernel: jax.Array,
) -> jax.Array:
    dx = conv.convolve(d_inputs, kernel, stride=1, padding=0)
    dx += conv.convolve(inputs, d_kernel, stride=1, padding=0)
    return dx.astype(storage_dtype(dx.dtype))


def _forward(*args: jax.Array) -> jax.Array:
    centered, _, inverse, scale, inputs, kernel, *tangents = args
    dx = _tangent(inputs, kernel, *tangents[:2])
    return norm.forward(centered, inverse, scale, dx, *tangents[2:])


def _backward(*args: jax.Array) -> tuple[jax.Array, ...]:
    found: tuple[jax.Array, ...] = lax.platform_dependent(
        *args, tpu=by_factors, default=by_output
    )
    return found


def by_output(*args: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the gradients with respect to inputs, kernel, scale and bias.

    Args:
      args: x - mean, mean, 1 / standard deviation, scale, inputs, kernel and dy,
        in this order.
    """
    centered, _, inverse, scale, inputs, kernel, dy = args
    dx, d_scale, d_bias = norm.backward(centered, inverse, scale, dy)
    by_both = (1, 0, inputs, kernel, dx.astype(inputs.dtype))
    d_inputs = conv.gradient_by_x(*by_both)
    return d_inputs, conv.gradient_by_kernel(*by_both), d_scale, d_bias


def by_factors(*args: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the same gradients as by_output, but without using x - mean."""
    _, mean, inverse, scale, inputs, kernel, dy = args
    wide = kernel[0, 0].astype(dy.dtype)
    count = dy.size // dy.shape[-1]
    product = _product(inputs, dy.astype(inputs.dtype))
    gram = _product(inputs, inputs)
    total = inputs.astype(dy.dtype).sum((0, 1, 2))
    d_bias = dy.sum((0, 1, 2))
    d_scale = inverse * ((wide * product).sum(0) - mean * d_bias)
    gain = scale.astype(dy.dtype) * inverse
    along = -gain * inverse * d_scale / count
    offset = -gain * d_bias / count - along * mean
    moved = wide * along[None]
    d_kernel = product * gain[None] + gram @ moved + jnp.outer(total, offset)
    by_dy = dy * gain[None, None, None] + offset[None, None, None]
    d_inputs = _by_pixel(by_dy.astype(inputs.dtype), wide.T)
    d_inputs += _by_pixel(inputs, moved @ wide.T)
    return (
        d_inputs.astype(inputs.dtype),
        d_kernel.astype(kernel.dtype).reshape(kernel.shape),
        d_scale.astype(scale.dtype),
        d_bias.astype(scale.dtype),
    )


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns x.T @ y [D, C], in float32 or wider, for x [..., D] and y [..., C]."""
    pixels = tuple(range(x.ndim - 1))
    sides = ((pixels, pixels), ((), ()))
    return lax.dot_general(x, y, sides, preferred_element_type=storage_dtype(x.dtype))


def _by_pixel(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """Returns x @ matrix in float32 or wider."""
    kernel = matrix.astype(x.dtype)[None, None]
    y = conv.convolve(x, kernel, stride=1, padding=0)
    return y.astype(storage_dtype(y.dtype))
