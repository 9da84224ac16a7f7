"""PyTorch's pooling layers for ResNets, with gradients that are fast on CPUs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.layers.keep import is_plain
from resnet_jax.layers.linear_map import linear_map

Arrays = tuple[jax.Array, ...]


def avg_pool(x: jax.Array) -> jax.Array:
    """Average-pools x [B, H, W, C] like torch.nn.AvgPool2d(2, 2).

    The result has the shape [B, H // 2, W // 2, C].
    """
    x = jnp.asarray(x)
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return _mean_of_four(x.reshape(batch, height // 2, 2, width // 2, 2, channels))


@jax.custom_jvp
def _mean_of_four(x: jax.Array) -> jax.Array:
    # XLA fuses additions, but not reductions, with the preceding operations.
    top, bottom = x[:, :, 0], x[:, :, 1]
    rows = top + bottom
    return (rows[..., 0, :] + rows[..., 1, :]) / 4


@_mean_of_four.defjvp
def _mean_of_four_jvp(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    by_x = linear_map(_mean_of_four, _mean_of_four_backward, (), *tangents)
    return _mean_of_four(*primals), by_x


def _mean_of_four_backward(dy: jax.Array) -> jax.Array:
    batch, height, width, channels = dy.shape
    shape = (batch, height, 2, width, 2, channels)
    return jnp.broadcast_to((dy / 4)[:, :, None, :, None], shape)


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """Max-pools x [B, H, W, C] like torch.nn.MaxPool2d(2, 2).

    The result has the shape [B, H // 2, W // 2, C]. If several pixels of a window equal
    its maximum, they share the gradient, whereas PyTorch gives all of it to the first
    one.
    """
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    rows = jnp.maximum(x[:, :, 0], x[:, :, 1])
    return jnp.maximum(rows[..., 0, :], rows[..., 1, :])


def max_pool(x: jax.Array) -> jax.Array:
    """Max-pools x [B, H, W, C] like torch.nn.MaxPool2d(3, 2, 1).

    This halves the height and the width, rounding up. If several pixels of a window
    equal its maximum, the first of them gets the gradient.
    """
    x = jnp.asarray(x)
    return _max_pool_of_padded(x) if is_plain() else _max_pool(x)


def _max_pool_of_padded(x: jax.Array) -> jax.Array:
    # jax2onnx 0.17 ignores the padding of nn.max_pool and reads window_shape only if it
    # is a keyword argument.
    edges = ((0, 0), (1, 1), (1, 1), (0, 0))
    x = jnp.pad(x, edges, constant_values=-jnp.inf)
    found: jax.Array = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2))
    return found


def _by_xla(x: jax.Array) -> jax.Array:
    found: jax.Array = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    return found


_max_pool = jax.custom_jvp(_by_xla)


@_max_pool.defjvp
def _max_pool_jvp(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    (x,) = primals
    by_x = linear_map(_forward, _backward, (lax.stop_gradient(x),), *tangents)
    return _max_pool(x), by_x


def _forward(x: jax.Array, dx: jax.Array) -> jax.Array:
    """Returns the values of the tangent `dx` at the maxima of x's windows."""
    across = _windows(x, 2)
    rows = jnp.maximum(jnp.maximum(across[0], across[1]), across[2])
    return _pick(_windows(rows, 1), _windows(_pick(across, _windows(dx, 2)), 1))


def _pick(windows: list[jax.Array], values: list[jax.Array]) -> jax.Array:
    (a, b, c), (of_a, of_b, of_c) = windows, values
    return jnp.where((a >= b) & (a >= c), of_a, jnp.where(b >= c, of_b, of_c))


def _backward(x: jax.Array, dy: jax.Array) -> jax.Array:
    def by_xla(x: jax.Array, dy: jax.Array) -> jax.Array:
        found: jax.Array = jax.vjp(_by_xla, x)[1](dy)[0]
        return found

    def by_lines(x: jax.Array, dy: jax.Array) -> jax.Array:
        across = _windows(x, 2)
        rows = jnp.maximum(jnp.maximum(across[0], across[1]), across[2])
        d_rows = _give(_windows(rows, 1), dy, 1)[:, : x.shape[1]]
        return _give(across, d_rows, 2)[:, :, : x.shape[2]]

    # XLA's own gradient takes ten times as long on CPUs.
    found: jax.Array = lax.platform_dependent(x, dy, cpu=by_lines, default=by_xla)
    return found


def _windows(x: jax.Array, axis: int) -> list[jax.Array]:
    """Returns arrays of the first, second and third pixels of windows along `axis`."""
    count = (x.shape[axis] + 1) // 2
    edge = (1, 2 * count - x.shape[axis], 0)
    edges = [edge if i == axis else (0, 0, 0) for i in range(x.ndim)]
    x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), edges)
    return [lax.slice_in_dim(x, tap, tap + 2 * count - 1, 2, axis) for tap in range(3)]


def _give(windows: list[jax.Array], dy: jax.Array, axis: int) -> jax.Array:
    """Returns the gradient with respect to the pixels.

    `dy` is the gradient with respect to the maxima along `axis`. Pixel 2q is the second
    of window q; pixel 2q + 1 is the third of window q and the first of window q + 1.
    """
    # Comparing pixels with the maximum would be wrong: if XLA computes a pixel twice,
    # in different loops, the two results may differ in the last bit, so that no pixel
    # equals the maximum.
    a, b, c = windows
    first = (a >= b) & (a >= c)
    second = ~first & (b >= c)
    zero = jnp.zeros((), dy.dtype)
    edges = [(0, 1, 0) if i == axis else (0, 0, 0) for i in range(dy.ndim)]
    of_next = lax.pad(jnp.where(first, dy, 0), zero, edges)
    odd = lax.slice_in_dim(of_next, 1, None, 1, axis)
    odd += jnp.where(first | second, 0, dy)
    even = jnp.where(second, dy, 0)
    shape = (*dy.shape[:axis], 2 * dy.shape[axis], *dy.shape[axis + 1 :])
    return jnp.stack([even, odd], axis + 1).reshape(shape)
