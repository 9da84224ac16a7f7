"""Configuration fields: ranges, groups and conversion from JSON."""

import contextlib
import dataclasses
import math
import os
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import field, fields
from typing import Any, Literal, TypeVar

from resnet_jax.errors import ConfigError
from resnet_jax.paths import expand

# Whether a resumed run may change a field: never ("same"), only with --override
# ("override"), or always ("free") because the field belongs to one invocation rather
# than to the run.
Resume = Literal["same", "override", "free"]
PathKind = Literal["", "as typed", "absolute"]
T = TypeVar("T")


def ranged(
    default: Any,
    *,
    within: str = "",
    at_least: float = -math.inf,
    at_most: float = math.inf,
    resume: Resume = "same",
    alters_features: bool = False,
    one_seed: bool = False,
    path: PathKind = "",
) -> Any:
    """Returns a dataclass field with metadata about its values.

    Args:
      within: an interval such as "[0, 1)". None is allowed if the type of the field
        allows it.
      at_least: the smallest allowed value.
      at_most: the largest allowed value.
      resume: whether a resumed run may change the field.
      alters_features: whether values other than the default make the features of an
        image differ from step to step.
      one_seed: whether the field is unsupported in runs with several seeds.
      path: "as typed" for a path, in which ~ stands for the home folder; "absolute" for
        a path that is also made absolute, so that it means the same in another folder;
        or "" for other values.
    """
    known = {
        "within": within,
        "at_least": at_least,
        "at_most": at_most,
        "resume": resume,
        "alters_features": alters_features,
        "one_seed": one_seed,
        "path": path,
    }
    return field(default=default, metadata=known)


class Group:
    """Base class for groups of fields.

    Raises:
      ConfigError: if a value is out of range, or if a path is invalid on this machine.
    """

    def __post_init__(self) -> None:
        for one in fields(self):  # type: ignore[arg-type]
            value = getattr(self, one.name)
            if value is not None and one.metadata:
                _check(one.name, value, **one.metadata)
                if one.metadata["path"]:
                    found = _as_path(value, one.metadata["path"])
                    object.__setattr__(self, one.name, found)


def _as_path(value: Any, kind: PathKind) -> Any:
    """Returns the path or tuple of paths that a field stores for `value`."""
    if isinstance(value, tuple):
        return tuple(_as_path(one, kind) for one in value)
    found = expand(value)
    return os.path.abspath(found) if kind == "absolute" else found


def _check(
    name: str, value: Any, within: str, at_least: float, at_most: float, **_: Any
) -> None:
    if within:
        low, high = map(float, within[1:-1].split(","))
        above = low < value or (low == value and within[0] == "[")
        below = value < high or (high == value and within[-1] == "]")
        if not (above and below):
            raise ConfigError(f"{name} {value} is not in {within}")
    if math.isfinite(at_least) and value < at_least:
        raise ConfigError(f"{name} {value} is too small: it must be >= {at_least:g}")
    if math.isfinite(at_most) and value > at_most:
        raise ConfigError(f"{name} {value} is too large: it must be <= {at_most:g}")


def flat(group: Any) -> Iterator[tuple["dataclasses.Field[Any]", Any]]:
    """Yields (field, value) for every field of `group` and its nested groups."""
    for one in fields(group):
        value = getattr(group, one.name)
        if dataclasses.is_dataclass(value):
            yield from flat(value)
        else:
            yield one, value


def replace(group: T, **values: Any) -> T:
    """Returns a copy of `group` with the fields in `values` set to the given values.

    Raises:
      ConfigError: if there is no such field, or a value is out of range.
    """
    changed: dict[str, Any] = {}
    for one in fields(group):  # type: ignore[arg-type]
        own = getattr(group, one.name)
        if dataclasses.is_dataclass(own):
            inside = {f.name for f in fields(own)} & values.keys()
            if inside:
                parts = {name: values.pop(name) for name in inside}
                changed[one.name] = dataclasses.replace(own, **parts)  # type: ignore[type-var]
        elif one.name in values:
            changed[one.name] = values.pop(one.name)
    if values:
        raise ConfigError(f"no field {', '.join(values)}")
    return dataclasses.replace(group, **changed)  # type: ignore[type-var]


def refuse(group: Any, names: Iterable[str], why: str) -> None:
    """Raises ConfigError if any of the fields `names` differs from its default."""
    for one, value in flat(group):
        if one.name in names and value != one.default:
            raise ConfigError(f"--{one.name.replace('_', '-')} {why}")


def changes(old: Any, new: Any) -> dict[str, tuple[Any, Any, Resume]]:
    """Returns {field: (old, new, resume)} for the fields in which two runs differ.

    Fields that belong to one invocation are excluded.
    """
    pairs = zip(flat(old), flat(new), strict=True)
    return {
        one.name: (before, after, resume)
        for (one, before), (_, after) in pairs
        if before != after and (resume := one.metadata.get("resume", "same")) != "free"
    }


def from_json(group: type[T], values: Any, where: str) -> T:
    """Returns an instance of `group` built from the output of dataclasses.asdict.

    The output may have been converted to JSON and back.

    Raises:
      ConfigError: if a field is unknown or has the wrong type. The message starts with
        `where`.
    """
    hints = typing.get_type_hints(group)
    if not isinstance(values, dict) or values.keys() - hints.keys():
        raise ConfigError(
            f"{where} is not the config of a run that this version can read"
        )
    return group(
        **{
            name: from_json(hints[name], value, where)
            if dataclasses.is_dataclass(hints[name])
            else _typed(value, hints[name], f"{where}: {name}")
            for name, value in values.items()
        }
    )


def typed(group: Any, name: str, value: Any, where: str) -> Any:
    """Converts `value`, read from JSON, to the type of the field `name` in `group`.

    Raises:
      ConfigError: if there is no such field, or if `value` does not fit its type.
    """
    for part in (group, *(v for v in vars(group).values() if isinstance(v, Group))):
        hint = typing.get_type_hints(type(part)).get(name)
        if hint is not None and not dataclasses.is_dataclass(hint):
            return _typed(value, hint, where)
    raise ConfigError(f"no field {name}")


def _typed(value: Any, hint: Any, where: str) -> Any:
    """Converts `value`, read from JSON, to the type `hint`."""
    options = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin is types.UnionType or origin is typing.Union:
        if value is None:
            return None
        return _typed(value, options[0], where)
    if origin is Literal:
        if value in options:
            return value
    elif origin is tuple:
        if isinstance(value, list):
            return tuple(_typed(item, options[0], where) for item in value)
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            with contextlib.suppress(OverflowError):  # an integer too large for a float
                return float(value)
    elif type(value) is hint:
        return value
    raise ConfigError(f"{where} is {value!r}, which is not of type {hint}")
