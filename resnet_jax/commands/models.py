"""The networks by name, and what they are made of.

    resnet-jax models list
    resnet-jax models summary resnet18 --stem cifar --image-size 32

Nothing is computed: the summary has shapes, parameters and multiply-adds.
"""

from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from resnet_jax import fields
from resnet_jax.config import ModelConfig
from resnet_jax.errors import ConfigError


@dataclass(frozen=True)
class ModelsConfig(fields.Group):
    """The networks by name, and what they are made of."""

    what: Positional[Literal["list", "summary"]]
    """The names, or the layers, shapes, parameters and multiply-adds of one."""
    name: Positional[str | None] = None
    """With summary: the name of the network."""
    stem: Literal["imagenet", "cifar"] | None = None
    """The stem (default: the model's own)."""
    num_classes: int = fields.ranged(1000, at_least=0)
    """Width of the logits; 0 for features."""
    image_size: int = fields.ranged(224, at_least=1)
    """Side of the images."""
    in_channels: int = fields.ranged(3, at_least=1)
    """Channels of the images."""


def main(options: ModelsConfig) -> None:
    """Prints the list of networks, or the table of one."""
    from resnet_jax import models

    if options.what == "list":
        names = [one.name for one, _ in fields.flat(options) if one.name != "what"]
        fields.refuse(options, names, "goes with summary")
        print("\n".join(models.list_models()))
        return
    if options.name is None:
        raise ConfigError("name a network: resnet-jax models summary resnet18")
    cfg = ModelConfig(model=options.name, stem=options.stem)
    model = models.create(cfg, options.num_classes, options.in_channels)
    side = options.image_size
    print(models.summarize(model, (side, side, options.in_channels)))
