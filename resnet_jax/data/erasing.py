"""On-device cutout and random erasing."""

import math

import jax
import jax.numpy as jnp

_AREA = (0.02, 0.33)  # range of the erased area, as a fraction of the image area
_RATIO = (0.3, 3.3)  # range of the height-to-width ratio
_TRIES = 10


def cutout(key: jax.Array, x: jax.Array, size: int) -> jax.Array:
    """Zeros a random size x size square in each image of x [B, H, W, C].

    As in DeVries and Taylor (2017), the square is centered on a pixel of the image, so
    part of the square may be outside the image.
    """
    batch, height, width, _ = x.shape
    keys = jax.random.split(key)
    inside = []
    for side_key, length in zip(keys, (height, width), strict=True):
        center = jax.random.randint(side_key, (batch, 1), 0, length)
        first = center - size // 2
        places = jnp.arange(length).reshape(1, -1)
        inside.append((places >= first) & (places < first + size))
    rows, columns = inside
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], 0, x)


def random_erasing(key: jax.Array, x: jax.Array, probability: float) -> jax.Array:
    """Zeros a rectangle in each image of x [B, H, W, C] with the given probability.

    This follows torchvision's RandomErasing with scale (0.02, 0.33), ratio (0.3, 3.3)
    and value 0.
    """
    boxes = draw_boxes(key, len(x), (x.shape[1], x.shape[2]), probability)
    return erase(x, boxes)


def draw_boxes(
    key: jax.Array, num: int, size: tuple[int, int], probability: float
) -> jax.Array:
    """Draws int32 rectangles [num, 4] of (top, left, height, width).

    For each image, ten candidates are drawn, and the first that fits into `size` is
    used. The rectangle is empty if no candidate fits, or if the image is not chosen for
    erasing.
    """
    height, width = size
    area_key, ratio_key, place_key, choice_key = jax.random.split(key, 4)
    shape = (num, _TRIES)
    low, high = (fraction * height * width for fraction in _AREA)
    area = jax.random.uniform(area_key, shape, minval=low, maxval=high)
    low, high = (math.log(ratio) for ratio in _RATIO)
    ratio = jnp.exp(jax.random.uniform(ratio_key, shape, minval=low, maxval=high))
    heights = jnp.round(jnp.sqrt(area * ratio)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(area / ratio)).astype(jnp.int32)
    fits = (heights < height) & (widths < width)
    first = jnp.argmax(fits, axis=1, keepdims=True)
    is_chosen = jax.random.bernoulli(choice_key, probability, (num,)) & fits.any(1)
    h, w = (
        jnp.where(is_chosen, jnp.take_along_axis(sides, first, 1)[:, 0], 0)
        for sides in (heights, widths)
    )
    # Each coordinate is an integer from 0 to the last possible position, inclusive.
    share = jax.random.uniform(place_key, (2, num))
    top = (share[0] * (height - h + 1)).astype(jnp.int32)
    left = (share[1] * (width - w + 1)).astype(jnp.int32)
    return jnp.stack([top, left, h, w], axis=1)


def erase(x: jax.Array, boxes: jax.Array) -> jax.Array:
    """Zeros x [B, H, W, C] in rectangles [B, 4] of (top, left, height, width)."""
    rows, columns = (
        (jnp.arange(length).reshape(1, -1) >= boxes[:, axis, None])
        & (
            jnp.arange(length).reshape(1, -1)
            < boxes[:, axis, None] + boxes[:, axis + 2, None]
        )
        for axis, length in ((0, x.shape[1]), (1, x.shape[2]))
    )
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], 0, x)
