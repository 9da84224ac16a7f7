"""The configuration of a run, and the recipes."""

from dataclasses import dataclass
from typing import Any, Literal

from resnet_jax import limits


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
    drop_path: float = 0.0
    """Part of the pictures of which training leaves out the last block's residual; of
    blocks before it fewer, of the first none (stochastic depth)."""
    zero_init_last: bool = False
    """Begin with each block's last BatchNorm at 0, as torchvision's
    zero_init_residual."""
    width: int | None = None
    """Of resnet9: channels of the first convolution, of which others are multiples;
    None is 64."""
    whiten: bool = False
    """Of resnet9: a fixed first layer that whitens the training pictures' patches."""
    init: Literal["kaiming", "torch"] | None = None
    """Of convolutions: He et al.'s, or nn.Conv2d's default; None is the model's own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the arithmetic; parameters, statistics, logits and loss stay float32."""

    remat: bool = False
    """Compute each block's activations again in the backward pass: less memory."""

    dataset: str = "cifar10"
    """cifar10, cifar100, digits, or folder: your own, DATA_DIR/train/CLASS/*."""
    data_dir: str | None = None
    """The folder, or tensorflow-datasets': else $TFDS_DATA_DIR, ~/tensorflow_datasets.
    """
    rebuild_data: bool = False
    """Fetch and prepare CIFAR-10 afresh, in the place of a damaged one."""
    skip_bad_images: bool = False
    """Leave out, and count, pictures of a folder that cannot be read."""
    stream: bool = False
    """Read images while training, not before, as is done where they do not fit in
    memory; of folder and CIFAR (needs the stream extra)."""
    workers: int = 4
    """Processes that read images with stream."""
    max_train_samples: int | None = None
    """Train on so many of the training pictures, always the same; None on all."""
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
    """Random crop of each picture padded with this many pixels."""
    crop_fill: Literal["black", "reflect"] = "black"
    """What it is padded with: black, or its own pixels mirrored."""
    flip: bool = False
    """Random horizontal flip."""
    flip_alternating: bool = False
    """With flip: each picture mirrored in every second epoch, in place of by chance."""
    cutout: int = 0
    """Side of a square of each picture that is set to the mean colour."""
    mixup: float = 0.0
    """Alpha of mixup: pictures and targets blended with another's, by Beta(A, A)."""
    cutmix: float = 0.0
    """Alpha of CutMix: a box from another picture. With mixup, one of both a batch."""
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
    """Pictures per training step, on all devices together."""
    accumulate: int = 1
    """Micro-batches that a training step computes one after the other."""
    bn_scope: Literal["global", "local"] = "global"
    """BatchNorm has the statistics of the whole batch, or each device's own."""
    eval_batch_size: int = 500
    """Pictures per evaluation step."""
    drop_last: bool = False
    """Drop an epoch's last partial batch instead of training on it."""
    optimizer: Literal["adam", "sgd", "adamw", "muon"] = "adam"
    """torch.optim's Adam, SGD or AdamW, or Muon for convolutions with AdamW for all
    else."""
    lr: float = 1e-4
    """Peak learning rate."""
    momentum: float = 0.9
    """Of SGD and Muon."""
    nesterov: bool = False
    """Nesterov momentum in SGD and Muon."""
    weight_decay: float = 0.0
    """L2 penalty added to the gradient of every parameter, as torch.optim does; of
    adamw and muon decoupled, as AdamW's."""
    norm_weight_decay: float | None = None
    """Weight decay of BatchNorm's parameters; None is weight_decay."""
    bias_weight_decay: float | None = None
    """Weight decay of the other biases; None is weight_decay."""
    clip_grad: float | None = None
    """The largest norm of the whole gradient."""
    ema_decay: float = 0.0
    """Score and export a moving average of parameters and statistics that keeps this
    part of itself a step (such as .999); 0 is none."""
    schedule: Literal["constant", "cosine", "linear", "step", "onecycle"] = "constant"
    """Learning rate by step: constant, cosine or linear to 0, lr_gamma at each
    milestone, or torch's one-cycle."""
    pct_start: float = 0.3
    """Part of the one-cycle schedule in which the learning rate rises."""
    lr_milestones: tuple[int, ...] = ()
    """Steps at which the step schedule multiplies the learning rate."""
    lr_gamma: float = 0.1
    """Factor of the step schedule."""
    warmup_epochs: float = 0.0
    """Epochs in which a factor of the schedule rises to 1."""
    devices: int | None = None
    """Devices of each process to use; None is all. CPUs are divided into so many."""
    platform: str | None = None
    """cpu, cuda, tpu, ...; None is JAX's choice."""
    distributed: bool = False
    """Join the other processes, as under Slurm, Open MPI, Kubernetes or Cloud TPU."""
    coordinator: str | None = None
    """HOST:PORT of the first process, to join by hand."""
    num_processes: int | None = None
    """Of the whole program, to join by hand; 1 does not join."""
    process_id: int | None = None
    """Of this process, from 0, to join by hand."""
    steps_per_call: int | None = None
    """Training steps that the device does for each call; None is 1 on CPUs, else 20."""
    deterministic: bool = False
    """On a GPU, only algorithms that give the same bits each time."""
    debug_nans: bool = False
    """Stop at the operation that makes the first NaN, and name it; slow."""
    seed: int = 0
    """Of initialisation, order of data and augmentation."""
    num_seeds: int = 1
    """Train so many networks at once, of seed, seed + 1, ..., in one program."""

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
        limits.check(self)

    def _fields(self, *names: str, **renamed: str) -> dict[str, Any]:
        """The values of fields: by their own names, and of others by an argument's."""
        fields = {**{name: name for name in names}, **renamed}
        return {argument: getattr(self, name) for argument, name in fields.items()}

    @property
    def architecture(self) -> dict[str, Any]:
        """What models.create_model takes of these fields, beside name and classes."""
        return self._fields(
            *("stem", "skip", "norm", "dropout", "drop_path", "zero_init_last"),
            *("width", "whiten", "init", "dtype", "remat"),
        )

    @property
    def optimization(self) -> dict[str, Any]:
        """What optim.make_optimizer takes of these fields."""
        return self._fields(
            *("momentum", "nesterov", "weight_decay", "norm_weight_decay"),
            *("bias_weight_decay", "clip_grad"),
            name="optimizer",
        )

    @property
    def scheduling(self) -> dict[str, Any]:
        """What optim.make_schedule takes of these fields."""
        return self._fields(
            *("lr", "pct_start", "warmup_epochs"),
            name="schedule",
            milestones="lr_milestones",
            gamma="lr_gamma",
        )

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What augment.make_augment takes of these fields, whatever the pictures."""
        return self._fields("image_size", normalization="normalize")

    @property
    def augmentation(self) -> dict[str, Any]:
        """What augment.make_augment takes of these fields for training."""
        return self._fields(
            *("crop_padding", "crop_fill", "flip", "flip_alternating"),
            "label_smoothing",
            cutout_size="cutout",
            mixup_alpha="mixup",
            cutmix_alpha="cutmix",
        )

    @property
    def numerics(self) -> dict[str, Any]:
        """What numerics.configured takes of these fields."""
        return self._fields(
            "deterministic", "debug_nans", "platform", num_devices="devices"
        )

    @property
    def processes(self) -> dict[str, Any]:
        """What distributed.joined takes of these fields."""
        return self._fields("distributed", "coordinator", "num_processes", "process_id")

    @property
    def loading(self) -> dict[str, Any]:
        """What data.load_dataset takes of these fields, beside name and folder."""
        return self._fields(
            *("image_size", "crop_pct", "skip_bad_images"), streamed="stream"
        )

    @property
    def feeding(self) -> dict[str, Any]:
        """What feed.make_feed takes of these fields."""
        return self._fields("steps_per_call", "workers")

    @property
    def ordering(self) -> dict[str, Any]:
        """What feed.Feed.train takes of these fields."""
        return self._fields("seed", "num_seeds")

    @property
    def stepping(self) -> dict[str, Any]:
        """What training.train_step takes of these fields, beside what is frozen."""
        return self._fields("accumulate", "ema_decay")

    @property
    def caching(self) -> dict[str, Any]:
        """What features.cache takes of these fields."""
        return self._fields("label_smoothing", batch_size="eval_batch_size")

    @property
    def beginning(self) -> dict[str, Any]:
        """What initial.prepare takes of these fields."""
        return self._fields("pretrained", "fresh_head", "whiten", name="model")
