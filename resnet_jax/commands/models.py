"""List the networks, or print the layers of one network.

    resnet-jax models list
    resnet-jax models summary resnet18 --stem cifar --image-size 32

The summary shows layers, shapes, parameters and multiply-adds, all obtained without
running the network.
"""

from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from resnet_jax import fields
from resnet_jax.config import ModelConfig
from resnet_jax.errors import ConfigError


@dataclass(frozen=True)
class ModelsConfig(fields.Group):
    """What to print."""

    what: Positional[Literal["list", "summary"]]
    """list prints the names of all networks; summary prints the layers, shapes,
    parameters and multiply-adds of one network."""
    name: Positional[str | None] = None
    """With summary: name of the network."""
    stem: Literal["imagenet", "cifar"] | None = None
    """With summary: stem of the network, imagenet or cifar. Defaults to the network's
    own."""
    num_classes: int = fields.ranged(1000, at_least=0)
    """With summary: number of classes; 0 leaves out the last layer."""
    image_size: int = fields.ranged(224, at_least=1)
    """With summary: side length of the images in pixels."""
    in_channels: int = fields.ranged(3, at_least=1)
    """With summary: number of channels of the images."""


def main(options: ModelsConfig) -> None:
    """Prints the list of networks, or a table of one network's layers."""
    from resnet_jax import models

    if options.what == "list":
        names = [one.name for one, _ in fields.flat(options) if one.name != "what"]
        fields.refuse(options, names, "needs summary")
        print("\n".join(models.list_models()))
        return
    if options.name is None:
        raise ConfigError("specify a network: resnet-jax models summary resnet18")
    cfg = ModelConfig(model=options.name, stem=options.stem)
    model = models.create(cfg, options.num_classes, options.in_channels)
    side = options.image_size
    print(models.summarize(model, (side, side, options.in_channels)))
