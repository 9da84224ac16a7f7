"""A run's configuration as JSON, and back."""

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any, Literal

from resnet_jax import files
from resnet_jax.config import Config
from resnet_jax.errors import ConfigError


def to_json(cfg: Config) -> str:
    """`cfg` as JSON, in the order of its fields."""
    return json.dumps(dataclasses.asdict(cfg), indent=2) + "\n"


def read_config(path: Path) -> Config:
    """The Config that was written to `path`.

    Raises:
      ConfigError: the file is missing, is not JSON, or has unknown or ill-typed fields.
    """
    try:
        values = files.read_json(path)
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read as a run's config: {error}") from None
    known = {field.name for field in dataclasses.fields(Config)}
    if not isinstance(values, dict) or set(values) - known:
        raise ConfigError(f"{path} is not the config of a run of this version")
    typed = {n: of_type(n, value, f"{path}: {n}") for n, value in values.items()}
    return Config(**typed)


def of_type(name: str, value: Any, where: str) -> Any:
    """`value`, as JSON has it, in the type of the field `name`.

    Raises:
      ConfigError: it has another; the message begins with `where`.
    """
    return _typed(value, typing.get_type_hints(Config)[name], where)


def _typed(value: Any, hint: Any, where: str) -> Any:
    """`value` from JSON as the type `hint`."""
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
            return float(value)
    elif type(value) is hint:
        return value
    raise ConfigError(f"{where} is {value!r}, not {hint}")
