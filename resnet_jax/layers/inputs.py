"""Checks of a layer's input."""

import flax.linen as nn
import jax

from resnet_jax.errors import ConfigError


def name_of(layer: nn.Module) -> str:
    """Returns the kind of a layer, with its name inside a network."""
    return " ".join(filter(None, [type(layer).__name__, ".".join(layer.path)]))


def check_images(x: jax.Array, channels: int, name: str) -> None:
    """Raises ConfigError unless x is [B, H, W, channels], as `name` requires."""
    if x.ndim == 4 and x.shape[-1] == channels:
        return
    hint = f"{channels} channels last"
    if x.ndim == 3 and x.shape[-1] == channels:
        hint = "one image is a batch of one: x[None]"
    elif x.ndim == 4 and x.shape[1] == channels:
        hint = "channels come last, not as in PyTorch: x.transpose(0, 2, 3, 1)"
    elif x.ndim == 4 and name == "the network":
        hint = f"give in_channels={x.shape[-1]} where it is made"
    raise ConfigError(
        f"{name} takes images [B, H, W, {channels}], these are {list(x.shape)}: {hint}"
    )
