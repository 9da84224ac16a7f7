"""The configuration of a run: groups of fields with ranges and help text."""

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
    """The network."""

    model: str = "hresnet"
    """Name of the network; `resnet-jax models list` lists all available names."""
    stem: Literal["imagenet", "cifar"] | None = None
    """Stem of the network: imagenet (a 7x7 convolution and max-pooling) or cifar (a 3x3
    convolution, for small images). Defaults to the network's own."""
    shortcut: Literal["pad", "conv", "conv_bn"] | None = None
    """Kind of shortcut: pad (option A of He et al.: zero channels where the shape
    changes), conv_bn (option B: a 1x1 convolution with BatchNorm where the shape
    changes) or conv (a 1x1 convolution in every block). Defaults to the network's
    own."""
    stride_in_1x1: bool = False
    """Place the stride of a bottleneck in its first 1x1 convolution, as in the paper,
    instead of in its 3x3 convolution, as in torchvision."""
    skip: bool = True
    """Add each block's input to its output. --no-skip trains a plain network of the
    same depth."""
    norm: Literal["batch", "none"] = "batch"
    """Normalization after each convolution: batch (BatchNorm) or none, which gives
    every convolution a bias."""
    bn_momentum: float = ranged(0.1, within="[0, 1]")
    """Momentum of every BatchNorm, as in PyTorch: the weight of the new batch in the
    running statistics."""
    bn_eps: float = ranged(1e-5, within="(0, inf)")
    """Epsilon of every BatchNorm, which is added to the variance."""
    dropout: float = ranged(0.0, within="[0, 1)", alters_features=True)
    """Dropout probability of the features before the last layer; in hresnet, of the
    features after each hidden linear layer. 0 disables dropout."""
    drop_path: float = ranged(0.0, within="[0, 1)", alters_features=True)
    """Stochastic depth: probability of skipping the residual branch of the last block
    for an image during training. It decreases linearly to 0 at the first block. 0
    disables it."""
    zero_init_last: bool = False
    """Initialize the last BatchNorm weight of each block to 0, like torchvision's
    zero_init_residual."""
    width: int | None = ranged(None, at_least=1)
    """resnet9 only: number of channels of the first convolution; the other layers have
    multiples of it. Defaults to 64."""
    whiten: bool = False
    """resnet9 only: start with a fixed convolution that whitens image patches."""
    init: Literal["kaiming", "torch"] | None = None
    """Initialization of the convolutions: kaiming (He et al.) or torch (the default of
    nn.Conv2d). Defaults to the network's own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of the computation. Parameters, running statistics, logits and loss
    remain float32."""
    remat: bool = False
    """Recompute the activations of each block in the backward pass, which saves memory
    but takes more time."""


