"""Converts a PyTorch state_dict of NumPy arrays to Flax variables and back."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.errors import DataError
from resnet_jax.models import torch_names
from resnet_jax.weights import match
from resnet_jax.weights.match import Match
from resnet_jax.weights.unpickle import StandIn

log = logging.getLogger(__name__)

StateDict = dict[str, np.ndarray]

_SHOWN = 5  # maximum number of names of each kind in an error message


def _by_name(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Maps PyTorch's names to the leaves of `variables`, in the tree's order."""
    leaves = jax.tree_util.tree_leaves_with_path(dict(variables))
    return {torch_names.torch_name(path[1:]): leaf for path, leaf in leaves}


def _to_flax(array: np.ndarray) -> np.ndarray:
    """Transposes a convolution kernel (OIHW to HWIO) or a linear layer's weight."""
    return array.transpose({4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim))


def _to_torch(array: np.ndarray) -> np.ndarray:
    return array.transpose({4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim))


def from_torch(
    state_dict: Mapping[str, np.ndarray],
    variables: Mapping[str, Any],
    skip: Sequence[str] = (),
) -> dict[str, Any]:
    """Returns a tree with the structure of `variables` and the values of `state_dict`.

    The values are copied. Layer names from other projects (see names.py), wrapper
    prefixes such as "module.", and other names for the last layer are recognized.

    Args:
      state_dict: maps names to arrays in PyTorch's layouts. num_batches_tracked is
        ignored.
      variables: the model's "params" and "batch_stats", which determine the names,
        shapes and dtypes. If `skip` is empty, the shapes and dtypes from jax.eval_shape
        suffice.
      skip: modules, such as "fc", whose values are copied from `variables`. Their
        entries in `state_dict` are ignored.

    Raises:
      DataError: if `state_dict` lacks any of the network's names, has unexpected names
        in the network's modules, or has arrays with wrong shapes. The message lists the
        first five names of each kind. Arrays outside the network's modules cause no
        error; a log line gives their number.
    """
    shapes = shapes_of(variables)
    wanted = {n: s for n, s in shapes.items() if not torch_names.is_in(n, skip)}
    given = {
        name: value if isinstance(value, StandIn) else np.asarray(value)
        for name, value in state_dict.items()
        if not torch_names.is_in(name, skip)
    }
    last = head_of(shapes)
    head = None if last is None or torch_names.is_in(last, skip) else last
    found = match.find(given, wanted, head)
    if len(found) > 1:
        labels = " and ".join(repr(one.label) for one in found)
        raise DataError(
            "the state_dict contains several networks that fit, under the prefixes "
            f"{labels}: pass only one of them"
        )
    if len(found) == 1 and not found[0].misshapen:
        renamed = with_names_of(found[0], given, last if head is None else head)
        misfit = {
            n for n in wanted if match.shape_of(renamed.get(n)) not in (None, wanted[n])
        }
        if not misfit and not (head and found[0].rest):
            if found[0].num_unused and not skip:
                log.info("weights: %d tensors unused", found[0].num_unused)
            return fill(variables, renamed, skip)
        given = {n: v for n, v in renamed.items() if not torch_names.is_in(n, skip)}
    raise DataError(
        f"the weights do not fit the network: {list_problems(given, wanted)}"
    )


def with_names_of(
    found: Match, dictionary: Mapping[str, Any], head: str | None
) -> dict[str, Any]:
    """Returns `dictionary`, with the weights in `found` renamed as in the network."""
    names = dict(found.names)
    if head is not None and found.head is not None:
        theirs = match.head_names(found.head)
        names |= dict(zip((f"{head}.weight", f"{head}.bias"), theirs, strict=True))
        if found.head.rpartition(".")[2] != head:
            log.info("weights: the layer %s is read as %s", found.head, head)
    taken = set(names.values())
    rest = {
        name: value
        for name, value in dictionary.items()
        if name not in taken and not match.is_tracked(name)
    }
    return {**rest, **{ours: dictionary[theirs] for ours, theirs in names.items()}}


def fill(
    variables: Mapping[str, Any], values: Mapping[str, Any], skip: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns a tree with the structure of `variables` and copies of `values`.

    Args:
      variables: see from_torch.
      values: maps PyTorch's names to arrays in PyTorch's layouts.
      skip: see from_torch.

    Raises:
      DataError: if a value is not an array of floating-point numbers.
    """
    leaves = []
    for name, leaf in _by_name(variables).items():
        if torch_names.is_in(name, skip):
            leaves.append(leaf)
            continue
        value = values[name]
        if not isinstance(value, np.ndarray | jax.Array):
            raise DataError(f"{name} is {match.describe(value)}, not a tensor")
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise DataError(f"{name} is {value.dtype}, not floating-point")
        # This must be a copy: on CPUs, asarray would share the tensor's memory, which a
        # PyTorch optimizer may change later.
        leaves.append(jnp.array(_to_flax(np.asarray(value)), leaf.dtype))
    tree: dict[str, Any] = jax.tree.unflatten(
        jax.tree.structure(dict(variables)), leaves
    )
    return tree


def shapes_of(variables: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Maps the PyTorch names of all leaves to their PyTorch shapes."""
    return {name: _torch_shape(leaf) for name, leaf in _by_name(variables).items()}


def head_of(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Returns the name of a network's last linear layer, or None if it has none."""
    linear = [name for name, shape in shapes.items() if len(shape) == 2]
    return linear[-1].rpartition(".")[0] if linear else None


def to_torch(variables: Mapping[str, Any]) -> StateDict:
    """Returns the state_dict of `variables`, with PyTorch's names and layouts.

    Its values are copies that are bitwise equal to the variables. num_batches_tracked,
    which Flax does not have, is 0. After each array is converted with torch.from_numpy,
    load_state_dict(strict=True) accepts the result.
    """
    state_dict: StateDict = {}
    for name, leaf in _by_name(variables).items():
        state_dict[name] = np.array(_to_torch(np.asarray(leaf)), order="C")
        if name.endswith(".running_mean"):
            tracked = name.replace("running_mean", "num_batches_tracked")
            state_dict[tracked] = np.zeros((), np.int64)
    return state_dict


def _torch_shape(leaf: Any) -> tuple[int, ...]:
    return _to_torch(np.broadcast_to(np.zeros(()), leaf.shape)).shape


def list_problems(
    found: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]]
) -> str:
    """Lists missing or unexpected names and wrong shapes, or returns "" if all fit."""
    kinds = {
        "missing": [name for name in wanted if name not in found],
        "unexpected": [
            name for name in found if name not in wanted and not match.is_tracked(name)
        ],
        "misshapen": [
            f"{name} {list(match.shape_of(found[name]) or ())} instead of {list(shape)}"
            for name, shape in wanted.items()
            if name in found and match.shape_of(found[name]) != shape
        ],
    }
    parts = []
    for kind, names in kinds.items():
        if names:
            more = ", ..." if len(names) > _SHOWN else ""
            parts.append(f"{len(names)} {kind} ({', '.join(names[:_SHOWN])}{more})")
    return "; ".join(parts)
