"""Turns uint8 images and labels into augmented inputs and targets on the device."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from resnet_jax.config import AugmentConfig
from resnet_jax.data import erasing
from resnet_jax.errors import ConfigError

# Maps (key, images, labels, step=0) to (inputs, targets); see make_augment.
Augment = Callable[..., tuple[jax.Array, jax.Array]]
Images = jax.Array | np.ndarray
Preprocess = Callable[[Images], jax.Array]  # see make_preprocess
Fill = Literal["black", "reflect"]

# Per-channel mean and standard deviation of images scaled to [0, 1].
NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5,), (0.25,)),  # used in the tutorial; fits any number of channels
}


def parse_normalization(
    text: str, channels: int = 3
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Parses a known name, "r,g,b/r,g,b" or "all/all" into per-channel (mean, std).

    Raises:
      ConfigError: if `text` is neither a known name nor numbers in one of these forms,
        or if it has the wrong number of channels.
    """
    try:
        mean, std = NORMALIZATIONS.get(text) or (
            tuple(map(float, part.split(","))) for part in text.split("/")
        )
        if len(mean) != len(std) or not mean or min(std) <= 0:
            raise ValueError(text)
    except ValueError:
        raise ConfigError(
            f"normalize {text!r} is invalid: use one of {', '.join(NORMALIZATIONS)}, "
            "or the mean and std of images scaled to [0, 1], as r,g,b/r,g,b"
        ) from None
    if max(map(abs, mean)) > 1 or max(std) > 10:
        raise ConfigError(
            f"normalize {text} is for pixels from 0 to 255, but images are scaled to "
            "[0, 1] first: divide its numbers by 255"
        )
    if len(mean) == 1:
        mean, std = mean * channels, std * channels
    if len(mean) != channels:
        raise ConfigError(
            f"normalize {text} has {len(mean)} channels, but the images have "
            f"{channels}: specify a mean and a standard deviation for each channel"
        )
    return mean, std


def normalize(images: Images, *, mean: Any, std: Any) -> jax.Array:
    """Returns (images / 255 - mean) / std in float32, like ToTensor and Normalize."""
    x = jnp.asarray(images, jnp.float32) / 255
    x = x - jnp.asarray(mean, jnp.float32).reshape(1, 1, 1, -1)
    return x / jnp.asarray(std, jnp.float32).reshape(1, 1, 1, -1)


def to_channels(images: Images, channels: int) -> Images:
    """Converts uint8 images [B, H, W, C] to `channels` channels.

    RGB images are converted to grayscale with Pillow's weights. The single
    channel of grayscale images is repeated.
    """
    own = images.shape[-1]
    if own == channels:
        return images
    if (own, channels) == (1, 3):
        return jnp.repeat(jnp.asarray(images), 3, axis=-1)
    if (own, channels) != (3, 1):
        raise ConfigError(
            f"images with {own} channels cannot be converted to {channels} channels"
        )
    weights = jnp.asarray([19595, 38470, 7471], jnp.int32)
    gray = (jnp.asarray(images, jnp.int32) @ weights + 2**15) >> 16
    return gray[..., None].astype(jnp.uint8)


