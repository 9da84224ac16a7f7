"""Corrupts images at five severities, like CIFAR-10-C.

CIFAR-10-C was introduced by Hendrycks and Dietterich (2019) in "Benchmarking Neural
Network Robustness to Common Corruptions and Perturbations". The parameters are those in
ImageNet-C/create_c/make_cifar_c.py from github.com/hendrycks/robustness. Only the
corruptions that require no packages other than NumPy, SciPy and Pillow are included.
Because the images are computed rather than downloaded, their noise differs from the
noise in CIFAR-10-C. In addition, pixel values are rounded rather than truncated.
Accuracies therefore differ slightly from accuracies on the published data set.
"""

import io
import itertools
from collections.abc import Callable, Iterable
from multiprocessing.pool import ThreadPool
from typing import TYPE_CHECKING

import numpy as np

from resnet_jax import limits

if TYPE_CHECKING:
    from PIL import Image

SEVERITIES = (1, 2, 3, 4, 5)
# Maps uint8 images [N, H, W, C], a severity, a seed and the index of the first image
# to corrupted images; see corrupt.
Corruption = Callable[[np.ndarray, int, int, int], np.ndarray]
_SIDE = 32  # CIFAR-10's image size, which the parameters assume
_CHUNK = 256  # images per chunk, which limits the memory used by float copies


def corrupt(
    name: str, images: np.ndarray, severity: int, seed: int = 0, first: int = 0
) -> np.ndarray:
    """Returns corrupted copies of uint8 `images` [N, H, W, C] with 1 or 3 channels.

    Args:
      name: one of CORRUPTIONS.
      severity: a number from 1 to 5; 0 leaves the images unchanged.
      seed: seed of the noise. Each image gets different noise.
      first: index of images[0] in the data set. An image thus gets the same noise in
        any subset.

    Raises:
      ValueError: if `severity` is out of range, or if the images have the wrong dtype
        or shape.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            "images must be uint8 [N, H, W, 1 or 3], not "
            f"{images.dtype} {list(images.shape)}"
        )
    if severity not in (0, *SEVERITIES):
        raise ValueError(f"severity must be from 0 to 5, not {severity}")
    if severity == 0 or not len(images):
        return images.copy()
    chunks = range(0, len(images), _CHUNK)

    def one(start: int) -> np.ndarray:
        part = images[start : start + _CHUNK]
        return CORRUPTIONS[name](part, severity, seed, first + start)

    # NumPy, SciPy and Pillow release the GIL.
    with ThreadPool(min(limits.cpus(), len(chunks))) as pool:
        return np.concatenate(pool.map(one, chunks, chunksize=1))


def gaussian_noise(
    images: np.ndarray, severity: int, seed: int, first: int
) -> np.ndarray:
    """Adds independent Gaussian noise to each pixel and channel."""
    scale = (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1]
    noise = [
        rng.standard_normal(images.shape[1:], np.float32)
        for rng in _generators(len(images), severity, seed, first)
    ]
    return _to_bytes(_to_floats(images) + scale * np.stack(noise))


def shot_noise(images: np.ndarray, severity: int, seed: int, first: int) -> np.ndarray:
    """Adds Poisson noise, which is stronger in bright regions."""
    photons = (500, 250, 100, 75, 50)[severity - 1]
    expected = _to_floats(images) * photons
    rngs = _generators(len(images), severity, seed, first)
    counted = [rng.poisson(x) for rng, x in zip(rngs, expected, strict=True)]
    return _to_bytes(np.stack(counted) / photons)


def gaussian_blur(
    images: np.ndarray, severity: int, seed: int, first: int
) -> np.ndarray:
    """Applies a Gaussian blur whose sigma is proportional to the shorter side."""
    from scipy import ndimage

    sigma = (0.4, 0.6, 0.7, 0.8, 1.0)[severity - 1]
    sigma *= min(images.shape[1:3]) / _SIDE
    sigmas = (0, sigma, sigma, 0)
    return _to_bytes(
        ndimage.gaussian_filter(_to_floats(images), sigmas, mode="nearest")
    )


def contrast(images: np.ndarray, severity: int, seed: int, first: int) -> np.ndarray:
    """Moves each value toward the mean of its channel in the image."""
    share = (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1]
    x = _to_floats(images)
    mean = x.mean((1, 2), keepdims=True)
    return _to_bytes((x - mean) * share + mean)


def brightness(images: np.ndarray, severity: int, seed: int, first: int) -> np.ndarray:
    """Increases the V component in HSV; hue and saturation stay the same."""
    more = (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1]
    x = _to_floats(images)
    value = x.max(-1, keepdims=True)
    raised = np.minimum(value + more, 1)
    # Scaling all channels equally preserves hue and saturation; black becomes gray.
    scaled = x * (raised / np.where(value > 0, value, 1))
    return _to_bytes(np.where(value > 0, scaled, raised))


def jpeg_compression(
    images: np.ndarray, severity: int, seed: int, first: int
) -> np.ndarray:
    """Encodes each image as a low-quality JPEG and decodes it again."""
    from PIL import Image

    quality = (80, 65, 58, 50, 40)[severity - 1]

    def compress(image: "Image.Image") -> "Image.Image":
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer, formats=("JPEG",))

    return _by_pillow(images, compress)


def pixelate(images: np.ndarray, severity: int, seed: int, first: int) -> np.ndarray:
    """Shrinks images by averaging boxes, then enlarges them by repeating pixels."""
    from PIL.Image import Resampling

    share = (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1]
    height, width = images.shape[1:3]
    small = max(int(width * share), 1), max(int(height * share), 1)

    def resize(image: "Image.Image") -> "Image.Image":
        shrunk = image.resize(small, Resampling.BOX)
        return shrunk.resize((width, height), Resampling.BOX)

    return _by_pillow(images, resize)


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian noise": gaussian_noise,
    "shot noise": shot_noise,
    "gaussian blur": gaussian_blur,
    "contrast": contrast,
    "brightness": brightness,
    "jpeg compression": jpeg_compression,
    "pixelate": pixelate,
}


def _generators(
    num: int, severity: int, seed: int, first: int
) -> Iterable[np.random.Generator]:
    """Yields a generator per image, seeded with (seed, severity, image index)."""
    for index in itertools.islice(itertools.count(first), num):
        yield np.random.default_rng([seed, severity, index])


def _to_floats(images: np.ndarray) -> np.ndarray:
    """Converts uint8 pixels to floats in [0, 1]."""
    return images.astype(np.float32) / 255


def _to_bytes(x: np.ndarray) -> np.ndarray:
    """Clips floats to [0, 1] and converts them to uint8 pixels."""
    found: np.ndarray = np.rint(255 * np.clip(x, 0, 1)).astype(np.uint8)
    return found


def _by_pillow(
    images: np.ndarray, change: Callable[["Image.Image"], "Image.Image"]
) -> np.ndarray:
    from PIL import Image

    squeezed = images[..., 0] if images.shape[-1] == 1 else images
    changed = [np.asarray(change(Image.fromarray(image))) for image in squeezed]
    return np.stack(changed).reshape(images.shape)
