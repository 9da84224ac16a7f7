"""Finds a network's weights in a file and converts them."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from resnet_jax.errors import ConfigError, DataError
from resnet_jax.weights import convert, match, recognize
from resnet_jax.weights.exported import is_exported
from resnet_jax.weights.match import Match
from resnet_jax.weights.names import without_wrappers, wrappers_in
from resnet_jax.weights.read import Content, read
from resnet_jax.weights.unpickle import StandIn

log = logging.getLogger(__name__)


def read_state_dict(path: str | Path, key: str | None = None) -> convert.StateDict:
    """Reads a weights file or folder and returns its arrays, keyed by PyTorch name.

    Without `key`, the largest dictionary in the file is read. The prefixes that
    wrappers add (module., _orig_mod.) are removed from the names. In a pickle, objects
    other than tensors, numbers, strings and containers become placeholders; their
    classes are neither imported nor called.

    Args:
      path: the file or folder; see read.read.
      key: the dotted key of the dictionary to read, such as model_ema. It is required
        if several dictionaries in the file fit the same network.

    Raises:
      ConfigError: if the file has no weights under `key`.
      DataError: if the file has no weights, or if it has several sets of weights and
        `key` is None.
    """
    content = read(path)
    found = match.dictionaries(content.value)
    if key is not None and key not in found:
        raise ConfigError(
            f"{content.path} has no weights under {key!r}; it has "
            f"{_list(found) or 'none'}"
        )
    if not found:
        raise DataError(f"{content.path} {_describe_empty(content.value)}")
    chosen = key
    if chosen is None:
        counts = {name: _count(part) for name, part in found.items()}
        chosen = max(counts, key=lambda name: counts[name])
        alike = [name for name in found if _are_alike(found[name], found[chosen])]
        if len(alike) > 1:
            raise DataError(
                f"{content.path} has weights under {_list(alike)}: pass one of them as "
                "key"
            )
    arrays = {n: v for n, v in found[chosen].items() if isinstance(v, np.ndarray)}
    names = without_wrappers(arrays)
    parts = [str(content.path), f"{len(names)} tensors"]
    parts += [f"key {chosen}"] if chosen else []
    parts += [f"without {one}" for one in wrappers_in(set(arrays) - set(names))]
    if len(parts) > 2:
        log.info("weights: %s", ", ".join(parts))
    return {new: arrays[old] for new, old in names.items()}


def adopt(
    content: Content,
    variables: Mapping[str, Any],
    model: nn.Module,
    *,
    name: str,
    key: str | None = None,
    new_head: bool | None = False,
) -> tuple[dict[str, Any], Match]:
    """Fills the variables of `model` with a file's weights, and logs their origin.

    Args:
      content: the content of the file.
      variables: the model's initial variables.
      model: the network.
      name: the model's name.
      key: selects one of several sets of weights; see Match.label.
      new_head: whether the last layer keeps its values from `variables`. If None, the
        layer keeps them only if the file has no last layer of the same shape.

    Returns:
      The filled variables, and the match that says where in the file their values were
      found.

    Raises:
      ConfigError: if the file has no weights under `key`.
      DataError: if the file has no usable weights for this network, or if it has
        several sets of weights and `key` is None.
    """
    path, shapes = content.path, convert.shapes_of(variables)
    head = model.head if f"{model.head}.weight" in shapes else None
    found = match.find(content.value, shapes, head)
    sound = _choose(path, [one for one in found if not one.misshapen], key)
    if sound is None:
        said = recognize.explain(content.value, found, name, model)
        raise DataError(f"{path} {said or _describe_empty(content.value)}")
    inside = match.dictionaries(content.value)
    _check_normalization(path, inside, sound, model.in_channels)
    values = convert.with_names_of(sound, inside[sound.key], None)
    own = (f"{head}.weight", f"{head}.bias")
    theirs = None if head is None else _head_in(inside, sound)
    fits = theirs is not None and all(
        leaf.shape == shapes[n] for n, leaf in zip(own, theirs, strict=True)
    )
    if head is not None and new_head is False and not fits:
        raise DataError(f"{path} {_describe_head(sound, theirs, shapes[own[0]])}")
    if theirs is not None:
        values |= dict(zip(own, theirs, strict=True))
    skip = () if head is None or (fits and not new_head) else (head,)
    try:
        adopted = convert.fill(variables, values, skip)
    except DataError as error:
        raise DataError(f"{path} cannot be used: {error}") from None
    # Exported folders always use this package's names, so log this only for debugging.
    level = logging.INFO if skip or not is_exported(path.parent) else logging.DEBUG
    log.log(level, "weights: %s", _say(path, sound, head, skip))
    return adopted, sound


def _head_in(inside: Mapping[str, Any], found: Match) -> list[Any] | None:
    """Returns the weight and bias of the last layer in the file, or None."""
    if found.head is None:
        return None
    return [inside[found.head_key][name] for name in match.head_names(found.head)]


def _check_normalization(
    path: Path, inside: Mapping[str, Any], chosen: Match, channels: int
) -> None:
    """Logs the image mean and standard deviation that a file stores, if any.

    Raises:
      DataError: if they belong to the network of the chosen weights.
    """
    for title, one in inside.items():
        numbers = _normalization_in(one, channels)
        if numbers is not None and title == chosen.key:
            raise DataError(
                f"{path} holds a network that normalizes images itself, with "
                f"{numbers}: save only the state_dict of the inner network, and pass "
                "these numbers to --normalize"
            )
        if numbers is not None:
            log.info(
                "weights: %s specifies a normalization: use --normalize %s",
                path,
                numbers,
            )


def _normalization_in(dictionary: Mapping[str, Any], channels: int) -> str | None:
    """Returns the image mean and standard deviation that a dictionary stores.

    The result has the format of --normalize. If either is missing, the result is None.
    """
    found: dict[str, str] = {}
    for name, value in dictionary.items():
        leaf = re.search(r"(^|[._])(?<!running_)(mean|std)$", name)
        if leaf and isinstance(value, np.ndarray) and value.size == channels:
            numbers = np.ravel(value).astype(float).round(4).tolist()
            found[leaf[2]] = ",".join(map(str, numbers))
    return f"{found['mean']}/{found['std']}" if len(found) == 2 else None


def _choose(path: Path, found: Sequence[Match], key: str | None) -> Match | None:
    if key is not None:
        named = [one for one in found if key in (one.label, one.key, one.prefix[:-1])]
        if not named:
            labels = _list(one.label for one in found) or "none for this network"
            raise ConfigError(f"{path} has no weights under {key!r}; it has {labels}")
        found = named
    if len(found) > 1:
        labels = _list(one.label for one in found)
        raise DataError(
            f"{path} has several sets of weights, under {labels}: choose one "
            f"with --weights-key {found[-1].label or found[0].label}"
        )
    return found[0] if found else None


def _say(path: Path, found: Match, head: str | None, skip: Sequence[str]) -> str:
    parts = [str(path)]
    if found.key:
        parts.append(f"key {found.key}")
    if found.prefix:
        parts.append(f"prefix {found.prefix}")
    parts += [f"without {one}" for one in wrappers_in(found.names.values())]
    if found.table != "torchvision":
        parts.append(f"names of {found.table}")
    if skip:
        own = [found.head] if found.head else found.rest[:4]
        parts.append(
            f"a new {head} instead of {_list(own)}" if own else f"a new {head}"
        )
    elif head is None:
        parts.append("its features")
    elif found.head_key != found.key:
        parts.append(f"key {found.head_key} as {head}")
    elif f".{found.head}".endswith(f".{head}"):
        parts.append(f"with its {head}")
    else:
        parts.append(f"its {found.head} as {head}")
    if unused := found.num_unused:
        parts.append(f"{unused} tensor{'s' * (unused > 1)} unused")
    return ", ".join(parts)


def _describe_head(
    found: Match, theirs: list[Any] | None, shape: tuple[int, ...]
) -> str:
    remedy = "train a new last layer with train.py --pretrained FILE"
    if theirs is not None:
        return (
            f"has {len(theirs[0])} classes, but the data has {shape[0]}: choose "
            f"another --dataset, or {remedy}"
        )
    if found.rest:
        return (
            f"ends in {_list(found.rest[:4])}, not in a single linear layer with "
            f"{shape[1]} input features: {remedy}"
        )
    return f"has no last layer with {shape[1]} input features: {remedy}"


def _describe_empty(value: Any) -> str:
    """Describes a file without weights, for an error message."""
    modules = _modules(value)
    if modules:
        return (
            f"holds a whole module, {match.describe(modules[0])}, which can be "
            "loaded only with the code that defines it: save model.state_dict() "
            "instead"
        )
    if isinstance(value, dict) and any(isinstance(v, dict) for v in dict.values(value)):
        return "holds no named tensors: save model.state_dict()"
    if isinstance(value, dict):
        return "holds no tensors: save model.state_dict()"
    return f"holds {match.describe(value)}, not a state_dict: save model.state_dict()"


def _modules(value: Any) -> list[StandIn]:
    """Lists the stand-ins for torch.nn.Modules among `value` and its direct items."""
    inside = dict.values(value) if isinstance(value, dict) else ()
    return [
        one
        for one in (value, *inside)
        if isinstance(one, StandIn)
        and (one.is_module or one.origin.startswith(("torch.nn.", "torchvision.")))
    ]


def _list(labels: Any) -> str:
    return ", ".join(repr(label) if label else "the file itself" for label in labels)


def _count(dictionary: Mapping[str, Any]) -> int:
    return sum(isinstance(value, np.ndarray) for value in dictionary.values())


def _are_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Returns whether names and shapes are equal, disregarding wrapper prefixes."""
    mine, yours = without_wrappers(one), without_wrappers(other)
    return mine.keys() == yours.keys() and all(
        match.shape_of(one[mine[name]]) == match.shape_of(other[yours[name]])
        for name in mine
    )
