"""The configuration of a run: groups of fields, each with its range and its help."""

from dataclasses import dataclass
from typing import Literal

from resnet_jax import combinations
from resnet_jax.config_data import AugmentConfig, DataConfig
from resnet_jax.errors import ConfigError
from resnet_jax.fields import Group, ranged

__all__ = [
    "AugmentConfig",
    "Config",
    "DataConfig",
    "DevicesConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "TransferConfig",
]


@dataclass(frozen=True)
class ModelConfig(Group):
    """The network; None is the choice of the model itself."""

    model: str = "hresnet"
    """Name of the network; `resnet-jax models list` has them all."""
    stem: Literal["imagenet", "cifar"] | None = None
    """7x7 and max-pool, or 3x3 for small images."""
    shortcut: Literal["pad", "conv", "conv_bn"] | None = None
    """Shortcuts: where the shape changes He et al.'s A (pad: zero channels) or B
    (conv_bn: 1x1 convolution and BatchNorm); conv: a 1x1 convolution in each block."""
    stride_in_1x1: bool = False
    """Bottlenecks with the stride in the first 1x1 convolution, as in the paper, and
    not in the 3x3, as in torchvision."""
    skip: bool = True
    """The blocks' shortcuts; without them, a plain network of the same depth."""
    norm: Literal["batch", "none"] = "batch"
    """BatchNorm, or none: then every convolution has a bias."""
    dropout: float = ranged(0.0, within="[0, 1)", alters_features=True)
    """Fraction of the features that training sets to 0 before the last layer (hresnet:
    after each hidden linear layer)."""
    drop_path: float = ranged(0.0, within="[0, 1)", alters_features=True)
    """Stochastic depth: fraction of the images for which training skips the residual of
    the last block; of the blocks before it fewer, of the first none."""
    zero_init_last: bool = False
    """Begin with each block's last BatchNorm at 0, as torchvision's
    zero_init_residual."""
    width: int | None = ranged(None, at_least=1)
    """resnet9 only: channels of the first convolution, which the other layers multiply
    (default 64)."""
    whiten: bool = False
    """resnet9 only: a fixed first layer that whitens the patches of the images."""
    init: Literal["kaiming", "torch"] | None = None
    """Initialisation of convolutions: He et al.'s, or nn.Conv2d's default."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic; parameters, statistics, logits and loss stay float32."""
    remat: bool = False
    """Compute each block's activations again in the backward pass: less memory."""


@dataclass(frozen=True)
class TransferConfig(Group):
    """Pretrained weights, and what of them is trained."""

    pretrained: str | None = ranged(None, path="as typed", resume="override")
    """Begin from weights: a file, a folder, torchvision's (imagenet, imagenet-v2), the
    Hugging Face Hub's (hf-hub:OWNER/NAME), or resnet20-cifar10."""
    weights_key: str | None = None
    """Where in that file the weights stand, if it has several (model_ema)."""
    reset_head: bool = False
    """Draw the last layer again even if the weights have one of this shape."""
    freeze: str = "none"
    """Parameters that stay: none, backbone (all but the last layer), or a regular
    expression searched in their PyTorch names."""
    backbone_bn: Literal["update", "frozen"] = "update"
    """BatchNorm with frozen parameters: its statistics move as PyTorch's do, or it is
    in inference mode."""
    backbone_lr_scale: float = ranged(1.0, within="[0, inf)")
    """Learning rate of all but the last layer, as a multiple of lr."""
    cache_features: bool = ranged(False, one_seed=True)
    """Compute the frozen backbone's features once, and train the last layer on them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backbone_bn == "frozen" and self.freeze == "none":
            raise ConfigError("backbone_bn frozen needs --freeze, to say which")
        if self.weights_key is not None and self.pretrained is None:
            raise ConfigError("weights_key needs --pretrained, to say of which file")
        if self.reset_head and self.pretrained is None:
            raise ConfigError("reset_head needs --pretrained: without, all is new")


@dataclass(frozen=True)
class OptimConfig(Group):
    """The optimizer, and the learning rate by step."""

    optimizer: Literal["adam", "sgd", "adamw", "muon"] = "adam"
    """torch.optim's Adam, SGD or AdamW, or Muon for convolutions with AdamW for all
    else."""
    lr: float = ranged(1e-4, within="[0, inf)")
    """Peak learning rate."""
    momentum: float = ranged(0.9, within="[0, 1)")
    """Momentum of SGD and Muon."""
    nesterov: bool = False
    """Nesterov momentum in SGD and Muon."""
    weight_decay: float = ranged(0.0, within="[0, inf)")
    """L2 penalty added to the gradient of every parameter, as torch.optim does;
    decoupled in adamw and muon, as AdamW's."""
    norm_weight_decay: float | None = ranged(None, within="[0, inf)")
    """Weight decay of BatchNorm's parameters (default: weight_decay)."""
    bias_weight_decay: float | None = ranged(None, within="[0, inf)")
    """Weight decay of the other biases (default: weight_decay)."""
    clip_grad: float | None = ranged(None, within="(0, inf)")
    """The largest norm of the whole gradient."""
    ema_decay: float = ranged(0.0, within="[0, 1)")
    """Score and export a moving average of parameters and statistics that keeps this
    fraction of itself each step (such as .999)."""
    ema_steps: int = ranged(1, at_least=1)
    """Steps between updates of that average. With more than 1 it is torchvision's: the
    decay is scaled by batch size, steps and epochs, and the warm-up copies."""
    schedule: Literal["constant", "cosine", "linear", "step", "onecycle"] = "constant"
    """Learning rate by step: constant, cosine or linear to 0, lr_gamma at each
    milestone, or torch's one-cycle."""
    sched_on_updates: bool = True
    """Change the learning rate at each step; or between epochs only."""
    pct_start: float = ranged(0.3, within="[0, 1)")
    """Fraction of the one-cycle schedule in which the learning rate rises."""
    lr_milestones: tuple[int, ...] = ()
    """Steps at which the step schedule multiplies the learning rate."""
    lr_step_size: int | None = ranged(None, at_least=1)
    """Instead of milestones: epochs after which the step schedule multiplies it, again
    and again."""
    lr_gamma: float = ranged(0.1, within="[0, inf)")
    """Factor of the step schedule."""
    warmup_epochs: float = ranged(0.0, within="[0, inf)")
    """Epochs in which a factor of the schedule rises to 1."""
    warmup_decay: float | None = ranged(None, within="(0, 1]")
    """The factor with which the warm-up begins (default: a step's share); cosine and
    linear then begin after it, as in torchvision's --lr-warmup-decay."""

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = self.lr_milestones
        if any(step < 1 for step in steps) or list(steps) != sorted(set(steps)):
            raise ConfigError(f"lr_milestones {steps} are not steps in rising order")
        if self.schedule == "step" and bool(steps) == (self.lr_step_size is not None):
            raise ConfigError("schedule step needs lr_milestones or lr_step_size")
        if self.warmup_decay is not None and not self.warmup_epochs:
            raise ConfigError("warmup_decay needs --warmup-epochs")
        if self.ema_steps > 1 and not self.ema_decay:
            raise ConfigError("ema_steps needs --ema-decay")


