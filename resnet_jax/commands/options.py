"""The command line of evaluate.py."""

from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from resnet_jax.errors import ConfigError


@dataclass(frozen=True)
class EvaluateConfig:
    """Score a run, an exported folder or bare weights on the test pictures."""

    run: Positional[str | None] = None
    """A run directory, as train.py leaves it, or a folder that --export wrote."""
    checkpoint: str = "last"
    """Of a run: last, best (by validation accuracy), or a step."""
    seed: int | None = None
    """Of a run of several seeds: the one to score; None is each, and their ensemble."""
    weights: str | None = None
    """Instead of a run: a .safetensors or .pth file of the network --model."""
    model: str | None = None
    """With --weights: the name of the network."""
    stem: Literal["imagenet", "cifar"] | None = None
    """With --weights: the stem; None is the model's own."""
    dataset: str | None = None
    """cifar10, cifar100, digits or folder; None is the run's own, else cifar10."""
    data_dir: str | None = None
    """A tensorflow-datasets directory or the folder; else the run's own, else as in
    training."""
    normalize: str | None = None
    """cifar10, imagenet, half or mean and std as r,g,b/r,g,b; None is the run's own,
    for bare weights imagenet."""
    image_size: int | None = None
    """Resize pictures to this side; None is the run's own."""
    batch_size: int | None = None
    """Pictures at a time; None is the run's eval_batch_size, else 500."""
    devices: int | None = None
    """Devices to use; None is all. CPUs are divided into so many."""
    platform: str | None = None
    """cpu, cuda, tpu, ...; None is JAX's choice."""
    tta: bool = False
    """Score with test-time augmentation as well: the mean over each picture, shifted by
    a pixel, and mirrored."""
    report: bool = False
    """Write RUN/report: one page of curves, confusion, predictions, and the network."""
    images: tuple[str, ...] = ()
    """Classify these files instead: the five most likely classes of each."""
    saliency: bool = False
    """With --images: save where each class comes from (Grad-CAM) in RUN/saliency."""
    compare: tuple[str, ...] = ()
    """Instead of scoring: one table and one page of these run directories."""
    page: str = "comparison.html"
    """With --compare: the page."""
    output: str | None = None
    """Write all figures to this JSON file."""
    export: str | None = None
    """Write the network to this folder, for PyTorch too: weights, config.json, a card.
    """

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"batch_size {self.batch_size} is too small: at least 1")
        if self.image_size is not None and self.image_size < 1:
            raise ConfigError(f"image_size {self.image_size} is too small: at least 1")
        if self.devices is not None and self.devices < 1:
            raise ConfigError(f"devices {self.devices} is too small: at least 1")
        if self.tta and (self.images or self.compare):
            raise ConfigError("--tta scores a data set: not with --images or --compare")
        if self.compare:
            if self.run is not None or self.weights is not None:
                raise ConfigError("--compare takes run directories and nothing else")
            return
        if self.report and self.run is None:
            raise ConfigError("--report is a run's: name its directory")
        if self.seed is not None and self.run is None:
            raise ConfigError("--seed is a run's: name its directory")
        if self.saliency and not self.images:
            raise ConfigError("--saliency goes with --images")
        if (self.run is None) == (self.weights is None):
            raise ConfigError("name a run directory, or --weights FILE --model NAME")
        if (self.weights is None) != (self.model is None):
            raise ConfigError("--weights and --model go together")
