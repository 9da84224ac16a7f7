"""Trainings of one recipe from several seeds, as one program."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

Each = Callable[[Callable[..., Any]], Callable[..., Any]]


def make_each(num_seeds: int, mesh: Mesh) -> Each:
    """What makes of a function of one seed's arrays that of the arrays of all.

    Their leading axis is then the seeds', in what it takes and in what it gives. Of one
    seed alone there is no such axis, and the function stays as it is. Accelerators
    compute all seeds in each operation (vmap); CPUs one seed after the other, for their
    convolutions have one kernel at a time.
    """
    if num_seeds == 1:
        return lambda function: function
    if mesh.devices.flat[0].platform == "cpu":
        return unrolled
    return jax.vmap


def unrolled(function: Callable[..., Any]) -> Callable[..., Any]:
    """jax.vmap of `function`, written out: once for each index."""

    def of_all(*args: Any) -> Any:
        num = len(jax.tree.leaves(args)[0])
        found: list[Any] = []
        for index in range(num):
            # One after the other: interleaved, they would share the caches.
            args, found = jax.lax.optimization_barrier((args, found))
            found.append(function(*take(args, index)))
        return stack(found)

    return of_all


def stack(trees: Sequence[Any]) -> Any:
    """One tree, its leaves with a leading axis of seeds; of a single tree, itself."""
    if len(trees) == 1:
        return trees[0]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def take(tree: Any, index: int) -> Any:
    """The part of one seed, by its place among them."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def shapes(tree: Any, num_seeds: int) -> Any:
    """The shapes of a tree of several seeds, from those of one."""
    if num_seeds == 1:
        return tree
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((num_seeds, *leaf.shape), leaf.dtype), tree
    )
