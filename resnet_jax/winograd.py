"""3x3 convolutions of stride 1 with fewer products: Lavin and Gray 2015, F(2x2, 3x3).

Four pixels of the result, 2x2, and one channel take 16 products in place of 36: those
of 4x4 sums of pixels with 4x4 sums of taps. Each of the 16 is a product of matrices.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.chunks import contract, map_chunks, split, sum_chunks

_PIXELS = 2048  # of a step
_FEW = 128  # channels

Line = Sequence[jax.Array]
Grid = Sequence[Line]


def convolve(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """The convolution of x [B, H, W, C] with kernel [3, 3, C, F]."""
    height, width = (length + 2 * padding - 2 for length in x.shape[1:3])
    weights = _both_ways(_of_taps, kernel)

    def of_chunk(x: jax.Array) -> jax.Array:
        pixels = _both_ways(_of_pixels, _tiles(x, padding))
        tiles = _both_ways(_to_pixels, _products(pixels, weights))
        y = jnp.stack([jnp.stack(row, -2) for row in tiles], -4)
        return _merge(y)[..., :height, :width, :]

    return map_chunks(of_chunk, *split(x, pixels=_PIXELS))


@jax.named_scope("kernel_gradient")  # in profiles
def kernel_gradient(x: jax.Array, dy: jax.Array, padding: int) -> jax.Array:
    """The gradient by `kernel` of convolve, where that by its value is `dy`."""

    def of_chunk(x: jax.Array, dy: jax.Array) -> Grid:
        pixels = _both_ways(_of_pixels, _tiles(x, padding))
        even = [(0, length % 2) for length in dy.shape[-3:-1]]
        dy = jnp.pad(dy, ((0, 0), (0, 0), *even, (0, 0)))
        phases = [[dy[..., i::2, j::2, :] for j in (0, 1)] for i in (0, 1)]
        values = _both_ways(_from_pixels, phases)
        return [
            [contract(a, b) for a, b in zip(*rows, strict=True)]
            for rows in zip(pixels, values, strict=True)
        ]

    sums = sum_chunks(of_chunk, *split(x, dy, pixels=_PIXELS))
    taps = _both_ways(_to_taps, sums)
    return jnp.stack([jnp.stack(row) for row in taps]).sum(2)


def _products(pixels: Grid, weights: Grid) -> Grid:
    """[..., C] times [C, F], place by place."""
    if len(weights[0][0]) > _FEW:
        return [
            [a @ b for a, b in zip(*rows, strict=True)]
            for rows in zip(pixels, weights, strict=True)
        ]
    # Little products are quicker as one of a batch.
    a, b = (jnp.stack([v for row in grid for v in row]) for grid in (pixels, weights))
    sides = (((a.ndim - 1,), (1,)), ((0,), (0,)))
    products = lax.dot_general(a, b, sides)
    return [[products[4 * i + j] for j in range(4)] for i in range(4)]


def _tiles(x: jax.Array, padding: int) -> Grid:
    """The 4x4 arrays [..., h, w, C] of the pixels of x [..., H, W, C] below 2x2."""
    counts = [(length + 2 * padding - 1) // 2 for length in x.shape[-3:-1]]
    edges = [
        (padding, 2 * count + 2 - length - padding)
        for count, length in zip(counts, x.shape[-3:-1], strict=True)
    ]
    x = jnp.pad(x, ((0, 0), (0, 0), *edges, (0, 0)))
    ends = [2 * count - 1 for count in counts]
    return [
        [x[..., i : i + ends[0] : 2, j : j + ends[1] : 2, :] for j in range(4)]
        for i in range(4)
    ]


def _merge(y: jax.Array) -> jax.Array:
    """[..., 2 h's and 2 w's apart] to pictures."""
    *rest, height, _, width, _, features = y.shape
    return y.reshape(*rest, 2 * height, 2 * width, features)


def _both_ways(transform: Callable[[Line], Line], grid: Grid) -> Grid:
    """`transform` of each column of `grid`, then of each row."""
    columns = [transform(column) for column in zip(*grid, strict=True)]
    return [transform(row) for row in zip(*columns, strict=True)]


def _of_pixels(d: Line) -> Line:
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _of_taps(g: Line) -> Line:
    return [g[0], (g[0] + g[1] + g[2]) / 2, (g[0] - g[1] + g[2]) / 2, g[2]]


def _to_pixels(m: Line) -> Line:
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _from_pixels(y: Line) -> Line:  # _to_pixels, transposed
    return [y[0], y[0] + y[1], y[0] - y[1], -y[1]]


def _to_taps(u: Line) -> Line:  # _of_taps, transposed
    half = (u[1] + u[2]) / 2
    return [u[0] + half, (u[1] - u[2]) / 2, half + u[3]]
