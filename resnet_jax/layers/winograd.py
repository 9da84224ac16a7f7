"""3x3 convolutions with stride 1, computed with Winograd's algorithm F(4x4, 3x3).

For each channel, a 4x4 tile of the result requires 36 multiplications instead of 144: a
6x6 array of sums of pixels is multiplied elementwise by a 6x6 array of sums of taps.
Over all tiles and channels, each of these 36 multiplications becomes a matrix product.
The sums are values of polynomials at the points 0, +-3/4, +-3/2 and infinity. These
points cause smaller rounding errors than the usual points 0, +-1, +-2 and infinity.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_PIXELS = 2**14  # maximum number of pixels per loop step
_P, _Q = 3 / 4, 3 / 2
_P2, _Q2 = _P**2, _Q**2
_OF_0, _OF_P, _OF_Q = _P2 * _Q2, 2 * _P2 * (_P2 - _Q2), 2 * _Q2 * (_Q2 - _P2)

Line = Sequence[jax.Array]
Transform = Callable[[Line], Line]


# jax.jit traces this only once per shape, and layers of a network often share shapes.
@partial(jax.jit, static_argnums=2)
def convolve(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """Convolves x [B, H, W, C] with kernel [3, 3, C, F]."""
    height, width = (length + 2 * padding - 2 for length in x.shape[1:3])
    weights = _both_ways(_of_taps, kernel + late_zero(x, kernel.dtype))

    def of_chunk(x: jax.Array) -> jax.Array:
        sides = (((x.ndim,), (1,)), ((0,), (0,)))
        products = [
            lax.dot_general(pixels, taps, sides)
            for pixels, taps in zip(_pixels(x, padding), weights, strict=True)
        ]
        lines = _at_once(_to_pixels, products)
        columns = [_to_pixels(list(line)) for line in lines]
        y = jnp.stack([jnp.stack(column, -3) for column in columns], -2)
        *rest, high, _, wide, _, features = y.shape
        y = y.reshape(*rest, 4 * high, 4 * wide, features)
        return y[..., :height, :width, :]

    return map_chunks(of_chunk, *split(x, pixels=_PIXELS))


@partial(jax.jit, static_argnums=2)
@jax.named_scope("kernel_gradient")  # the name in profiles
def kernel_gradient(x: jax.Array, dy: jax.Array, padding: int) -> jax.Array:
    """Returns the gradient of convolve with respect to `kernel`, given `dy`."""

    def of_chunk(x: jax.Array, dy: jax.Array) -> Line:
        whole = [(0, -length % 4) for length in dy.shape[-3:-1]]
        dy = jnp.pad(dy, ((0, 0), (0, 0), *whole, (0, 0)))
        values = _tiles(_from_pixels, dy, 4)
        lines = zip(_pixels(x, padding), values, strict=True)
        return [jax.vmap(contract)(*line) for line in lines]

    sums = sum_chunks(of_chunk, *split(x, dy, pixels=_PIXELS))
    taps = _both_ways(_to_taps, jnp.stack(sums).sum(2))
    return jnp.stack(taps)


def _pixels(x: jax.Array, padding: int) -> Line:
    """Returns 6x6 sums of pixels per tile of x [groups, B, H, W, C] (see _tiles)."""
    counts = [(length + 2 * padding + 1) // 4 for length in x.shape[-3:-1]]
    edges = [
        (padding, 4 * count + 2 - length - padding)
        for count, length in zip(counts, x.shape[-3:-1], strict=True)
    ]
    return _tiles(_of_pixels, jnp.pad(x, ((0, 0), (0, 0), *edges, (0, 0))), 6)


def _tiles(transform: Transform, x: jax.Array, size: int) -> Line:
    """Applies `transform` to the rows and then to the columns of each tile of x.

    The tiles have `size` x `size` pixels and start every 4 pixels. Returns 6 arrays [6,
    ..., h, w, C], one per column of the transformed tiles, each with all 6 rows.
    """

    def along(axis: int, x: jax.Array) -> Line:
        end = x.shape[axis] - size + 1
        lines = [lax.slice_in_dim(x, i, i + end, 4, axis) for i in range(size)]
        return _at_once(transform, lines)

    rows = jnp.stack(along(x.ndim - 3, x))
    return along(rows.ndim - 2, rows)


def _at_once(transform: Transform, line: Line) -> Line:
    """Applies `transform` once: a barrier keeps XLA from repeating it for each sum."""
    found: Line = lax.optimization_barrier(transform(line))
    return found


def _both_ways(transform: Transform, grid: jax.Array) -> Line:
    """Applies `transform` along the first axis of `grid`, then along the second."""
    return transform(list(jnp.stack(transform(list(grid))).swapaxes(0, 1)))


def _of_pixels(d: Line) -> Line:
    even_p, odd_p = d[4] - _Q2 * d[2], _P * (d[3] - _Q2 * d[1])
    even_q, odd_q = d[4] - _P2 * d[2], _Q * (d[3] - _P2 * d[1])
    first = _P2 * _Q2 * d[0] - (_P2 + _Q2) * d[2] + d[4]
    last = _P2 * _Q2 * d[1] - (_P2 + _Q2) * d[3] + d[5]
    return [first, even_p + odd_p, even_p - odd_p, even_q + odd_q, even_q - odd_q, last]


def _of_taps(g: Line) -> Line:
    even_p, odd_p = (g[0] + _P2 * g[2]) / _OF_P, _P / _OF_P * g[1]
    even_q, odd_q = (g[0] + _Q2 * g[2]) / _OF_Q, _Q / _OF_Q * g[1]
    return [
        g[0] / _OF_0,
        even_p + odd_p,
        even_p - odd_p,
        even_q + odd_q,
        even_q - odd_q,
        g[2],
    ]


def _to_pixels(m: Line) -> Line:
    even_p, odd_p, even_q, odd_q = m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]
    return [
        m[0] + even_p + even_q,
        _P * odd_p + _Q * odd_q,
        _P2 * even_p + _Q2 * even_q,
        _P * _P2 * odd_p + _Q * _Q2 * odd_q + m[5],
    ]


def _from_pixels(y: Line) -> Line:  # the transpose of _to_pixels
    even_p, odd_p = y[0] + _P2 * y[2], _P * (y[1] + _P2 * y[3])
    even_q, odd_q = y[0] + _Q2 * y[2], _Q * (y[1] + _Q2 * y[3])
    return [y[0], even_p + odd_p, even_p - odd_p, even_q + odd_q, even_q - odd_q, y[3]]


def _to_taps(u: Line) -> Line:  # the transpose of _of_taps
    even_p, odd_p = (u[1] + u[2]) / _OF_P, (u[1] - u[2]) / _OF_P
    even_q, odd_q = (u[3] + u[4]) / _OF_Q, (u[3] - u[4]) / _OF_Q
    return [
        u[0] / _OF_0 + even_p + even_q,
        _P * odd_p + _Q * odd_q,
        _P2 * even_p + _Q2 * even_q + u[5],
    ]


# The functions below process a few images of the batch at a time, so that the data
# stay in the cache.


def split(*arrays: jax.Array, pixels: int) -> tuple[jax.Array, ...]:
    """Reshapes each array [B, ...] to [steps, groups, images, ...].

    The last array is [B, H, W, C]. For each step and group, this array contributes at
    most `pixels` pixels, unless a single image has more. If several devices share the
    batch, each device has its own groups, so that no step needs images from another
    device.
    """
    batch, height, width = arrays[-1].shape[:3]
    groups = math.gcd(batch, jax.device_count())
    count = batch // groups
    most = max(1, pixels // (height * width))
    size = max(n for n in range(1, min(most, count) + 1) if count % n == 0)
    parts = (a.reshape(groups, -1, size, *a.shape[1:]) for a in arrays)
    return tuple(jnp.moveaxis(part, 1, 0) for part in parts)


def contract(x: jax.Array, y: jax.Array) -> jax.Array:
    """Contracts x [groups, ..., C] with y [groups, ..., F] to [groups, C, F]."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    x, y = (v.reshape(len(v), -1, v.shape[-1]) for v in (x, y))
    sides = (((1,), (1,)), ((0,), (0,)))
    return lax.dot_general(x, y, sides, preferred_element_type=dtype)


