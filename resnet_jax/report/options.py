"""Options that choose a network and the data on which to evaluate it."""

import os
from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from resnet_jax import fields
from resnet_jax.errors import ConfigError
from resnet_jax.weights.published import SHIPPED

OF_RUNS = ("checkpoint", "seed")  # fields that apply only to runs
OF_WEIGHTS = (  # fields that apply only to --weights
    *("weights_key", "stem", "shortcut", "stride_in_1x1", "bn_eps", "in_channels"),
)


@dataclass(frozen=True)
class NetworkConfig(fields.Group):
    """The network to evaluate."""

    run: Positional[str | None] = fields.ranged(None, path="as typed")
    """Run directory written by train.py, folder written by `export`, or
    resnet20-cifar10, a trained network that is included in this package."""
    checkpoint: str = "last"
    """Checkpoint of a run: last, best (by validation accuracy) or a step number."""
    seed: int | None = None
    """For a run with several seeds: the seed to score. By default, all seeds and
    their ensemble are scored."""
    weights: str | None = fields.ranged(None, path="as typed")
    """Weights to use instead of a run: a file or folder, hf-hub:OWNER/NAME, imagenet,
    imagenet-v2 or resnet20-cifar10."""
    weights_key: str | None = None
    """With --weights: key of the state dict in a file that contains several, such as
    model_ema. By default, the file must contain only one."""
    model: str | None = None
    """With --weights: name of the network. Defaults to the one that the folder
    specifies."""
    stem: Literal["imagenet", "cifar"] | None = None
    """With --weights: stem of the network. The default depends on the network."""
    shortcut: Literal["pad", "conv", "conv_bn"] | None = None
    """With --weights: kind of shortcut. The default depends on the network."""
    stride_in_1x1: bool = False
    """With --weights: place the stride of a bottleneck in its first 1x1 convolution."""
    bn_eps: float | None = fields.ranged(None, within="(0, inf)")
    """With --weights: epsilon of every BatchNorm. Defaults to the one that the folder
    specifies, or to 1e-5."""
    in_channels: Literal[1, 3] | None = None
    """With --weights: number of input channels of the network. Defaults to that of the
    data set."""


@dataclass(frozen=True)
class SubjectConfig(NetworkConfig):
    """The data and devices on which to evaluate the network."""

    title = "data"  # title of the box in --help

    dataset: str | None = None
    """Data set: cifar10, cifar10_1, cifar100, fashion_mnist, digits, folder or
    tfds:NAME. Defaults to that of the run, or to cifar10."""
    data_dir: str | None = fields.ranged(None, path="absolute")
    """Folder of images, or directory of tensorflow-datasets. Defaults to that of the
    run, or to $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    normalize: str | None = None
    """Mean and standard deviation of the input: cifar10, imagenet, half or r,g,b/r,g,b.
    Defaults to those of the run or, for bare weights, to imagenet."""
    image_size: int | None = fields.ranged(None, at_least=1)
    """Side length in pixels to which images are resized. Defaults to that of the
    run."""
    batch_size: int | None = fields.ranged(None, at_least=1)
    """Number of images per batch. Defaults to the run's --eval-batch-size, or to
    500."""
    devices: int | None = fields.ranged(None, at_least=1)
    """Number of devices to use; CPU cores are divided into this many devices. Defaults
    to all devices."""
    platform: str | None = None
    """Platform to compute on: cpu, cuda, tpu or another that JAX supports. By default,
    JAX chooses."""

    def check(self) -> None:
        """Raises ConfigError unless the options specify exactly one network."""
        if self.run is None:
            fields.refuse(self, OF_RUNS, "applies only to a run: specify its directory")
        if (self.run is None) == (self.weights is None):
            raise ConfigError("specify a run directory, or --weights FILE --model NAME")
        if (self.weights is None) != (self.model is None) and not self._says_model():
            raise ConfigError("--weights and --model must be given together")
        if self.weights is None:
            fields.refuse(
                self, OF_WEIGHTS, "needs --weights: a run specifies its own network"
            )

    def _says_model(self) -> bool:
        """Returns whether --weights is a folder or name that may imply the model."""
        source = self.weights or ""
        return source.startswith(("hf-hub:", *SHIPPED)) or os.path.isdir(source)
