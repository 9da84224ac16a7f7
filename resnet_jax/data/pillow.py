"""Opens, rotates, converts, resizes and crops images with Pillow."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

_MAX_PIXELS = 2**26  # after resizing; enough for image_size 4096 and crop_pct 0.5


def read_image(path: Path, **how: Any) -> np.ndarray:
    """Reads an image as a uint8 array [size, size, channels]; see opened and fit."""
    with opened(path) as file:
        return fit(file, **how)


@contextlib.contextmanager
def opened(path: Path | BinaryIO) -> Iterator["Image.Image"]:
    """Opens an image file, reading only its header.

    Raises:
      ValueError: if the image has so many pixels that it may be a decompression bomb.
      OSError: if Pillow cannot read the file (some readers raise other exceptions).
    """
    from PIL import Image

    with Image.open(path) as file:
        # Pillow only warns; turning its warning into an error would affect all threads.
        if file.width * file.height > (Image.MAX_IMAGE_PIXELS or sys.maxsize):
            raise ValueError(f"{file.width}x{file.height} may be a decompression bomb")
        yield file


def decode(file: "Image.Image", channels: int = 3) -> "Image.Image":
    """Decodes `file` to an RGB image, or to an image in mode L if `channels` is 1.

    The image is rotated according to its EXIF orientation. If there are
    several frames, only the first is read.

    Raises:
      ValueError: if the range of the pixel values is unknown.
      OSError: if Pillow cannot read the file (some readers raise other exceptions).
    """
    file.load()  # also rotates TIFF images
    image = upright(file, to_8_bits(file))
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else opaque(image).convert(mode)


def fit(
    file: "Image.Image",
    *,
    size: int,
    crop_pct: float,
    channels: int = 3,
    interpolation: str = "bilinear",
) -> np.ndarray:
    """Decodes, resizes and crops `file` to a uint8 array [size, size, channels].

    The image is resized with antialiasing so that its shorter side is size / crop_pct,
    and is then center-cropped. With size 224 and crop_pct 0.875, this corresponds to
    torchvision's Resize(256) followed by CenterCrop(224).

    Raises:
      ValueError: if the resized image would be too large, or if decode raises
        ValueError.
    """
    image = crop_middle(decode(file, channels), size, crop_pct, interpolation)
    return np.asarray(image).reshape(size, size, channels)


def crop_middle(
    image: "Image.Image", size: int, crop_pct: float, interpolation: str
) -> "Image.Image":
    """Resizes `image` and takes a center crop of size x size; see fit.

    Raises:
      ValueError: if the resized image would be too large.
    """
    from PIL import Image

    shape = resized(image.size, round(size / crop_pct))
    image = image.resize(shape, Image.Resampling[interpolation.upper()])
    left, top = (round((length - size) / 2) for length in shape)
    return image.crop((left, top, left + size, top + size))


def resized(shape: tuple[int, int], side: int) -> tuple[int, int]:
    """Returns `shape` (width, height) scaled so that the shorter side is `side`.

    Raises:
      ValueError: if the resized image would be too large.
    """
    width, height = shape
    # The longer side is rounded down, as in torchvision's Resize(int).
    if width <= height:
        found = side, int(side * height / width)
    else:
        found = int(side * width / height), side
    # A long image that is one pixel wide becomes huge when its shorter side is resized.
    if found[0] * found[1] > _MAX_PIXELS:
        raise ValueError(
            f"{width}x{height} would become {found[0]}x{found[1]} pixels after "
            "resizing, which is too large"
        )
    return found


def upright_size(file: "Image.Image") -> tuple[int, int]:
    """Returns a JPEG's (width, height) after EXIF rotation, without reading pixels."""
    turned = orientation(file) >= 5
    return (file.height, file.width) if turned else (file.width, file.height)


def orientation(file: "Image.Image") -> int:
    """Returns the EXIF orientation of `file`, or 1 if it is missing or unreadable.

    The pixels are not read.
    """
    try:
        return int(file.getexif().get(274, 1))
    except Exception:  # Pillow raises many exception types even if the pixels are fine
        return 1


def upright(file: "Image.Image", image: "Image.Image") -> "Image.Image":
    """Rotates `image` according to the EXIF orientation of `file`."""
    from PIL.Image import Transpose

    turn = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(orientation(file))
    return image if turn is None else image.transpose(turn)


def opaque(image: "Image.Image") -> "Image.Image":
    """Returns `image` without its transparency, keeping its colors.

    Pillow's convert, which torchvision's loader uses, also drops transparency. However,
    convert first checks the transparent color, and it warns about some colors and fails
    on others.
    """
    if "transparency" in image.info:
        image = image.copy()
        del image.info["transparency"]
    return image


def to_8_bits(image: "Image.Image") -> "Image.Image":
    """Scales a 16-bit `image` to 8 bits, whereas Pillow would clip values at 255.

    Raises:
      ValueError: if pixels are floats or 32-bit integers, whose range is unknown.
    """
    from PIL import Image

    is_16 = image.mode.startswith("I;16")
    if not is_16 and image.mode not in ("I", "F"):
        return image
    # Pillow also uses the mode "I" for 16-bit PNG and PPM files.
    if not is_16 and (image.mode == "F" or image.format not in ("PNG", "PPM")):
        bits = "floating-point" if image.mode == "F" else "32-bit"
        raise ValueError(
            f"{bits} pixels have no known range: save the image with 8 or 16 bits"
        )
    values = np.asarray(image).astype(np.float64)
    return Image.fromarray(np.rint(values / 257).clip(0, 255).astype(np.uint8))