def map_chunks(
    function: Callable[[jax.Array], jax.Array], parts: jax.Array
) -> jax.Array:
    """Applies `function` to each step of `parts`; returns the whole result [B, ...]."""

    def put(step: jax.Array, values: jax.Array) -> jax.Array:
        of_step = function(lax.dynamic_index_in_dim(parts, step, keepdims=False))
        found: jax.Array = lax.dynamic_update_index_in_dim(values, of_step, step, 0)
        return found

    shape = jax.eval_shape(function, parts[0])
    values = jnp.full((len(parts), *shape.shape), late_zero(parts, shape.dtype))
    values = lax.fori_loop(0, len(parts), put, values)
    return jnp.moveaxis(values, 0, 1).reshape(-1, *values.shape[3:])


def sum_chunks(function: Callable[..., Any], *parts: jax.Array) -> Any:
    """Applies `function` to each step of `parts`; returns the sum of the results."""

    def add(step: jax.Array, total: Any) -> Any:
        of_step = (
            lax.dynamic_index_in_dim(part, step, keepdims=False) for part in parts
        )
        return jax.tree.map(jnp.add, total, function(*of_step))

    shapes = jax.eval_shape(function, *(part[0] for part in parts))
    zeros = jax.tree.map(
        lambda a: jnp.full(a.shape, sum(late_zero(part, a.dtype) for part in parts)),
        shapes,
    )
    return lax.fori_loop(0, len(parts[0]), add, zeros)


def late_zero(x: jax.Array, dtype: Any) -> jax.Array:
    """Returns a 0 that XLA cannot compute on CPUs until `x` is available.

    Buffers that depend on this 0 are therefore not allocated all at once when a
    training step begins. Inside shard_map, the 0 varies over the same mesh axes as `x`.
    """
    # With several devices, only one of them has the first element, so no element is
    # read.
    first = x.reshape(-1)[: 1 if jax.device_count() == 1 else 0]
    ones = lax.population_count(lax.bitcast_convert_type(first, jnp.uint8))
    return (ones >> 4).sum(dtype=jnp.uint8).astype(dtype)
