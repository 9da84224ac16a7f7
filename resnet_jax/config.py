"""The configuration of a run, and the recipes."""

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from resnet_jax.errors import ConfigError


@dataclass(frozen=True)
class Config:
    """Everything that decides what a training run does."""

    model: str = "hresnet"
    """Name of the network; resnet_jax.list_models() has them all."""
    stem: Literal["imagenet", "cifar"] | None = None
    """7x7 and max-pool, or 3x3 for small pictures; None is the model's own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the arithmetic; parameters, statistics, logits and loss stay float32."""

    dataset: str = "cifar10"
    """cifar10, cifar100 or digits."""
    data_dir: str | None = None
    """Of tensorflow-datasets; else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    validation_split: float = 0.0
    """Fraction of the training set held out and scored each epoch."""
    normalize: str = "cifar10"
    """cifar10, imagenet, half (.5/.25), or mean and std as r,g,b/r,g,b."""
    image_size: int | None = None
    """Resize pictures to this side on the device; None leaves them."""
    crop_padding: int = 0
    """Random crop of each picture padded with this many black pixels."""
    flip: bool = False
    """Random horizontal flip."""
    label_smoothing: float = 0.0
    """Mass of the target that is spread over all classes."""

    epochs: int = 30
    """Passes over the training set."""
    max_steps: int | None = None
    """End after this many steps, if the epochs do not end before."""
    batch_size: int = 128
    """Pictures per training step."""
    eval_batch_size: int = 500
    """Pictures per evaluation step."""
    drop_last: bool = False
    """Drop an epoch's last partial batch instead of training on it."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """torch.optim's Adam or SGD."""
    lr: float = 1e-4
    """Peak learning rate."""
    momentum: float = 0.9
    """Of SGD."""
    nesterov: bool = False
    """Nesterov momentum in SGD."""
    weight_decay: float = 0.0
    """L2 penalty added to the gradient of every parameter, as torch.optim does."""
    schedule: Literal["constant", "cosine", "step"] = "constant"
    """Learning rate by step: constant, cosine to 0, or lr_gamma at each milestone."""
    lr_milestones: tuple[int, ...] = ()
    """Steps at which the step schedule multiplies the learning rate."""
    lr_gamma: float = 0.1
    """Factor of the step schedule."""
    seed: int = 0
    """Of initialisation, order of data and augmentation."""

    workdir: str = "runs/hresnet"
    """The run directory."""
    keep: int = 3
    """Checkpoints kept: the last ones; the best by validation accuracy besides."""
    override: bool = False
    """Resume a run although epochs, max_steps, keep or logging were changed."""
    log_every_steps: int = 20
    """Steps between updates of the progress bar and checks of the loss."""
    tensorboard: bool = False
    """Write TensorBoard event files as well (needs the tensorboard extra)."""
    profile: bool = False
    """Write a JAX profiler trace of some early steps into the run directory."""
    summary: bool = False
    """Print layers, shapes, parameters and multiply-adds, and train nothing."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("lr", 0.0, math.inf),
            ("momentum", 0.0, 1.0),
            ("weight_decay", 0.0, math.inf),
            ("label_smoothing", 0.0, 1.0),
            ("validation_split", 0.0, 1.0),
            ("lr_gamma", 0.0, math.inf),
        ):
            value = getattr(self, name)
            if not low <= value < high:
                raise ConfigError(f"{name} {value} is not in [{low:g}, {high:g})")
        for name, least in (
            ("epochs", 1),
            ("max_steps", 1),
            ("batch_size", 1),
            ("eval_batch_size", 1),
            ("image_size", 1),
            ("crop_padding", 0),
            ("log_every_steps", 1),
            ("keep", 1),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} {value} is too small: at least {least}")
        if self.seed >= 2**32:
            raise ConfigError(f"seed {self.seed} is too large: below 2**32")
        steps = self.lr_milestones
        if any(step < 1 for step in steps) or list(steps) != sorted(set(steps)):
            raise ConfigError(f"lr_milestones {steps} are not steps in rising order")
        if self.schedule == "step" and not steps:
            raise ConfigError("schedule step needs lr_milestones")

    @property
    def optimization(self) -> dict[str, Any]:
        """What optim.make_optimizer takes of these fields."""
        return {
            "name": self.optimizer,
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "weight_decay": self.weight_decay,
        }

    @property
    def scheduling(self) -> dict[str, Any]:
        """What optim.make_schedule takes of these fields."""
        return {
            "name": self.schedule,
            "lr": self.lr,
            "milestones": self.lr_milestones,
            "gamma": self.lr_gamma,
        }

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What augment.make_augment takes of these fields, whatever the pictures."""
        return {"normalization": self.normalize, "image_size": self.image_size}

    @property
    def augmentation(self) -> dict[str, Any]:
        """What augment.make_augment takes of these fields for training."""
        return {
            "crop_padding": self.crop_padding,
            "flip": self.flip,
            "label_smoothing": self.label_smoothing,
        }


# Fields of one invocation, not of the run: a resume may have them different.
TRANSIENT = frozenset({"data_dir", "workdir", "override", "profile", "summary"})
# Fields that --override lets through: how far a run goes (a cosine stretches with it)
# and what it shows and keeps.
OVERRIDABLE = frozenset(
    {"epochs", "max_steps", "keep", "log_every_steps", "tensorboard", "eval_batch_size"}
)


@dataclass(frozen=True)
class EvaluateConfig:
    """Score a run on the test pictures; everything else comes with the run."""

    run: str
    """A run directory, as train.py leaves it."""
    checkpoint: str = "last"
    """last, best (by validation accuracy), or a step."""
    batch_size: int | None = None
    """Pictures at a time; None is the run's eval_batch_size."""
    data_dir: str | None = None
    """A tensorflow-datasets directory; else the run's own, else as in training."""
    output: str | None = None
    """Write all figures to this JSON file."""

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"batch_size {self.batch_size} is too small: at least 1")


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """{field: (old, new)} of the fields that belong to the run and differ."""
    pairs = {
        field.name: (getattr(old, field.name), getattr(new, field.name))
        for field in dataclasses.fields(Config)
        if field.name not in TRANSIENT
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def to_json(cfg: Config) -> str:
    """`cfg` as JSON, in the order of its fields."""
    return json.dumps(dataclasses.asdict(cfg), indent=2) + "\n"


def read_config(path: Path) -> Config:
    """The Config that was written to `path`.

    Raises:
      ConfigError: the file is missing, is not JSON, or has unknown or ill-typed fields.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as a run's config: {error}") from None
    hints = typing.get_type_hints(Config)
    if not isinstance(values, dict) or set(values) - set(hints):
        raise ConfigError(f"{path} is not the config of a run of this version")
    for name, value in values.items():
        values[name] = _typed(value, hints[name], f"{path}: {name}")
    return Config(**values)


def _typed(value: Any, hint: Any, where: str) -> Any:
    """`value` from JSON as the type `hint`."""
    options = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin is types.UnionType or origin is typing.Union:
        if value is None:
            return None
        return _typed(value, options[0], where)
    if origin is Literal:
        if value in options:
            return value
    elif origin is tuple:
        if isinstance(value, list):
            return tuple(_typed(item, options[0], where) for item in value)
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif type(value) is hint:
        return value
    raise ConfigError(f"{where} is {value!r}, not {hint}")
