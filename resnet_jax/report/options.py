"""Options that choose a network and the data to evaluate it on."""

import os
from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from resnet_jax import fields
from resnet_jax.errors import ConfigError
from resnet_jax.weights.published import SHIPPED

OF_RUNS = ("checkpoint", "seed")  # fields that only a run has


@dataclass(frozen=True)
class NetworkConfig(fields.Group):
    """The network to evaluate."""

    run: Positional[str | None] = fields.ranged(None, path="as typed")
    """Run directory that train.py wrote, folder that `export` wrote, or
    resnet20-cifar10, a trained network that comes with this package."""
    checkpoint: str = "last"
    """For a run: last, best (by validation accuracy) or a step."""
    seed: int | None = None
    """For a run of several seeds: the one to score. If not given, each of them and
    their ensemble."""
    weights: str | None = fields.ranged(None, path="as typed")
    """Weights to use instead of a run: a file or folder, hf-hub:OWNER/NAME, imagenet,
    imagenet-v2 or resnet20-cifar10."""
    weights_key: str | None = None
    """With --weights: key of the state dict in a file that holds several, such as
    model_ema. If not given, the file must hold one."""
    model: str | None = None
    """With --weights: name of the network. If not given, the one that the folder
    names."""
    stem: Literal["imagenet", "cifar"] | None = None
    """With --weights: stem of the network. If not given, the network's own."""
    shortcut: Literal["pad", "conv", "conv_bn"] | None = None
    """With --weights: kind of shortcut. If not given, the network's own."""
    stride_in_1x1: bool = False
    """With --weights: the stride of a bottleneck is in its first 1x1 convolution."""
    in_channels: Literal[1, 3] | None = None
    """With --weights: input channels of the network. If not given, those of the data
    set."""


@dataclass(frozen=True)
class SubjectConfig(NetworkConfig):
    """The data to evaluate it on, and the devices."""

    title = "data"  # of the box in --help

    dataset: str | None = None
    """Data set: cifar10, cifar10_1, cifar100, fashion_mnist, digits, folder or
    tfds:NAME. If not given, that of the run, or cifar10."""
    data_dir: str | None = fields.ranged(None, path="absolute")
    """Folder of images, or directory of tensorflow-datasets. If not given, that of the
    run, or $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    normalize: str | None = None
    """Mean and standard deviation of the input: cifar10, imagenet, half or r,g,b/r,g,b.
    If not given, those of the run; for bare weights, imagenet."""
    image_size: int | None = fields.ranged(None, at_least=1)
    """Side of the images in pixels, to which they are resized. If not given, that of
    the run."""
    batch_size: int | None = fields.ranged(None, at_least=1)
    """Number of images of a batch. If not given, the run's --eval-batch-size, or
    500."""
    devices: int | None = fields.ranged(None, at_least=1)
    """Number of devices to use; CPU cores are divided into this many. If not given, all
    devices."""
    platform: str | None = None
    """Platform to compute on: cpu, cuda, tpu or another of JAX's. If not given, JAX
    chooses."""

    def check(self) -> None:
        """Raises ConfigError unless the options name exactly one network."""
        if self.run is None:
            fields.refuse(self, OF_RUNS, "applies only to a run: name its directory")
        if (self.run is None) == (self.weights is None):
            raise ConfigError("name a run directory, or --weights FILE --model NAME")
        if (self.weights is None) != (self.model is None) and not self._says_model():
            raise ConfigError("--weights and --model must be given together")
        if self.weights is None:
            own = ["weights_key", "stem", "shortcut", "stride_in_1x1", "in_channels"]
            fields.refuse(self, own, "needs --weights: a run has its own")

    def _says_model(self) -> bool:
        """Whether the weights are a folder or a name that may specify the network."""
        source = self.weights or ""
        return source.startswith(("hf-hub:", *SHIPPED)) or os.path.isdir(source)
