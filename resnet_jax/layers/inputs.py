"""Checks the inputs of layers."""

import flax.linen as nn
import jax

from resnet_jax.errors import ConfigError


def name_of(layer: nn.Module) -> str:
    """Returns the type of a layer, followed by its path if it is part of a network."""
    return " ".join(filter(None, [type(layer).__name__, ".".join(layer.path)]))


def check_images(x: jax.Array, channels: int, name: str) -> None:
    """Raises ConfigError unless x has the shape [B, H, W, channels].

    The error message refers to the layer or network as `name`.
    """
    if x.ndim == 4 and x.shape[-1] == channels:
        return
    hint = f"put the {channels} channels last"
    if x.ndim == 3 and x.shape[-1] == channels:
        hint = "add a batch axis to a single image: x[None]"
    elif x.ndim == 4 and x.shape[1] == channels:
        hint = "channels come last, unlike in PyTorch: x.transpose(0, 2, 3, 1)"
    elif x.ndim == 4 and name == "the network":
        hint = f"create it with in_channels={x.shape[-1]}"
    raise ConfigError(
        f"{name} expects images [B, H, W, {channels}], got {list(x.shape)}: {hint}"
    )


def check_size(name: str, x: jax.Array) -> None:
    """Raises ConfigError if the images x are too small for the network `name`."""
    if min(x.shape[1:3]) < 8:
        raise ConfigError(
            f"{name} halves the image size three times: {x.shape[1]}x{x.shape[2]} is "
            "too small; use 8x8 or larger"
        )
