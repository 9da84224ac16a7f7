"""Finds the weights of a network in a file, by names and shapes."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from resnet_jax.weights.names import TABLES, Table, without_wrappers
from resnet_jax.weights.unpickle import StandIn

Shapes = Mapping[str, tuple[int, ...]]  # shapes in PyTorch, by the network's own names
_DEEPEST = 8  # number of levels of nested dictionaries to search


class Match(NamedTuple):
    """A dictionary from a file, with an entry for each name in a network."""

    key: str  # the dictionary's dotted key in the file; "" for the file itself
    prefix: str  # prefix of the names in the dictionary, ending in a dot
    table: str  # see names.TABLES
    names: dict[str, str]  # maps network names, except the head's, to names in the file
    head: str | None  # name of the only unmatched linear layer, if any
    head_key: str  # key of the dictionary that contains the head
    rest: tuple[str, ...]  # unmatched names, if there is no head
    misshapen: tuple[str, ...]  # the network's names for weights whose shapes differ
    num_unused: int  # number of unmatched tensors in the dictionary

    @property
    def label(self) -> str:
        """The key and the prefix, which distinguish this match from others."""
        return ".".join(part for part in (self.key, self.prefix.rstrip(".")) if part)


def dictionaries(content: Any) -> dict[str, dict[str, Any]]:
    """Returns the dictionaries in a file that directly contain arrays, by dotted key.

    This function calls dict's own methods because a pickle can override the methods of
    an OrderedDict.
    """
    found: dict[str, dict[str, Any]] = {}
    seen: set[int] = set()

    def walk(value: Any, key: str, depth: int) -> None:
        if depth > _DEEPEST or id(value) in seen:
            return
        if isinstance(value, dict):
            seen.add(id(value))
            items = [(k, v) for k, v in dict.items(value) if isinstance(k, str)]
            if any(isinstance(v, np.ndarray) for _, v in items):
                found[key] = dict(items)
        elif isinstance(value, list | tuple):
            seen.add(id(value))
            items = [(str(index), v) for index, v in enumerate(value)]
        else:
            return
        for name, inner in items:
            walk(inner, f"{key}.{name}" if key else name, depth + 1)

    walk(content, "", 0)
    return found


def shape_of(value: Any) -> tuple[int, ...] | None:
    """Returns the shape of an array, or None for anything else."""
    return value.shape if isinstance(value, np.ndarray) else None


def describe(value: Any) -> str:
    """Describes a value that is not an array, for an error message."""
    if isinstance(value, type) and issubclass(value, StandIn):
        return f"the class {value.origin}"
    if isinstance(value, StandIn):
        return f"an object of {value.origin}"
    return f"a {type(value).__name__}"


def is_tracked(name: str) -> bool:
    """Returns whether `name` ends in num_batches_tracked, which Flax does not have."""
    return name.rsplit(".", 1)[-1] == "num_batches_tracked"


def find(content: Any, shapes: Shapes, head: str | None) -> list[Match]:
    """Finds the dictionaries in `content` with entries for all of a network's names.

    Args:
      content: the content of a file.
      shapes: the shapes of a network's parameters and running statistics, by name.
      head: the name of the network's last layer, or None. The file may lack this layer
        or use another name for it.

    Returns:
      The matches, without duplicates. Matches with wrong shapes are returned only if
      there are no other matches.
    """
    own = (f"{head}.weight", f"{head}.bias")
    backbone = {name: shape for name, shape in shapes.items() if name not in own}
    width = shapes[own[0]][1] if head is not None else None
    found: list[Match] = []
    inside = dictionaries(content)
    for key, dictionary in inside.items():
        names = without_wrappers(dictionary)
        known: set[tuple[str, ...]] = set()
        for title, table in TABLES.items():
            wanted = {name: table(name) for name in backbone}
            for prefix in _prefixes(names, wanted):
                stand = {
                    name: names[prefix + theirs] for name, theirs in wanted.items()
                }
                if tuple(stand.values()) in known:
                    continue
                known.add(tuple(stand.values()))
                match = _match(dictionary, names, prefix, table, stand, backbone, width)
                if match is not None:
                    match = match._replace(key=key, table=title, head_key=key)
                    match = _with_head_beside(match, inside, width)
                    found.append(match)
    if width is not None:
        found = [_without_rivals(one, found, inside, width) for one in found]
    return _distinct([one for one in found if not one.misshapen] or found, inside)


def _prefixes(names: Mapping[str, str], wanted: Mapping[str, str]) -> Iterator[str]:
    """Yields the prefixes under which all wanted names are found."""
    anchor = next(iter(wanted.values()))
    for name in names:
        prefix = name.removesuffix(anchor)
        if not name.endswith(anchor) or (prefix and not prefix.endswith(".")):
            continue
        if all(prefix + theirs in names for theirs in wanted.values()):
            yield prefix


def _match(
    dictionary: Mapping[str, Any],
    names: Mapping[str, str],
    prefix: str,
    table: Table,
    stand: dict[str, str],
    backbone: Shapes,
    width: int | None,
) -> Match | None:
    """Returns the match for `stand`, or None if `dictionary` holds a larger network."""
    taken = set(stand.values())
    rest = {
        name: original
        for name, original in names.items()
        if original not in taken
        and not is_tracked(name)
        and _counts(original, dictionary[original])
    }
    roots = {table(name).split(".")[0] for name in backbone}
    inside = (n.removeprefix(prefix) for n in rest if n.startswith(prefix))
    if any(name.split(".")[0] in roots for name in inside):
        return None
    beside = _nearest(rest, prefix)
    layer = None if width is None else _linear(dictionary, beside, width)
    misshapen = tuple(
        name
        for name, shape in backbone.items()
        if shape_of(dictionary[stand[name]]) not in (None, shape)
    )
    num_arrays = sum(
        isinstance(value, np.ndarray) and not is_tracked(name)
        for name, value in dictionary.items()
    )
    return Match(
        key="",
        prefix=prefix,
        table="",
        names=stand,
        head=layer,
        head_key="",
        rest=() if layer else tuple(beside.values()),
        misshapen=misshapen,
        num_unused=num_arrays - len(stand) - 2 * (layer is not None),
    )


def _with_head_beside(
    match: Match, inside: Mapping[str, Mapping[str, Any]], width: int | None
) -> Match:
    """Adds a missing head from a sibling dictionary to the match, if possible."""
    if width is None or match.head is not None or match.rest:
        return match
    parent = match.key.rpartition(".")[0]
    heads = []
    for key, dictionary in inside.items():
        if key.rpartition(".")[0] == parent and key != match.key:
            layer = _linear(dictionary, {name: name for name in dictionary}, width)
            if layer is not None:
                heads.append(match._replace(head=layer, head_key=key))
    return heads[0] if len(heads) == 1 else match


def _counts(name: str, value: Any) -> bool:
    """Returns whether a value may be a parameter, not a counter, metric or option."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind not in "biu" and value.ndim > 0
    return isinstance(value, StandIn) and "." in name


