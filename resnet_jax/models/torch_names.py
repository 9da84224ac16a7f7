"""PyTorch's names for Flax's parameters and statistics."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}


def torch_name(path: Sequence[Any]) -> str:
    """Returns the state_dict key of the leaf at a jax.tree_util path."""
    *modules, leaf = (key.key for key in path)
    return ".".join([*modules, LEAVES.get(leaf, leaf)])


def map_names(fn: Callable[[str], Any], tree: Mapping[str, Any]) -> Any:
    """Returns a tree with the structure of `tree` in which each leaf is fn(name).

    Here, name is the PyTorch name of the leaf.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: fn(torch_name(path)), tree)


def list_names(tree: Mapping[str, Any]) -> list[str]:
    """Returns the PyTorch names of all leaves in `tree`."""
    return [torch_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def is_in(name: str, modules: Sequence[str]) -> bool:
    """Returns whether `name` is one of `modules` or belongs to one of them."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)
