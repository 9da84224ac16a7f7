"""Reads the config.json of folders that `resnet-jax export` wrote."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resnet_jax import files
from resnet_jax.config import ModelConfig
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.fields import from_json

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
_SIDES = range(1, 4097)  # valid side lengths of images, in pixels


def is_exported(path: str | Path) -> bool:
    """Returns whether `export` wrote the folder `path`, judging by its config.json."""
    try:
        info = files.read_json(Path(path) / CONFIG)
    except ValueError:
        return False
    is_ours = isinstance(info, dict) and {"preprocessing", "sha256"} <= info.keys()
    return is_ours and (Path(path) / WEIGHTS).is_file()


def read_info(directory: str | Path) -> dict[str, Any]:
    """Reads the config.json of an exported folder.

    In the result, the field "model" describes the network, even if an older version of
    this package wrote the file.

    Raises:
      DataError: if the file is missing, or `export` did not write it.
    """
    path = Path(directory) / CONFIG
    try:
        info = files.read_json(path)
        if "model" not in info:  # an older file, which timm cannot read
            info["model"] = info["architecture"]
        model, shown = info["model"], info["preprocessing"]
        model_config(model)
        sizes = [shown["size"], shown["image_size"]]
        channels, names = model.get("in_channels", 3), info["class_names"]
        known = (
            type(model["num_classes"]) is int
            and type(channels) is int
            and channels in (1, 3)  # gray or RGB
            and isinstance(names, list)
            and all(isinstance(name, str) for name in names)
            and len(names) == model["num_classes"]
            and isinstance(shown["normalize"], str)
            and isinstance(info["dataset"], str)
            and re.fullmatch("[0-9a-f]{64}", info["sha256"]) is not None
            and all(type(side) is int and side in _SIDES for side in sizes)
        )
        if not known:
            raise ValueError("some fields are not in the form that `export` writes")
    except (ConfigError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} does not describe an exported network ({error!r}): export it again"
        ) from None
    return info  # type: ignore[no-any-return]


def model_config(model: Mapping[str, Any]) -> ModelConfig:
    """Returns the configuration of an exported network.

    Args:
      model: the field "model" of config.json.

    Raises:
      KeyError: if `model` does not name a network.
      ConfigError: if an option is unknown.
    """
    others = ("num_classes", "in_channels")
    own = {name: value for name, value in model.items() if name not in others}
    return from_json(ModelConfig, {"model": own.pop("model"), **own}, "model")
