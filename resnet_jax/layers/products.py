"""Computes convolutions and their gradients as matrix products, which are fast on CPUs.

Feature maps are x [B, H, W, C]; kernels are [K, K, C, F].
"""

import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.layers.winograd import contract, split, sum_chunks

_COLUMNS = 2**18  # number of im2col values per chunk, small enough for the cache


def convolve(stride: int, padding: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves x with `kernel` in one matrix product over all taps (im2col)."""
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


@jax.named_scope("kernel_gradient")  # the name in profiles
def kernel_gradient(
    stride: int, padding: int, x: jax.Array, kernel: jax.Array, dy: jax.Array
) -> jax.Array:
    """Returns the gradient of convolve(x, kernel) with respect to `kernel`.

    The columns of x (im2col) are multiplied by dy for a few images at a time, and the
    products are summed.
    """
    size, _, channels, features = kernel.shape
    height, width = dy.shape[1:3]

    def product(x: jax.Array, dy: jax.Array) -> jax.Array:
        x = _copies(x, -2, padding, size, stride, width)
        return contract(_copies(x, -3, padding, size, stride, height), dy)

    if size == 1:
        total = product(x[None], dy[None])
    else:
        pixels = _COLUMNS // (size**2 * channels + features)
        total = sum_chunks(product, *split(x, dy, pixels=pixels))
    return total.sum(0).astype(kernel.dtype).reshape(kernel.shape)


def by_phases(
    stride: int, padding: int, x: jax.Array, kernel: jax.Array, dy: jax.Array
) -> jax.Array:
    """Returns the gradient with respect to `x`, for the cotangent `dy`.

    Pixels of x that are `stride` apart are multiplied by the same taps, so their
    gradient is a convolution of dy with those taps. XLA would instead insert zeros into
    dy and use all taps.
    """
    counts = [-(-(length + padding) // stride) for length in x.shape[1:3]]

    def of_phase(i: int, j: int) -> jax.Array:
        taps = kernel[i::stride, j::stride][::-1, ::-1]
        edges = [
            (size - 1, count - length)
            for size, count, length in zip(
                taps.shape[:2], counts, dy.shape[1:3], strict=True
            )
        ]
        numbers = ("NHWC", "HWOI", "NHWC")
        return lax.conv_general_dilated(dy, taps, (1, 1), edges, None, None, numbers)

    phases = [[of_phase(i, j) for j in range(stride)] for i in range(stride)]
    dx = jnp.stack([jnp.stack(row, 3) for row in phases], 2)
    height, width = (count * stride for count in counts)
    dx = dx.reshape(len(x), height, width, x.shape[-1])
    return dx[:, padding : padding + x.shape[1], padding : padding + x.shape[2]]


def _copies(
    x: jax.Array, axis: int, padding: int, taps: int, stride: int, length: int
) -> jax.Array:
    """Returns shifted copies of x, concatenated along the last axis.

    There is one copy for each tap, shifted along `axis`.
    """
    axis %= x.ndim
    x = lax.pad(
        x,
        jnp.zeros((), x.dtype),
        [(padding, padding, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)],
    )
    copies = [
        lax.slice_in_dim(x, tap, tap + stride * (length - 1) + 1, stride, axis)
        for tap in range(taps)
    ]
    return jnp.concatenate(copies, -1)
