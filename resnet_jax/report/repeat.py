"""Builds, from a run's configuration, the command that repeats the run."""

import shlex
from typing import Any

from resnet_jax import fields, hosting
from resnet_jax.config import Config
from resnet_jax.recipes import RECIPES

_PATHS = ("data_dir", "class_names", "workdir")


def command(cfg: Config) -> str:
    """Returns the shortest command that trains with `cfg`: a recipe and flags.

    Fields that belong to a single invocation, such as the devices, are omitted.
    """
    found = [[name, *_flags(recipe, cfg)] for name, (_, recipe) in RECIPES.items()]
    return shlex.join([*hosting.invocation("train"), *min(found, key=len)])


def _flags(recipe: Config, cfg: Config) -> list[str]:
    """Returns the flags for the fields in which `cfg` differs from `recipe`."""
    words = []
    for (one, default), (_, value) in zip(
        fields.flat(recipe), fields.flat(cfg), strict=True
    ):
        is_free = one.metadata.get("resume") == "free" and one.name not in _PATHS
        if value != default and not is_free:
            words += _flag(one.name.replace("_", "-"), value)
    return words


def _flag(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    values = value if isinstance(value, tuple) else (value,)
    return [f"--{name}", *map(str, values)]
