"""The configuration of a run, and the recipes."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from resnet_jax.errors import ConfigError


@dataclass(frozen=True)
class Config:
    """Everything that decides what a training run does."""

    model: str = "hresnet"
    """Name of the network; resnet_jax.list_models() has them all."""
    stem: Literal["imagenet", "cifar"] | None = None
    """7x7 and max-pool, or 3x3 for small pictures; None is the model's own."""
    skip: bool = True
    """The blocks' shortcuts; without them, a plain network of the same depth."""
    norm: Literal["batch", "none"] = "batch"
    """BatchNorm, or none: then every convolution has a bias."""
    dropout: float = 0.0
    """Part of the features that training sets to 0 before the last layer (hresnet:
    after each hidden linear layer)."""
    init: Literal["kaiming", "torch"] | None = None
    """Of convolutions: He et al.'s, or nn.Conv2d's default; None is the model's own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the arithmetic; parameters, statistics, logits and loss stay float32."""

    dataset: str = "cifar10"
    """cifar10, cifar100, digits, or folder: your own, DATA_DIR/train/CLASS/*."""
    data_dir: str | None = None
    """The folder, or tensorflow-datasets': else $TFDS_DATA_DIR, ~/tensorflow_datasets.
    """
    rebuild_data: bool = False
    """Fetch and prepare CIFAR-10 afresh, in the place of a damaged one."""
    skip_bad_images: bool = False
    """Leave out, and count, pictures of a folder that cannot be read."""
    max_train_samples: int | None = None
    """Train on so many of the training pictures, chosen by the seed; None on all."""
    max_test_samples: int | None = None
    """Score so many of the test pictures each epoch; evaluate.py scores all."""
    validation_split: float = 0.0
    """Fraction of the training set held out and scored each epoch."""
    normalize: str | None = None
    """cifar10, imagenet, half (.5/.25), or mean and std as r,g,b/r,g,b; None is that of
    the pretrained weights, else cifar10."""
    image_size: int | None = None
    """Resize pictures to this side on the device; None leaves them (folder: 224)."""
    crop_pct: float = 0.875
    """Of a folder's pictures: the part of the resized shorter side that is kept."""
    crop_padding: int = 0
    """Random crop of each picture padded with this many black pixels."""
    flip: bool = False
    """Random horizontal flip."""
    label_smoothing: float = 0.0
    """Mass of the target that is spread over all classes."""

    pretrained: str | None = None
    """Begin from a weights file, an exported folder, or torchvision's: imagenet."""
    fresh_head: bool = False
    """Draw the last layer anew even where the weights have one of this shape."""
    freeze: str = "none"
    """Parameters that stay: none, backbone (all but the last layer), or a regular
    expression searched in their PyTorch names."""
    backbone_bn: Literal["update", "frozen"] = "update"
    """BatchNorm with frozen parameters: its statistics move as PyTorch's do, or it is
    in inference mode."""
    backbone_lr_scale: float = 1.0
    """The learning rate of all but the last layer, as a multiple of lr."""
    cache_features: bool = False
    """Compute the frozen backbone's features once, and train the last layer on them."""

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
    norm_weight_decay: float | None = None
    """Weight decay of BatchNorm's parameters; None is weight_decay."""
    bias_weight_decay: float | None = None
    """Weight decay of the other biases; None is weight_decay."""
    schedule: Literal["constant", "cosine", "step", "onecycle"] = "constant"
    """Learning rate by step: constant, cosine to 0, lr_gamma at each milestone, or
    torch's one-cycle."""
    pct_start: float = 0.3
    """Part of the one-cycle schedule in which the learning rate rises."""
    lr_milestones: tuple[int, ...] = ()
    """Steps at which the step schedule multiplies the learning rate."""
    lr_gamma: float = 0.1
    """Factor of the step schedule."""
    deterministic: bool = False
    """On a GPU, only algorithms that give the same bits each time."""
    debug_nans: bool = False
    """Stop at the operation that makes the first NaN, and name it; slow."""
    seed: int = 0
    """Of initialisation, order of data and augmentation."""

    workdir: str = "runs/hresnet"
    """The run directory."""
    save_every_steps: int | None = None
    """Save in the middle of epochs, too."""
    save_every_minutes: float | None = None
    """The same by the clock."""
    keep: int = 3
    """Checkpoints kept: the last ones; the best by validation accuracy besides."""
    override: bool = False
    """Resume a run although epochs, max_steps, keep or logging were changed."""
    log_every_steps: int = 20
    """Steps between updates of the progress bar and checks of the loss."""
    log_gradients: bool = False
    """Write every layer's gradient, activation and update to layers.jsonl, at step 0
    and after each epoch."""
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
            ("dropout", 0.0, 1.0),
            ("weight_decay", 0.0, math.inf),
            ("label_smoothing", 0.0, 1.0),
            ("validation_split", 0.0, 1.0),
            ("lr_gamma", 0.0, math.inf),
            ("pct_start", 0.0, 1.0),
            ("norm_weight_decay", 0.0, math.inf),
            ("bias_weight_decay", 0.0, math.inf),
            ("backbone_lr_scale", 0.0, math.inf),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value < high:
                raise ConfigError(f"{name} {value} is not in [{low:g}, {high:g})")
        for name, least in (
            ("epochs", 1),
            ("max_steps", 1),
            ("max_train_samples", 1),
            ("max_test_samples", 1),
            ("batch_size", 1),
            ("eval_batch_size", 1),
            ("image_size", 1),
            ("crop_padding", 0),
            ("log_every_steps", 1),
            ("keep", 1),
            ("save_every_steps", 1),
            ("save_every_minutes", 0.0),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} {value} is too small: at least {least}")
        if self.image_size is not None and self.image_size > 4096:
            raise ConfigError(f"image_size {self.image_size} is too large: up to 4096")
        if self.seed >= 2**32:
            raise ConfigError(f"seed {self.seed} is too large: below 2**32")
        if not 0.0 < self.crop_pct <= 1.0:
            raise ConfigError(f"crop_pct {self.crop_pct} is not in (0, 1]")
        steps = self.lr_milestones
        if any(step < 1 for step in steps) or list(steps) != sorted(set(steps)):
            raise ConfigError(f"lr_milestones {steps} are not steps in rising order")
        if self.schedule == "step" and not steps:
            raise ConfigError("schedule step needs lr_milestones")
        if self.backbone_bn == "frozen" and self.freeze == "none":
            raise ConfigError("backbone_bn frozen needs --freeze, to say which")
        if self.fresh_head and self.pretrained is None:
            raise ConfigError("fresh_head needs --pretrained: without, all is fresh")
        if self.cache_features:
            frozen = self.freeze == "backbone" and self.backbone_bn == "frozen"
            if not frozen or self.crop_padding or self.flip or self.dropout:
                raise ConfigError(
                    "cache_features needs features that do not change: --freeze "
                    "backbone --backbone-bn frozen, without --crop-padding, --flip and "
                    "--dropout"
                )
            if self.log_gradients:
                raise ConfigError(
                    "log_gradients has no layers where features are cached"
                )

    @property
    def architecture(self) -> dict[str, Any]:
        """What models.create_model takes of these fields, beside name and classes."""
        return {
            "stem": self.stem,
            "skip": self.skip,
            "norm": self.norm,
            "dropout": self.dropout,
            "init": self.init,
            "dtype": self.dtype,
        }

    @property
    def optimization(self) -> dict[str, Any]:
        """What optim.make_optimizer takes of these fields."""
        return {
            "name": self.optimizer,
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "weight_decay": self.weight_decay,
            "norm_weight_decay": self.norm_weight_decay,
            "bias_weight_decay": self.bias_weight_decay,
        }

    @property
    def scheduling(self) -> dict[str, Any]:
        """What optim.make_schedule takes of these fields."""
        return {
            "name": self.schedule,
            "lr": self.lr,
            "milestones": self.lr_milestones,
            "gamma": self.lr_gamma,
            "pct_start": self.pct_start,
        }

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What augment.make_augment takes of these fields, whatever the pictures."""
        return {"normalization": self.normalize, "image_size": self.image_size}

    @property
    def numerics(self) -> dict[str, Any]:
        """What numerics.configured takes of these fields."""
        return {"deterministic": self.deterministic, "debug_nans": self.debug_nans}

    @property
    def loading(self) -> dict[str, Any]:
        """What data.load_dataset takes of these fields, beside name and folder."""
        return {
            "image_size": self.image_size,
            "crop_pct": self.crop_pct,
            "skip_bad_images": self.skip_bad_images,
        }

    @property
    def adoption(self) -> dict[str, Any]:
        """What hub.adopt takes of these fields."""
        return {
            "source": self.pretrained,
            "name": self.model,
            "fresh_head": self.fresh_head,
        }

    @property
    def augmentation(self) -> dict[str, Any]:
        """What augment.make_augment takes of these fields for training."""
        return {
            "crop_padding": self.crop_padding,
            "flip": self.flip,
            "label_smoothing": self.label_smoothing,
        }
