"""Writes the many types of images that occur in users' folders."""

import struct
import zlib

import numpy as np
from PIL import Image

# Read like Pillow's convert("RGB"), and so like torchvision's loader.
ODD = (
    *("rgb.png", "rgb.jpg", "rgb.bmp", "rgb.ppm", "rgb.webp", "rgb.tif", "RGB.JPEG"),
    *("gray.png", "gray.jpg", "gray.pgm", "gray with a transparent shade.png"),
    *("1 bit.png", "1 bit.tif", "la.png", "rgba.png", "rgba.webp", "rgba.tif"),
    *("cmyk.jpg", "cmyk.tif", "palette.png", "palette.bmp", "few colors.png"),
    *("palette with a transparent color.png", "palette with alphas.png"),
    *("rgb with a transparent color.png", "animated.png", "animated.webp"),
    *("animated gif.png", "two pages.tif", "48 bits.png", "ycbcr.tif", "1 pixel.png"),
    *("wide.png", "tall.png", "several.jpg"),
)
# Files that are not images, despite their names.
SKIPPED = ("._x.jpg", ".ipynb_checkpoints/x.png", "__MACOSX/x.png", "Thumbs.db")


def write(name, path):
    """Writes the image called `name` at `path`."""
    rng = np.random.default_rng(0)

    def noise(*shape):
        return rng.integers(0, 256, shape, np.uint8)

    smooth = np.linspace(0, 255, 12 * 20 * 3).reshape(12, 20, 3).astype(np.uint8)
    rgb = Image.fromarray(noise(12, 20, 3))
    rgba = Image.fromarray(noise(12, 20, 4))
    gray = Image.fromarray(noise(12, 20))
    palette = rgb.quantize(32)
    deep = np.linspace(0, 65535, 240).astype(np.uint16).reshape(12, 20)
    frames = [Image.fromarray(noise(12, 20, 3)) for _ in range(3)]
    several = {"save_all": True, "append_images": frames}
    kind = name.rpartition(".")[0]
    images = {
        "rgb": (rgb, {}),
        "RGB": (rgb, {}),
        "gray": (gray, {}),
        "gray with a transparent shade": (gray, {"transparency": 7}),
        "1 bit": (gray.point(lambda v: 255 * (v > 128), "1"), {}),
        "la": (rgba.convert("LA"), {}),
        "rgba": (rgba, {}),
        "cmyk": (Image.fromarray(smooth).convert("CMYK"), {}),
        "palette": (palette, {}),
        "few colors": (rgb.quantize(3), {"bits": 2}),
        "palette with a transparent color": (palette, {"transparency": 3}),
        "palette with alphas": (palette, {"transparency": bytes(range(0, 256, 8))}),
        "rgb with a transparent color": (rgb, {"transparency": (1, 2, 3)}),
        "animated": (rgb, several),
        "animated gif": (rgb, {"format": "GIF", **several}),
        "two pages": (rgb, several),
        "ycbcr": (Image.fromarray(smooth).convert("YCbCr"), {}),
        "1 pixel": (rgb.crop((0, 0, 1, 1)), {}),
        "wide": (rgb.resize((700, 3)), {}),
        "tall": (rgb.resize((2, 600)), {}),
        "several": (rgb, {"format": "MPO", **several}),
        "float": (Image.fromarray(deep.astype(np.float32)), {}),
        "32 bits": (Image.fromarray(deep.astype(np.int32) * 1000), {}),
        "16 bits": (Image.fromarray(deep), {}),
        "big-endian": (Image.frombytes("I;16B", (20, 12), deep.astype(">u2")), {}),
    }
    if kind == "48 bits":
        _write_48_bits(path, rng.integers(0, 65536, (12, 20, 3)).astype(">u2"))
        return
    image, options = images[kind]
    image.save(path, **options)


def _write_48_bits(path, pixels):
    """Writes a PNG with three 16-bit channels, which Pillow reads but cannot write."""

    def chunk(kind, content):
        checked = kind + content
        return (
            struct.pack(">I", len(content))
            + checked
            + struct.pack(">I", zlib.crc32(checked))
        )

    height, width, _ = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