@dataclass(frozen=True)
class DevicesConfig(Group):
    """Devices and processes, and how they compute."""

    devices: int | None = ranged(None, at_least=1, resume="free")
    """Devices of each process (default: all). CPUs are divided into this many."""
    platform: str | None = ranged(None, resume="free")
    """cpu, cuda, tpu, ... (default: JAX's choice)."""
    sync_bn: bool = True
    """BatchNorm with the statistics of the whole batch, not of each device's part."""
    grad_accum_steps: int = ranged(1, at_least=1)
    """Micro-batches that a training step computes one after the other."""
    deterministic: bool = False
    """On a GPU, only algorithms that give the same bits each time."""
    debug_nans: bool = ranged(False, resume="free")
    """Stop at the operation that makes the first NaN, and name it; slow."""
    distributed: bool = ranged(False, resume="free")
    """Join the other processes, as under Slurm, Open MPI, Kubernetes or Cloud TPU."""
    coordinator: str | None = ranged(None, resume="free")
    """HOST:PORT of the first process, to join by hand."""
    num_processes: int | None = ranged(None, at_least=1, resume="free")
    """Number of processes, to join by hand; 1 does not join."""
    process_id: int | None = ranged(None, at_least=0, resume="free")
    """Number of this process, from 0, to join by hand."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coordinator is not None:
            host, _, port = self.coordinator.rpartition(":")
            is_port = port.isdecimal() and len(port) <= 5 and 0 < int(port) < 2**16
            if not host or not is_port:
                text = f"coordinator {self.coordinator!r} is not HOST:PORT"
                raise ConfigError(f"{text}, as host0:1234 is")


@dataclass(frozen=True)
class RunConfig(Group):
    """How long to train, where, and what to keep."""

    epochs: int = ranged(30, at_least=1, resume="override")
    """Passes over the training set."""
    max_steps: int | None = ranged(None, at_least=1, resume="override")
    """End after this many steps, if the epochs do not end before."""
    num_seeds: int = ranged(1, at_least=1)
    """Train this many networks at once, with seed, seed + 1, ..., in one program."""
    workdir: str = ranged("runs/hresnet", resume="free", path="as typed")
    """The run directory."""
    save_every_steps: int | None = ranged(None, at_least=1, resume="override")
    """Save in the middle of epochs, too."""
    save_every_minutes: float | None = ranged(None, at_least=0, resume="override")
    """The same by the clock."""
    keep_checkpoints: int = ranged(3, at_least=1, resume="override")
    """Checkpoints kept: the last ones; the best by validation accuracy besides."""
    override: bool = ranged(False, resume="free")
    """Resume a run although its length or its logging was changed."""
    log_every_steps: int = ranged(20, at_least=1, resume="override")
    """Steps between updates of the progress bar and checks of the loss."""
    log_gradients: bool = ranged(False, resume="override", one_seed=True)
    """Write every layer's gradient, activation and update to layers.jsonl, at step 0
    and after each epoch."""
    tensorboard: bool = ranged(False, resume="override")
    """Write TensorBoard event files as well (needs the tensorboard extra)."""
    wandb: str | None = ranged(None, resume="override")
    """Send each epoch's numbers to this project of Weights & Biases as well (needs the
    wandb extra)."""
    profile: bool = ranged(False, resume="free")
    """Write a JAX profiler trace of some early steps into the run directory."""
    summary: bool = ranged(False, resume="free")
    """Print layers, shapes, parameters and multiply-adds, and train nothing."""


@dataclass(frozen=True)
class Config(Group):
    """Everything that decides what a training run does."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    transfer: TransferConfig = TransferConfig()
    optim: OptimConfig = OptimConfig()
    devices: DevicesConfig = DevicesConfig()
    run: RunConfig = RunConfig()
    seed: int = ranged(0, at_least=0)
    """Seed of initialisation, order of data and augmentation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        combinations.check_seeds(self)
        if self.transfer.cache_features:
            combinations.check_caching(self)