@dataclass(frozen=True)
class TransferConfig(Group):
    """Pretrained weights, and the parameters to train."""

    pretrained: str | None = ranged(None, path="as typed", resume="override")
    """Start from pretrained weights: a file or folder, torchvision's weights (imagenet
    or imagenet-v2), a Hugging Face Hub repository (hf-hub:OWNER/NAME) or
    resnet20-cifar10. By default, train from scratch."""
    weights_key: str | None = None
    """Key of the state dict in a weights file that contains several, such as model_ema.
    By default, the file must contain only one."""
    reset_head: bool = False
    """Initialize the last layer from the seed even if the pretrained one has the right
    shape."""
    freeze: str = "none"
    """Parameters to freeze: none, backbone (all but the last layer) or a regular
    expression to search for in their PyTorch names."""
    backbone_bn: Literal["update", "frozen"] = "update"
    """Mode of BatchNorm layers with frozen parameters: update (update the running
    statistics, like PyTorch in train mode) or frozen (inference mode)."""
    backbone_lr_scale: float = ranged(1.0, within="[0, inf)")
    """Learning rate of all layers but the last, as a multiple of --lr."""
    cache_features: bool = ranged(False, one_seed=True)
    """Compute the features of a frozen backbone once and train the last layer on them,
    which is much faster."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backbone_bn == "frozen" and self.freeze == "none":
            raise ConfigError("backbone_bn frozen needs --freeze")
        if self.weights_key is not None and self.pretrained is None:
            raise ConfigError("weights_key needs --pretrained")
        if self.reset_head and self.pretrained is None:
            raise ConfigError("reset_head needs --pretrained")


@dataclass(frozen=True)
class OptimConfig(Group):
    """The optimizer and the learning rate schedule."""

    optimizer: Literal["adam", "sgd", "adamw", "muon"] = "adam"
    """Optimizer: adam, sgd or adamw as in torch.optim, or muon, which uses AdamW for
    everything but the convolutions."""
    lr: float = ranged(1e-4, within="[0, inf)")
    """Peak learning rate."""
    momentum: float = ranged(0.9, within="[0, 1)")
    """Momentum for sgd and muon."""
    nesterov: bool = False
    """Use Nesterov momentum with sgd and muon."""
    weight_decay: float = ranged(0.0, within="[0, inf)")
    """Weight decay of all parameters. adam and sgd add it to the gradient (L2 penalty);
    adamw and muon decouple it, as in torch.optim."""
    norm_weight_decay: float | None = ranged(None, within="[0, inf)")
    """Weight decay of the BatchNorm parameters. Defaults to --weight-decay."""
    bias_weight_decay: float | None = ranged(None, within="[0, inf)")
    """Weight decay of the biases outside BatchNorm. Defaults to --weight-decay."""
    clip_grad: float | None = ranged(None, within="(0, inf)")
    """Clip the global norm of the gradient to this value. By default, gradients are not
    clipped."""
    ema_decay: float = ranged(0.0, within="[0, 1)")
    """Decay per update of an exponential moving average of the parameters and running
    statistics, such as 0.999. The average is then scored and exported. 0 disables
    it."""
    ema_steps: int = ranged(1, at_least=1)
    """Number of steps between updates of the moving average. If it is greater than 1,
    the average is computed as in torchvision: the decay is scaled by the batch size,
    steps and epochs, and the parameters are copied during warm-up epochs."""
    schedule: Literal["constant", "cosine", "linear", "step", "onecycle"] = "constant"
    """Learning rate schedule: constant, cosine or linear (both to 0), step (multiplied
    by --lr-gamma at each milestone) or onecycle (like torch's OneCycleLR)."""
    sched_on_updates: bool = True
    """Update the learning rate after every step. --no-sched-on-updates updates it after
    every epoch."""
    pct_start: float = ranged(0.3, within="[0, 1)")
    """Fraction of the onecycle schedule during which the learning rate increases."""
    lr_milestones: tuple[int, ...] = ()
    """Steps at which the step schedule multiplies the learning rate by --lr-gamma."""
    lr_step_size: int | None = ranged(None, at_least=1)
    """Number of epochs between decays of the step schedule, instead of
    --lr-milestones."""
    lr_gamma: float = ranged(0.1, within="[0, inf)")
    """Factor by which the step schedule multiplies the learning rate."""
    warmup_epochs: float = ranged(0.0, within="[0, inf)")
    """Length of the linear learning rate warm-up in epochs; fractions are allowed."""
    warmup_decay: float | None = ranged(None, within="(0, 1]")
    """Factor of the learning rate at the start of the warm-up, like torchvision's
    --lr-warmup-decay; cosine and linear then start after the warm-up. By default, the
    factor is 1 / (number of warm-up steps + 1)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = self.lr_milestones
        if any(step < 1 for step in steps) or list(steps) != sorted(set(steps)):
            raise ConfigError(
                f"lr_milestones {steps} must be positive step numbers in ascending "
                "order"
            )
        if self.schedule == "step" and bool(steps) == (self.lr_step_size is not None):
            raise ConfigError(
                "schedule step needs either lr_milestones or lr_step_size"
            )
        if self.warmup_decay is not None and not self.warmup_epochs:
            raise ConfigError("warmup_decay needs --warmup-epochs")
        if self.ema_steps > 1 and not self.ema_decay:
            raise ConfigError("ema_steps needs --ema-decay")


@dataclass(frozen=True)
class DevicesConfig(Group):
    """Devices and processes, and how computations run on them."""

    devices: int | None = ranged(None, at_least=1, resume="free")
    """Number of devices per process; CPU cores are divided into this many devices.
    Defaults to all devices."""
    platform: str | None = ranged(None, resume="free")
    """Platform to compute on: cpu, cuda, tpu or another that JAX supports. By default,
    JAX chooses."""
    sync_bn: bool = True
    """Compute BatchNorm statistics over the whole batch. --no-sync-bn computes them
    separately on each device."""
    grad_accum_steps: int = ranged(1, at_least=1)
    """Number of micro-batches into which a batch is split; their gradients are
    accumulated, which saves memory."""
    deterministic: bool = False
    """Use only deterministic algorithms on GPUs, which makes runs reproducible bit for
    bit."""
    debug_nans: bool = ranged(False, resume="free")
    """Stop at the first operation that produces a NaN, and name this operation. This
    slows training down.
    """
    distributed: bool = ranged(False, resume="free")
    """Join the other processes of the run, which are detected under Slurm, Open MPI,
    Kubernetes and Cloud TPU."""
    coordinator: str | None = ranged(None, resume="free")
    """HOST:PORT of the first process, if the processes are started by hand. By default,
    --distributed detects it."""
    num_processes: int | None = ranged(None, at_least=1, resume="free")
    """Number of processes, if they are started by hand. By default, --distributed
    detects it."""
    process_id: int | None = ranged(None, at_least=0, resume="free")
    """Index of this process, from 0, if the processes are started by hand. By default,
    --distributed detects it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coordinator is not None:
            host, _, port = self.coordinator.rpartition(":")
            is_port = port.isdecimal() and len(port) <= 5 and 0 < int(port) < 2**16
            if not host or not is_port:
                text = f"coordinator {self.coordinator!r} must have the form HOST:PORT"
                raise ConfigError(f"{text}, such as host0:1234")


@dataclass(frozen=True)
class RunConfig(Group):
    """Length of training, checkpoints and logs."""

    epochs: int = ranged(30, at_least=1, resume="override")
    """Number of passes over the training set."""
    max_steps: int | None = ranged(None, at_least=1, resume="override")
    """Stop after this many steps even if the epochs are not complete; the schedule then
    ends there too. By default, there is no limit."""
    num_seeds: int = ranged(1, at_least=1)
    """Number of networks to train at once in one program, with seeds --seed, --seed +
    1, and so on."""
    workdir: str = ranged("runs/hresnet", resume="free", path="as typed")
    """Run directory, to which all outputs are written. Running the same command again
    resumes the run."""
    save_every_steps: int | None = ranged(None, at_least=1, resume="override")
    """Also save checkpoints within an epoch, at this interval in steps. By default,
    they are saved only after each epoch."""
    save_every_minutes: float | None = ranged(None, at_least=0, resume="override")
    """Also save checkpoints within an epoch, at this interval in minutes. By default,
    they are saved only after each epoch."""
    keep_checkpoints: int = ranged(3, at_least=1, resume="override")
    """Number of recent checkpoints to keep. The one with the best validation accuracy
    is also kept."""
    override: bool = ranged(False, resume="free")
    """Resume a run even if its options for length, logging or checkpoints have
    changed."""
    log_every_steps: int = ranged(20, at_least=1, resume="override")
    """Number of steps after which the progress bar is updated and the loss is checked.
    Without a terminal, a line is then logged, at most once a minute."""
    log_gradients: bool = ranged(False, resume="override", one_seed=True)
    """Write statistics of each layer's gradients, activations and updates to
    layers.jsonl, at step 0 and after each epoch."""
    tensorboard: bool = ranged(False, resume="override")
    """Also write TensorBoard event files (needs the tensorboard extra)."""
    wandb: str | None = ranged(None, resume="override")
    """Also log each epoch to this Weights & Biases project (needs the wandb extra). By
    default, nothing is sent."""
    profile: bool = ranged(False, resume="free")
    """Write a JAX profiler trace of a few early steps to the run directory."""
    summary: bool = ranged(False, resume="free")
    """Print the layers, shapes, parameters and multiply-adds of the network, and
    exit."""


@dataclass(frozen=True)
class Config(Group):
    """The complete configuration of a training run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    transfer: TransferConfig = TransferConfig()
    optim: OptimConfig = OptimConfig()
    devices: DevicesConfig = DevicesConfig()
    run: RunConfig = RunConfig()
    seed: int = ranged(0, at_least=0)
    """Seed for the initialization, the order of the data and the augmentation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        combinations.check_seeds(self)
        if self.transfer.cache_features:
            combinations.check_caching(self)
