"""One image by Pillow: opened, upright, of 8 bits, resized and cropped."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

_MAX_PIXELS = 2**26  # of a resized image; a crop of 4096 with .5 beside it has these


def read_image(path: Path, **how: Any) -> np.ndarray:
    """One image as [size, size, channels] uint8, see fit; a huge one raises."""
    with opened(path) as file:
        return fit(file, **how)


@contextlib.contextmanager
def opened(path: Path | BinaryIO) -> Iterator["Image.Image"]:
    """The file of an image, open; nothing but its header is read yet.

    Raises:
      ValueError: it has so many pixels that they would fill the memory.
      OSError and others: Pillow cannot read it.
    """
    from PIL import Image

    with Image.open(path) as file:
        # Pillow only warns of these, and warnings are of all threads alike.
        if file.width * file.height > (Image.MAX_IMAGE_PIXELS or sys.maxsize):
            raise ValueError(f"{file.width}x{file.height}: a decompression bomb?")
        yield file


def decode(file: "Image.Image", channels: int = 3) -> "Image.Image":
    """`file`, open or made in memory, as an image of mode RGB, or L of one channel.

    It is turned as its EXIF says; of several frames it is the first.

    Raises:
      ValueError: its pixels have no known range.
      OSError and others: Pillow cannot read it.
    """
    file.load()  # by which Pillow itself turns a TIFF
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
    """`file`, see decode, as [size, size, channels] uint8.

    The shorter side becomes size / crop_pct, antialiased, and the middle is cropped:
    what torchvision's Resize(256) and CenterCrop(224) do at size 224 and crop_pct .875.

    Raises:
      ValueError: it would become huge; else as decode.
    """
    image = crop_middle(decode(file, channels), size, crop_pct, interpolation)
    return np.asarray(image).reshape(size, size, channels)


def crop_middle(
    image: "Image.Image", size: int, crop_pct: float, interpolation: str
) -> "Image.Image":
    """The middle of `image`, size x size, see fit.

    Raises:
      ValueError: it would become huge.
    """
    from PIL import Image

    shape = resized(image.size, round(size / crop_pct))
    image = image.resize(shape, Image.Resampling[interpolation.upper()])
    left, top = (round((length - size) / 2) for length in shape)
    return image.crop((left, top, left + size, top + size))


def resized(shape: tuple[int, int], side: int) -> tuple[int, int]:
    """(width, height) of an image of `shape` whose shorter side becomes `side`.

    Raises:
      ValueError: it would become huge.
    """
    width, height = shape
    # torchvision's Resize(int): the longer side is cut to an integer.
    if width <= height:
        found = side, int(side * height / width)
    else:
        found = int(side * width / height), side
    # A strip of one pixel's width is small until its width is an image's.
    if found[0] * found[1] > _MAX_PIXELS:
        raise ValueError(f"{width}x{height} would become {found[0]}x{found[1]} pixels")
    return found


def upright_size(file: "Image.Image") -> tuple[int, int]:
    """Width and height of a JPEG `file` once it is upright; its pixels are not read."""
    turned = orientation(file) >= 5
    return (file.height, file.width) if turned else (file.width, file.height)


def orientation(file: "Image.Image") -> int:
    """What the EXIF of `file` says, of which nothing else is read; else 1."""
    try:
        return int(file.getexif().get(274, 1))
    except Exception:  # Pillow's readers raise of every kind; the pixels are sound
        return 1


def upright(file: "Image.Image", image: "Image.Image") -> "Image.Image":
    """`image` turned as the EXIF of `file` says."""
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
    """`image`, its colours as they are behind what is said of their transparency.

    Pillow's convert leaves transparency out as well, as torchvision's loader does, but
    looks at the transparent colour first, and warns of some and fails on others.
    """
    if "transparency" in image.info:
        image = image.copy()
        del image.info["transparency"]
    return image


def to_8_bits(image: "Image.Image") -> "Image.Image":
    """`image`, of 16 bits scaled to 8; Pillow itself cuts off what is above 255.

    Raises:
      ValueError: it has floats or 32 bits, of which nobody says the range.
    """
    from PIL import Image

    is_16 = image.mode.startswith("I;16")
    if not is_16 and image.mode not in ("I", "F"):
        return image
    # Pillow has 16 bits of PNG and PPM as "I" as well.
    if not is_16 and (image.mode == "F" or image.format not in ("PNG", "PPM")):
        bits = "floats" if image.mode == "F" else "32 bits"
        raise ValueError(f"pixels of {bits}, of no known range: save them with 8 or 16")
    values = np.asarray(image).astype(np.float64)
    return Image.fromarray(np.rint(values / 257).clip(0, 255).astype(np.uint8))
