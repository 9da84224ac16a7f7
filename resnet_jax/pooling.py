"""PyTorch's pools of the residual networks, with gradients that are quick on CPUs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


def avg_pool(x: jax.Array) -> jax.Array:
    """torch.nn.AvgPool2d(2, 2): x [B, H, W, C] to [B, H // 2, W // 2, C]."""
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return _mean_of_four(x.reshape(batch, height // 2, 2, width // 2, 2, channels))


@jax.custom_vjp
def _mean_of_four(x: jax.Array) -> jax.Array:
    # Sums that XLA joins to what comes before, as it does not join reductions.
    top, bottom = x[:, :, 0], x[:, :, 1]
    rows = top + bottom
    return (rows[..., 0, :] + rows[..., 1, :]) / 4


def _mean_of_four_forward(x: jax.Array) -> tuple[jax.Array, None]:
    return _mean_of_four(x), None


def _mean_of_four_backward(_: None, dy: jax.Array) -> tuple[jax.Array]:
    batch, height, width, channels = dy.shape
    shape = (batch, height, 2, width, 2, channels)
    return (jnp.broadcast_to((dy / 4)[:, :, None, :, None], shape),)


_mean_of_four.defvjp(_mean_of_four_forward, _mean_of_four_backward)


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
    """torch.nn.MaxPool2d(3, 2, 1): x [B, H, W, C] to half its height and width.

    Of equal pixels in a window the first has the gradient. It has derivatives in
    reverse mode alone.
    """
    return _max_pool(x)


def _max_pool(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


def _max_pool_forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    y = _max_pool(x)
    return y, (x, y)


def _max_pool_backward(
    saved: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array]:
    def by_xla(x: jax.Array, y: jax.Array, dy: jax.Array) -> jax.Array:
        return jax.vjp(_max_pool, x)[1](dy)[0]

    def by_lines(x: jax.Array, y: jax.Array, dy: jax.Array) -> jax.Array:
        across = _windows(x, 2)
        rows = jnp.maximum(jnp.maximum(across[0], across[1]), across[2])
        d_rows = _give(_windows(rows, 1), y, dy, 1)[:, : x.shape[1]]
        return _give(across, rows, d_rows, 2)[:, :, : x.shape[2]]

    # XLA's own takes ten times as long on CPUs.
    return (lax.platform_dependent(*saved, dy, cpu=by_lines, default=by_xla),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _windows(x: jax.Array, axis: int) -> list[jax.Array]:
    """The first, second and third pixels of the windows along `axis`."""
    count = (x.shape[axis] + 1) // 2
    edge = (1, 2 * count - x.shape[axis], 0)
    edges = [edge if i == axis else (0, 0, 0) for i in range(x.ndim)]
    x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), edges)
    return [lax.slice_in_dim(x, tap, tap + 2 * count - 1, 2, axis) for tap in range(3)]


def _give(
    windows: list[jax.Array], y: jax.Array, dy: jax.Array, axis: int
) -> jax.Array:
    """The gradient `dy` of the maxima `y` of the windows along `axis`, to the pixels.

    Pixel 2q is the second of window q; pixel 2q + 1 its third and the first of the
    next.
    """
    first = windows[0] == y
    second = ~first & (windows[1] == y)
    zero = jnp.zeros((), dy.dtype)
    edges = [(0, 1, 0) if i == axis else (0, 0, 0) for i in range(y.ndim)]
    of_next = lax.pad(jnp.where(first, dy, 0), zero, edges)
    odd = lax.slice_in_dim(of_next, 1, None, 1, axis)
    odd += jnp.where(first | second, 0, dy)
    even = jnp.where(second, dy, 0)
    shape = (*y.shape[:axis], 2 * y.shape[axis], *y.shape[axis + 1 :])
    return jnp.stack([even, odd], axis + 1).reshape(shape)
