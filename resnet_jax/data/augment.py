"""Augmentation on the device: uint8 images and labels to network inputs and targets."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from resnet_jax.data import mixing
from resnet_jax.errors import ConfigError

# (key, images, labels, step=0) to (inputs, targets), see make_augment.
Augment = Callable[..., tuple[jax.Array, jax.Array]]
Fill = Literal["black", "reflect"]

# Mean and standard deviation of the channels, pictures scaled to [0, 1].
NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),  # the tutorial's
}


def parse_normalization(text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of three channels from a name or from "r,g,b/r,g,b".

    Raises:
      ConfigError: neither a known name nor such numbers.
    """
    if text in NORMALIZATIONS:
        return NORMALIZATIONS[text]
    try:
        mean, std = (tuple(map(float, part.split(","))) for part in text.split("/"))
        if len(mean) == len(std) == 3 and min(std) > 0:
            return mean, std
    except ValueError:
        pass
    raise ConfigError(
        f"normalize {text!r}: one of {', '.join(NORMALIZATIONS)}, or mean and std as "
        "r,g,b/r,g,b of pictures scaled to [0, 1]"
    )


def normalize(images: jax.Array, *, mean: Any, std: Any) -> jax.Array:
    """(images / 255 - mean) / std in float32, as ToTensor and Normalize compute it."""
    x = images.astype(jnp.float32) / 255
    x = x - jnp.asarray(mean, jnp.float32).reshape(1, 1, 1, -1)
    return x / jnp.asarray(std, jnp.float32).reshape(1, 1, 1, -1)


def resize(x: jax.Array, size: int | None) -> jax.Array:
    """Bilinear, antialiased as torchvision's: x [B, H, W, C] to [B, size, size, C]."""
    if size is None or x.shape[1:3] == (size, size):
        return x
    shape = (x.shape[0], size, size, x.shape[3])
    return jax.image.resize(x, shape, "bilinear", antialias=True)


def random_crop(
    key: jax.Array, images: jax.Array, padding: int, fill: Fill = "black"
) -> jax.Array:
    """A random window of each padded picture: RandomCrop(size, padding).

    It is padded with black, or with its own pixels mirrored (padding_mode="reflect").
    """
    batch, height, width, channels = images.shape
    edge = (padding, padding)
    mode = "reflect" if fill == "reflect" else "constant"
    padded = jnp.pad(images, ((0, 0), edge, edge, (0, 0)), mode)
    offsets = jax.random.randint(key, (batch, 2), 0, 2 * padding + 1)

    def crop(image: jax.Array, offset: jax.Array) -> jax.Array:
        start = (offset[0], offset[1], 0)
        return jax.lax.dynamic_slice(image, start, (height, width, channels))

    return jax.vmap(crop)(padded, offsets)


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Each picture mirrored left to right with probability one half."""
    flipped = jax.random.bernoulli(key, shape=(images.shape[0], 1, 1, 1))
    return jnp.where(flipped, images[:, :, ::-1, :], images)


def alternating_flip(images: jax.Array, epoch: jax.Array) -> jax.Array:
    """Each picture mirrored in every second epoch; one half begins, by its pixels.

    So two epochs show both sides of every picture, where random flips show a half of
    them from one side alone. After Jordan 2024 (airbench), whose half is drawn.
    """
    # Odd multipliers, of every bit of a sum of bytes, spread over the pixels.
    weights = 2 * jnp.arange(images[0].size, dtype=jnp.uint32) + 1
    pixels = images.reshape(len(images), -1).astype(jnp.uint32)
    sums = (pixels * (weights * jnp.uint32(2654435761)).reshape(1, -1)).sum(1)
    flipped = ((sums >> 31) + epoch.astype(jnp.uint32)) % 2 == 1
    return jnp.where(flipped.reshape(-1, 1, 1, 1), images[:, :, ::-1, :], images)


def cutout(key: jax.Array, x: jax.Array, size: int) -> jax.Array:
    """A square of x [B, H, W, C] set to 0, anywhere, of up to size x size pixels.

    Its centre is a pixel of the picture, so that some of it may lie outside
    (DeVries and Taylor 2017).
    """
    batch, height, width, _ = x.shape
    keys = jax.random.split(key)
    inside = []
    for side_key, length in zip(keys, (height, width), strict=True):
        centre = jax.random.randint(side_key, (batch, 1), 0, length)
        first = centre - size // 2
        places = jnp.arange(length).reshape(1, -1)
        inside.append((places >= first) & (places < first + size))
    rows, columns = inside
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], 0, x)


def make_augment(
    *,
    num_classes: int,
    normalization: str,
    image_size: int | None = None,
    crop_padding: int = 0,
    crop_fill: Fill = "black",
    flip: bool = False,
    flip_alternating: bool = False,
    cutout_size: int = 0,
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
    label_smoothing: float = 0.0,
    steps_per_epoch: int = 1,
) -> Augment:
    """augment(key, images, labels, step) for training; with defaults, for evaluation.

    images [B, H, W, C] uint8 and labels [B] int32 become inputs
    [B, image_size, image_size, C] float32 and target distributions [B, num_classes].
    Label smoothing is torch.nn.CrossEntropyLoss's: mass spread over all classes.
    Cutout follows the normalisation, so that its square has the mean colour.

    Args:
      flip_alternating: with flip, see alternating_flip; `step` and steps_per_epoch say
        which epoch it is.
      mixup_alpha, cutmix_alpha: see mixing; of both, one or the other for each batch.
    """
    mean, std = parse_normalization(normalization)

    def augment(
        key: jax.Array, images: jax.Array, labels: jax.Array, step: Any = 0
    ) -> tuple[jax.Array, jax.Array]:
        crop_key, flip_key, cutout_key, mix_key = jax.random.split(key, 4)
        if flip and flip_alternating:  # by the pixels of the whole picture
            images = alternating_flip(images, jnp.asarray(step) // steps_per_epoch)
        if crop_padding:
            images = random_crop(crop_key, images, crop_padding, crop_fill)
        if flip and not flip_alternating:
            images = random_flip(flip_key, images)
        x = resize(normalize(images, mean=mean, std=std), image_size)
        if cutout_size:
            x = cutout(cutout_key, x, cutout_size)
        targets = make_targets(labels, num_classes, label_smoothing)
        if mixup_alpha or cutmix_alpha:
            x, targets = mixing.mix(mix_key, x, targets, mixup_alpha, cutmix_alpha)
        return x, targets

    return augment


def make_targets(
    labels: jax.Array, num_classes: int, label_smoothing: float = 0.0
) -> jax.Array:
    """Target distributions [B, num_classes] of labels [B]."""
    return optax.smooth_labels(jax.nn.one_hot(labels, num_classes), label_smoothing)


def make_features_augment(*, num_classes: int, label_smoothing: float = 0.0) -> Augment:
    """augment(key, features, labels), where features [B, F] stay as they are."""

    def augment(
        key: jax.Array, features: jax.Array, labels: jax.Array, step: Any = 0
    ) -> tuple[jax.Array, jax.Array]:
        return features, make_targets(labels, num_classes, label_smoothing)

    return augment
