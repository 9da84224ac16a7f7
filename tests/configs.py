"""Configurations from fields by their names, whatever their groups."""

from typing import Any

from resnet_jax import fields
from resnet_jax.config import Config


def make_config(**values: Any) -> Config:
    """Config() with other values."""
    return fields.replace(Config(), **values)
