"""The options that name what is evaluated, and on what."""

from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from resnet_jax import fields
from resnet_jax.errors import ConfigError

OF_RUNS = ("checkpoint", "seed")  # fields


@dataclass(frozen=True)
class SubjectConfig(fields.Group):
    """What is evaluated, and on what."""

    run: Positional[str | None] = fields.ranged(None, path="as typed")
    """A run directory, as train.py leaves it, or a folder that `export` wrote."""
    checkpoint: str = "last"
    """For a run: last, best (by validation accuracy), or a step."""
    seed: int | None = None
    """For a run of several seeds: the one to score (default: each, and their
    ensemble)."""
    weights: str | None = fields.ranged(None, path="as typed")
    """Instead of a run: a .safetensors or .pth file of the network --model."""
    model: str | None = None
    """With --weights: the name of the network."""
    stem: Literal["imagenet", "cifar"] | None = None
    """With --weights: the stem (default: the model's own)."""
    dataset: str | None = None
    """cifar10, cifar100, fashion_mnist, digits or folder (default: the run's own, else
    cifar10)."""
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
        if (self.weights is None) != (self.model is None):
            raise ConfigError("--weights and --model go together")
        if self.weights is None:
            fields.refuse(self, ["stem"], "goes with --weights: a run has its own")
