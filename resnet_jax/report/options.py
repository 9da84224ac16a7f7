"""The options that name what is evaluated, and on what."""

import os
from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from resnet_jax import fields
from resnet_jax.errors import ConfigError
from resnet_jax.weights.published import SHIPPED

OF_RUNS = ("checkpoint", "seed")  # fields


@dataclass(frozen=True)
class SubjectConfig(fields.Group):
    """What is evaluated, and on what."""

    run: Positional[str | None] = fields.ranged(None, path="as typed")
    """A run directory, as train.py leaves it, a folder that `export` wrote, or
    resnet20-cifar10, a trained network that comes with this package."""
    checkpoint: str = "last"
    """For a run: last, best (by validation accuracy), or a step."""
    seed: int | None = None
    """For a run of several seeds: the one to score (default: each, and their
    ensemble)."""
    weights: str | None = fields.ranged(None, path="as typed")
    """Instead of a run: a weights file or a folder, hf-hub:OWNER/NAME, imagenet,
    imagenet-v2 or resnet20-cifar10."""
    weights_key: str | None = None
    """With --weights: where in the file they stand, if it has several (model_ema)."""
    model: str | None = None
    """With --weights: the name of the network (default: what a folder says)."""
    stem: Literal["imagenet", "cifar"] | None = None
    """With --weights: the stem (default: the model's own)."""
    shortcut: Literal["pad", "conv", "conv_bn"] | None = None
    """With --weights: the shortcuts (default: the model's own)."""
    stride_in_1x1: bool = False
    """With --weights: bottlenecks have their stride in the first convolution."""
    in_channels: Literal[1, 3] | None = None
    """With --weights: channels of the network's input (default: the data's)."""
    dataset: str | None = None
    """cifar10, cifar10_1, cifar100, fashion_mnist, digits, folder or tfds:NAME
    (default: the run's own, else cifar10)."""
    data_dir: str | None = fields.ranged(None, path="absolute")
    """A tensorflow-datasets directory or the folder (default: the run's own, else as in
    training)."""
    normalize: str | None = None
    """cifar10, imagenet, half or mean and std as r,g,b/r,g,b (default: the run's own,
    for bare weights imagenet)."""
    image_size: int | None = fields.ranged(None, at_least=1)
    """Resize images to this side (default: the run's own)."""
    batch_size: int | None = fields.ranged(None, at_least=1)
    """Images at a time (default: the run's eval_batch_size, else 500)."""
    devices: int | None = fields.ranged(None, at_least=1)
    """Devices to use (default: all). CPUs are divided into this many."""
    platform: str | None = None
    """cpu, cuda, tpu, ... (default: JAX's choice)."""

    def check(self) -> None:
        """Raises ConfigError unless this names one network, and nothing besides."""
        if self.run is None:
            fields.refuse(self, OF_RUNS, "is a run's: name its directory")
        if (self.run is None) == (self.weights is None):
            raise ConfigError("name a run directory, or --weights FILE --model NAME")
        if (self.weights is None) != (self.model is None) and not self._says_model():
            raise ConfigError("--weights and --model go together")
        if self.weights is None:
            own = ["weights_key", "stem", "shortcut", "stride_in_1x1", "in_channels"]
            fields.refuse(self, own, "goes with --weights: a run has its own")

    def _says_model(self) -> bool:
        """Whether the weights are a folder or a name, which may say the network."""
        source = self.weights or ""
        return source.startswith(("hf-hub:", *SHIPPED)) or os.path.isdir(source)
