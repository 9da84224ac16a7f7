"""Preprocesses images for a pretrained network."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from resnet_jax.data import pillow
from resnet_jax.data.augment import normalize, resize


class Preprocessing(NamedTuple):
    """The image preprocessing for a network, and the network's class names.

    Call an instance as `preprocessing(images)`.
    """

    size: int  # length of the shorter side before the crop
    crop: int  # side of the square that the network sees
    mean: tuple[float, ...]  # per channel, of images scaled to [0, 1]
    std: tuple[float, ...]
    class_names: tuple[str, ...] | None = None  # None if the head is new
    interpolation: str = "bilinear"  # or "bicubic"

    def __call__(self, images: Any) -> jax.Array:
        """Resizes, crops and normalizes images.

        Args:
          images: a uint8 array [B, H, W, C]; a list of images of any sizes (Pillow
            images, file paths or uint8 arrays [H, W, C]); or a single path or Pillow
            image.

        Returns:
          A float32 array [B, crop, crop, C]. The shorter side of each image is resized
          to `size`, and the center square is kept. The pixel values are scaled to [0,
          1]; then `mean` is subtracted, and the result is divided by `std`.

        Raises:
          ValueError: if an array is not uint8, or has the wrong shape.
        """
        if isinstance(images, str | Path | Image.Image):
            images = [images]
        if isinstance(images, np.ndarray | jax.Array):
            is_batch = images.ndim == 4 and images.shape[-1] == len(self.mean)
            if images.dtype != np.uint8 or not is_batch:
                raise ValueError(
                    f"expected a uint8 array [B, H, W, {len(self.mean)}] or a list of "
                    f"images or files, got {images.dtype} {list(images.shape)}"
                )
            # Resize on the device, as is done for datasets of equally sized images.
            if self.size == self.crop and images.shape[1] == images.shape[2]:
                x = normalize(images, mean=self.mean, std=self.std)
                return resize(x, (self.crop, self.crop))
        whole = np.stack([self._fit(image) for image in images])
        return normalize(whole, mean=self.mean, std=self.std)

    def _fit(self, image: Any) -> np.ndarray:
        channels = len(self.mean)
        options: dict[str, Any] = {
            "size": self.crop,
            "crop_pct": self.crop / self.size,
            "channels": channels,
            "interpolation": self.interpolation,
        }
        fit: Callable[..., np.ndarray] = partial(pillow.fit, **options)
        if isinstance(image, str | Path):
            return pillow.read_image(Path(image), **options)
        if isinstance(image, Image.Image):
            return fit(image)
        array = np.asarray(image)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != channels:
            raise ValueError(
                f"expected a uint8 image [H, W, {channels}] or a file, got "
                f"{array.dtype} {list(array.shape)}"
            )
        return fit(Image.fromarray(array[..., 0] if channels == 1 else array))