def resize(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resizes x [B, H, W, C] to [B, *size, C] bilinearly, with antialiasing."""
    if x.shape[1:3] == size:
        return x
    shape = (x.shape[0], *size, x.shape[3])
    found: jax.Array = jax.image.resize(x, shape, "bilinear", antialias=True)
    return found


def random_crop(
    key: jax.Array, images: jax.Array, padding: int, fill: Fill = "black"
) -> jax.Array:
    """Crops a random window from each padded image, like RandomCrop(size, padding).

    The padding is black or, if `fill` is "reflect", a reflection of the image.
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
    """Flips each image horizontally with probability 0.5."""
    flipped = jax.random.bernoulli(key, shape=(images.shape[0], 1, 1, 1))
    return jnp.where(flipped, images[:, :, ::-1, :], images)


def alternating_flip(images: jax.Array, epoch: jax.Array) -> jax.Array:
    """Flips half of the images in even epochs, and the other half in odd epochs.

    Any two consecutive epochs thus show every image in both orientations, whereas
    random flips show about half of the images in the same orientation twice. This
    follows airbench (Jordan 2024), except that each image is assigned to a half by a
    hash of its pixels.
    """
    # The multipliers are odd, so a change in any bit of a pixel changes the sum.
    weights = 2 * jnp.arange(images[0].size, dtype=jnp.uint32) + 1
    pixels = images.reshape(len(images), -1).astype(jnp.uint32)
    sums = (pixels * (weights * jnp.uint32(2654435761)).reshape(1, -1)).sum(1)
    flipped = ((sums >> 31) + epoch.astype(jnp.uint32)) % 2 == 1
    return jnp.where(flipped.reshape(-1, 1, 1, 1), images[:, :, ::-1, :], images)


def make_preprocess(
    cfg: AugmentConfig, image_shape: tuple[int, int, int], default: str = "cifar10"
) -> Preprocess:
    """Returns a function `preprocess` that scales, normalizes and resizes images.

    Args:
      default: the normalization to use if cfg.normalize is None.

    Raises:
      ConfigError: if the normalization is unknown or has the wrong number of channels.
    """
    text = cfg.normalize or default
    mean, std = parse_normalization(text, image_shape[2])

    def preprocess(images: Images) -> jax.Array:
        images = to_channels(images, image_shape[2])
        return resize(normalize(images, mean=mean, std=std), image_shape[:2])

    return preprocess


def make_augment(
    cfg: AugmentConfig,
    preprocess: Preprocess,
    num_classes: int,
    steps_per_epoch: int = 1,
) -> Augment:
    """Returns a function `augment(key, images, labels, step)` for training.

    The function maps uint8 images [B, H, W, C] and int32 labels [B] to float32 inputs
    [B, H', W', C] of the shape that `preprocess` returns, and to target distributions
    [B, num_classes]. Label smoothing spreads probability over all classes, as in
    torch.nn.CrossEntropyLoss. Cutout and random erasing are applied after the
    normalization, so erased pixels get the mean color.

    Args:
      steps_per_epoch: number of steps per epoch, which the alternating flip needs.
    """

    def augment(
        key: jax.Array, images: jax.Array, labels: jax.Array, step: Any = 0
    ) -> tuple[jax.Array, jax.Array]:
        crop_key, flip_key, cutout_key, mix_key = jax.random.split(key, 4)
        if cfg.flip == "alternating":  # done first because it hashes the whole image
            images = alternating_flip(images, jnp.asarray(step) // steps_per_epoch)
        if cfg.crop_padding:
            images = random_crop(crop_key, images, cfg.crop_padding, cfg.crop_fill)
        if cfg.flip == "random":
            images = random_flip(flip_key, images)
        x = preprocess(images)
        if cfg.cutout:
            x = erasing.cutout(cutout_key, x, cfg.cutout)
        if cfg.random_erasing:
            erasing_key = jax.random.fold_in(key, 2**30)  # differs from the keys above
            x = erasing.random_erasing(erasing_key, x, cfg.random_erasing)
        targets = make_targets(labels, num_classes, cfg.label_smoothing)
        if cfg.mixup or cfg.cutmix:
            x, targets = mix(mix_key, x, targets, cfg.mixup, cfg.cutmix)
        return x, targets

    return augment


def make_targets(
    labels: jax.Array, num_classes: int, label_smoothing: float = 0.0
) -> jax.Array:
    """Returns smoothed target distributions [B, num_classes] for labels [B]."""
    found: jax.Array = optax.smooth_labels(
        jax.nn.one_hot(labels, num_classes), label_smoothing
    )
    return found


Mixed = tuple[jax.Array, jax.Array]


def mix(
    key: jax.Array,
    x: jax.Array,
    targets: jax.Array,
    mixup_alpha: float,
    cutmix_alpha: float,
) -> Mixed:
    """Applies mixup or CutMix to x [B, H, W, C] and targets [B, num_classes].

    If both alphas are positive, each batch uses one of the two, chosen with
    probability 0.5, as in timm.
    """
    choice_key, share_key, box_key = jax.random.split(key, 3)

    def by_mixup(x: jax.Array, targets: jax.Array) -> Mixed:
        return mixup(share_key, x, targets, mixup_alpha)

    def by_cutmix(x: jax.Array, targets: jax.Array) -> Mixed:
        return cutmix(share_key, box_key, x, targets, cutmix_alpha)

    if not cutmix_alpha:
        return by_mixup(x, targets)
    if not mixup_alpha:
        return by_cutmix(x, targets)
    chosen = jax.random.bernoulli(choice_key)
    found: tuple[jax.Array, jax.Array] = jax.lax.cond(
        chosen, by_mixup, by_cutmix, x, targets
    )
    return found


def mixup(key: jax.Array, x: jax.Array, targets: jax.Array, alpha: float) -> Mixed:
    """Blends each image and its target with those of a partner from the same batch.

    As in timm, the partners are found by reversing the batch, and all pairs share one
    blending weight, drawn from Beta(alpha, alpha) as in Zhang et al. (2017).
    """
    share = jax.random.beta(key, alpha, alpha)
    return _blend(x, share), _blend(targets, share)


def cutmix(
    key: jax.Array, box_key: jax.Array, x: jax.Array, targets: jax.Array, alpha: float
) -> Mixed:
    """Pastes a box from a partner image into each image and blends targets by area.

    The box covers a fraction 1 - s of the image area, where s is drawn from Beta(alpha,
    alpha); any part of the box outside the image is cut off (Yun et al. 2019). All
    images in a batch share one box, and partners are chosen as in mixup.
    """
    height, width = x.shape[1:3]
    side = jnp.sqrt(1 - jax.random.beta(key, alpha, alpha))
    inside = []
    for side_key, length in zip(
        jax.random.split(box_key), (height, width), strict=True
    ):
        center = jax.random.randint(side_key, (), 0, length)
        half = (side * length).astype(jnp.int32) // 2
        places = jnp.arange(length)
        inside.append((places >= center - half) & (places < center + half))
    rows, columns = inside
    box = rows.reshape(-1, 1) & columns.reshape(1, -1)
    share = 1 - box.mean(dtype=targets.dtype)
    mixed = jnp.where(box.reshape(1, height, width, 1), x[::-1], x)
    return mixed, _blend(targets, share)


def _blend(values: jax.Array, share: jax.Array) -> jax.Array:
    share = share.astype(values.dtype)
    return share * values + (1 - share) * values[::-1]
