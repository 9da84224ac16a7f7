"""A batch of pictures taken a few at a time, so that work on them stays in cache."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def split(*arrays: jax.Array, pixels: int) -> tuple[jax.Array, ...]:
    """Each [B, ...] as [steps, groups, pictures, ...], of at most `pixels` a step.

    These are the last array's [B, H, W, C]. Where several devices share the batch each
    has groups of its own, so that no step asks for another's pictures.
    """
    batch, height, width = arrays[-1].shape[:3]
    groups = math.gcd(batch, jax.device_count())
    count = batch // groups
    most = max(1, pixels // (height * width))
    size = max(n for n in range(1, min(most, count) + 1) if count % n == 0)
    parts = (a.reshape(groups, -1, size, *a.shape[1:]) for a in arrays)
    return tuple(jnp.moveaxis(part, 1, 0) for part in parts)


def contract(x: jax.Array, y: jax.Array) -> jax.Array:
    """x [groups, ..., C] and y [groups, ..., F] to [groups, C, F], at least float32."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    x, y = (v.reshape(len(v), -1, v.shape[-1]) for v in (x, y))
    sides = (((1,), (1,)), ((0,), (0,)))
    return lax.dot_general(x, y, sides, preferred_element_type=dtype)


def map_chunks(
    function: Callable[[jax.Array], jax.Array], parts: jax.Array
) -> jax.Array:
    """`function` of each step of `parts`, together again as [B, ...]."""

    def put(step: jax.Array, values: jax.Array) -> jax.Array:
        of_step = function(lax.dynamic_index_in_dim(parts, step, keepdims=False))
        return lax.dynamic_update_index_in_dim(values, of_step, step, 0)

    shape = jax.eval_shape(function, parts[0])
    values = jnp.full((len(parts), *shape.shape), late_zero(parts, shape.dtype))
    values = lax.fori_loop(0, len(parts), put, values)
    return jnp.moveaxis(values, 0, 1).reshape(-1, *values.shape[3:])


def sum_chunks(function: Callable[..., Any], *parts: jax.Array) -> Any:
    """The sum of the trees that `function` gives for each step."""

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
    """0, which XLA for CPUs does not know before it has `x`.

    What depends on it is not made, with that of all other layers, when a step begins,
    and kept for it. Inside shard_map it differs from device to device as `x` does.
    """
    # Of several devices one alone has the first number.
    first = x.reshape(-1)[: 1 if jax.device_count() == 1 else 0]
    ones = lax.population_count(lax.bitcast_convert_type(first, jnp.uint8))
    return (ones >> 4).sum(dtype=jnp.uint8).astype(dtype)