def _nearest(rest: dict[str, str], prefix: str) -> dict[str, str]:
    """Returns the names in `rest` that share the most leading parts with `prefix`."""
    parts = prefix.split(".")[:-1]
    for count in range(len(parts), 0, -1):
        around = ".".join(parts[:count]) + "."
        found = {n: original for n, original in rest.items() if n.startswith(around)}
        if found:
            return found
    return rest


def _linear(
    dictionary: Mapping[str, Any], names: Mapping[str, str], width: int
) -> str | None:
    """Returns the linear layer whose weight and bias are `names`, or None."""
    leaves = {name.rpartition(".")[2]: original for name, original in names.items()}
    layers = {name.rpartition(".")[0] for name in names}
    if leaves.keys() != {"weight", "bias"} or len(layers) != 1:
        return None
    weight, bias = (shape_of(dictionary[leaves[leaf]]) for leaf in ("weight", "bias"))
    if weight is None or weight[1:] != (width,) or bias != weight[:1]:
        return None
    return leaves["weight"].rpartition(".")[0]


def _distinct(
    found: list[Match], inside: Mapping[str, Mapping[str, Any]]
) -> list[Match]:
    """Keeps only one of the matches with equal values, preferably one with a head."""

    def is_same(names: Iterable[Any], others: Iterable[Any]) -> bool:
        pairs = zip(names, others, strict=True)
        return all(one is two or np.array_equal(one, two) for one, two in pairs)

    distinct: list[Match] = []
    for match in sorted(found, key=lambda one: one.head is None):
        own = [inside[match.key][name] for name in match.names.values()]
        for known in distinct:
            theirs = [inside[known.key][name] for name in known.names.values()]
            no_other = match.head is None or (
                known.head is not None
                and is_same(_head(match, inside), _head(known, inside))
            )
            if no_other and is_same(own, theirs):
                break
        else:
            distinct.append(match)
    return sorted(distinct, key=found.index)


def _head(match: Match, inside: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    return [inside[match.head_key][name] for name in head_names(str(match.head))]


def _without_rivals(
    match: Match, others: list[Match], inside: Any, width: int
) -> Match:
    """Returns the match, dropping its head if another layer could also be the head."""
    if match.head is None or match.head_key != match.key:
        return match
    dictionary = inside[match.key]
    taken = {name for one in others for name in one.names.values()}
    # The heads of other matches are not rivals.
    around = {one.prefix for one in others} - {match.prefix}
    rivals = []
    for name in dictionary:
        layer = name.removesuffix(".weight")
        names = {one: one for one in head_names(layer) if one in dictionary}
        is_other = layer == name or layer == match.head or name in taken
        is_other |= layer.removesuffix(layer.rpartition(".")[2]) in around
        if not is_other and _linear(dictionary, names, width) is not None:
            rivals.append(name)
    own = head_names(match.head)
    return match._replace(head=None, rest=(*own, *rivals)) if rivals else match


def head_names(layer: str) -> list[str]:
    """Returns the names of a linear layer's weight and bias."""
    return [f"{layer}.{leaf}".lstrip(".") for leaf in ("weight", "bias")]
