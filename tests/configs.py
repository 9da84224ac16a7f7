"""Makes configurations from fields by name, regardless of their groups."""

from typing import Any

from resnet_jax import fields
from resnet_jax.config import Config


def make_config(**values: Any) -> Config:
    """Returns Config() with other values."""
    return fields.replace(Config(), **values)
