"""Augmentation on the device: uint8 images and labels to network inputs and targets."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from resnet_jax.errors import ConfigError

Augment = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]

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


def random_crop(key: jax.Array, images: jax.Array, padding: int) -> jax.Array:
    """A random window of each picture padded with black (RandomCrop(size, padding))."""
    batch, height, width, channels = images.shape
    edge = (padding, padding)
    padded = jnp.pad(images, ((0, 0), edge, edge, (0, 0)))
    offsets = jax.random.randint(key, (batch, 2), 0, 2 * padding + 1)

    def crop(image: jax.Array, offset: jax.Array) -> jax.Array:
        start = (offset[0], offset[1], 0)
        return jax.lax.dynamic_slice(image, start, (height, width, channels))

    return jax.vmap(crop)(padded, offsets)


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Each picture mirrored left to right with probability one half."""
    flipped = jax.random.bernoulli(key, shape=(images.shape[0], 1, 1, 1))
    return jnp.where(flipped, images[:, :, ::-1, :], images)


def make_augment(
    *,
    num_classes: int,
    normalization: str,
    image_size: int | None = None,
    crop_padding: int = 0,
    flip: bool = False,
    label_smoothing: float = 0.0,
) -> Augment:
    """augment(key, images, labels) for training; with the defaults, for evaluation.

    images [B, H, W, C] uint8 and labels [B] int32 become inputs
    [B, image_size, image_size, C] float32 and target distributions [B, num_classes].
    Label smoothing is torch.nn.CrossEntropyLoss's: mass spread over all classes.
    """
    mean, std = parse_normalization(normalization)

    def augment(
        key: jax.Array, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        crop_key, flip_key = jax.random.split(key)
        if crop_padding:
            images = random_crop(crop_key, images, crop_padding)
        if flip:
            images = random_flip(flip_key, images)
        x = resize(normalize(images, mean=mean, std=std), image_size)
        return x, make_targets(labels, num_classes, label_smoothing)

    return augment


def make_targets(
    labels: jax.Array, num_classes: int, label_smoothing: float = 0.0
) -> jax.Array:
    """Target distributions [B, num_classes] of labels [B]."""
    targets = jax.nn.one_hot(labels, num_classes)
    return targets * (1 - label_smoothing) + label_smoothing / num_classes


def make_features_augment(*, num_classes: int, label_smoothing: float = 0.0) -> Augment:
    """augment(key, features, labels), where features [B, F] stay as they are."""

    def augment(
        key: jax.Array, features: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return features, make_targets(labels, num_classes, label_smoothing)

    return augment
