"""Augmentation on the host that works like torchvision's transforms of Pillow images.

Random numbers depend only on (seed, epoch, index of the example, turn), where `turn`
is the number of earlier occurrences of the example in the epoch. An augmented image is
therefore the same in every process and in a resumed run.
"""

import importlib.util
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from resnet_jax.config import AugmentConfig, DataConfig
from resnet_jax.data import pillow, readers, resizing, sources, stream
from resnet_jax.data.dataset import Dataset
from resnet_jax.errors import ConfigError, first_line

if TYPE_CHECKING:
    from PIL import Image

_RATIO = (3 / 4, 4 / 3)  # allowed aspect ratios of a random region
_FILL = 0  # black
_BINS = 31  # number of magnitudes in TrivialAugmentWide
# The largest magnitude of each operation, and whether its sign is random.
_WIDE: dict[str, tuple[float, bool]] = {
    "Identity": (0.0, False),
    "ShearX": (0.99, True),
    "ShearY": (0.99, True),
    "TranslateX": (32.0, True),
    "TranslateY": (32.0, True),
    "Rotate": (135.0, True),
    "Brightness": (0.99, True),
    "Color": (0.99, True),
    "Contrast": (0.99, True),
    "Sharpness": (0.99, True),
    "Posterize": (6.0, False),  # number of removed bits
    "Solarize": (255.0, False),  # distance of the threshold from 255
    "AutoContrast": (0.0, False),
    "Equalize": (0.0, False),
}
_JITTERED = ("Brightness", "Contrast", "Color")


class Box(NamedTuple):
    """A region of an image, in pixels."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Transform:
    """Transforms an open image into a uint8 array [size, size, C] on the host.

    C is 1 for data sets of grayscale images, and 3 otherwise.
    """

    cfg: AugmentConfig
    seed: int
    size: int
    kept: float | None  # fraction of the shorter side to keep; None without cropping
    interpolation: str = "bilinear"

    def __call__(
        self, file: "Image.Image", index: int, epoch: int, turn: int, channels: int = 3
    ) -> np.ndarray:
        from PIL import Image

        rng = np.random.default_rng([self.seed, epoch, index, turn])
        resample = Image.Resampling[self.interpolation.upper()]
        if self.cfg.random_resized_crop:
            if (
                file.format == "JPEG" and self.kept is not None
            ):  # the size is known before any pixel is decoded
                size = pillow.upright_size(file)
                box = draw_region(rng, *size, smallest=self.cfg.crop_scale)
                box = reduce(file, box, self.size)
                whole = pillow.decode(file, channels)
            else:
                whole = pillow.decode(file, channels)
                box = draw_region(rng, *whole.size, smallest=self.cfg.crop_scale)
            image = resized_crop(whole, box, self.size, resample)
        else:
            whole = pillow.decode(file, channels)
            kept = 1.0 if self.kept is None else self.kept
            image = pillow.crop_middle(whole, self.size, kept, self.interpolation)
        if self.cfg.auto_augment == "ta_wide":
            image = operate(image, *draw_operation(rng), Image.Resampling.BILINEAR)
        if self.cfg.color_jitter:
            for name, factor in draw_jitter(rng, self.cfg.color_jitter):
                image = enhance(image, name, factor)
        return np.asarray(image).reshape(self.size, self.size, channels)


@dataclass(frozen=True)
class Drawing:
    """Augments the images of a reader; see stream.Draw."""

    reader: stream.Reader
    transform: Transform
    image_shape: tuple[int, int, int]

    def __call__(
        self, indices: np.ndarray, epoch: int, turns: np.ndarray
    ) -> np.ndarray:
        images = np.empty((len(indices), *self.image_shape), np.uint8)
        channels = self.image_shape[2]
        opened = self.reader.open(indices)
        for place, (index, turn, one) in enumerate(
            zip(indices.tolist(), turns.tolist(), opened, strict=True)
        ):
            try:
                with one as file:
                    images[place] = self.transform(file, index, epoch, turn, channels)
            except Exception as error:  # Pillow raises many exception types
                raise self.reader.fault(index, first_line(error)) from None
        return images


def drawn(train: Dataset, cfg: AugmentConfig, data: DataConfig, seed: int) -> Dataset:
    """Returns `train` with images that the host augments when it reads them.

    If the host does not augment images, `train` itself is returned.
    """
    images = train.images
    if not cfg.is_on_host:
        return train
    if importlib.util.find_spec("grain") is None:
        raise ConfigError(
            "augmentation on the host reads images during training, which needs grain: "
            "pip install -e '.[stream]'"
        )
    # These are indices into the split, whether or not it is in memory.
    rows = np.arange(len(images))
    if isinstance(images, np.ndarray):
        images = stream.Images(readers.Arrays(images), rows, images.shape[1:])
    else:
        reader = readers.Rows(images.read, images.indices)
        images = replace(images, read=reader, indices=rows)
    side, _, channels = images.image_shape
    if data.train_size or data.image_size:
        side = data.train_size or data.image_size or side
    kept = data.kept if images.is_cropped else None
    transform = Transform(cfg, seed, side, kept, data.interpolation)
    drawing = Drawing(images.read, transform, (side, side, channels))
    return replace(train, images=replace(images, draw=drawing))


def for_training(data: DataConfig, cfg: AugmentConfig) -> DataConfig:
    """Returns `data`, with stream set if the host augments images of various sizes.

    Raises:
      ConfigError: if an option has no effect for this data set.
    """
    is_cropped, is_drawn = sources.is_cropped(data), cfg.is_on_host
    # For unknown names, describe raises an error later.
    if data.dataset in sources.SOURCES or data.dataset.startswith("tfds:"):
        resizing.check(data, is_cropped=is_cropped, is_drawn=is_drawn)
    is_streamed = data.stream or (is_drawn and is_cropped)
    return replace(data, stream=is_streamed)


def draw_region(
    rng: np.random.Generator, width: int, height: int, *, smallest: float
) -> Box:
    """Draws a region as RandomResizedCrop(scale=(smallest, 1)) does.

    If none of ten candidates fits, the region is the largest center crop whose aspect
    ratio is allowed.
    """
    low, high = map(math.log, _RATIO)
    for _ in range(10):
        area = width * height * rng.uniform(smallest, 1.0)
        ratio = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers([width - w + 1, height - h + 1]).tolist()
            return Box(left, top, w, h)
    w, h = width, height
    if width / height < _RATIO[0]:
        h = round(width / _RATIO[0])
    elif width / height > _RATIO[1]:
        w = round(height * _RATIO[1])
    return Box((width - w) // 2, (height - h) // 2, w, h)


def reduce(file: "Image.Image", box: Box, size: int) -> Box:
    """Reduces the scale at which a JPEG is decoded, and returns `box` at that scale.

    The scale is the smallest of 1/8, 1/4 and 1/2 at which each side of the box still
    has at least `size` pixels. If no such scale exists, the JPEG is decoded at full
    scale.
    """
    before = pillow.upright_size(file)
    times = min(box.width, box.height) // size
    if times < 2:
        return box
    file.draft(file.mode, (file.width // times, file.height // times))
    width, height = pillow.upright_size(file)
    x, y = width / before[0], height / before[1]
    left, top = math.floor(box.left * x), math.floor(box.top * y)
    right = min(math.ceil((box.left + box.width) * x), width)
    bottom = min(math.ceil((box.top + box.height) * y), height)
    return Box(left, top, right - left, bottom - top)


def resized_crop(
    image: "Image.Image", box: Box, size: int, resample: "Image.Resampling"
) -> "Image.Image":
    """Crops an image to `box` and resizes the crop to size x size."""
    left, top, width, height = box
    region = image.crop((left, top, left + width, top + height))
    return region.resize((size, size), resample)


def draw_jitter(rng: np.random.Generator, strength: float) -> list[tuple[str, float]]:
    """Draws operations as ColorJitter(strength, strength, strength) does.

    The operations are "Brightness", "Contrast" and "Color" (saturation), in random
    order, each with a random factor.
    """
    names = [_JITTERED[place] for place in rng.permutation(len(_JITTERED))]
    return [(name, rng.uniform(1 - strength, 1 + strength)) for name in names]


def draw_operation(rng: np.random.Generator) -> tuple[str, float]:
    """Draws an operation of TrivialAugmentWide and its signed magnitude."""
    name = list(_WIDE)[int(rng.integers(len(_WIDE)))]
    largest, is_signed = _WIDE[name]
    magnitude = largest * int(rng.integers(_BINS)) / (_BINS - 1)
    if is_signed and rng.integers(2):
        magnitude = -magnitude
    return name, magnitude


def operate(
    image: "Image.Image", name: str, magnitude: float, resample: "Image.Resampling"
) -> "Image.Image":
    """Applies an operation of TrivialAugmentWide to `image`.

    Args:
      magnitude: for shears, the tangent of the angle; for translations, the distance in
        pixels; for rotations, the angle in degrees; for Posterize, the number of
        removed bits (rounded half to even); for Solarize, the distance of the threshold
        from 255; and for enhancements, the factor minus 1.
    """
    from PIL import Image, ImageOps

    def affine(*matrix: float) -> Image.Image:
        form = Image.Transform.AFFINE
        return image.transform(image.size, form, matrix, resample, fillcolor=_FILL)

    fill = _FILL if image.mode == "L" else (_FILL,) * 3
    match name:
        case "Identity":
            return image
        case "ShearX":
            return affine(1, magnitude, 0, 0, 1, 0)
        case "ShearY":
            return affine(1, 0, 0, magnitude, 1, 0)
        case "TranslateX":
            return affine(1, 0, -int(magnitude), 0, 1, 0)
        case "TranslateY":
            return affine(1, 0, 0, 0, 1, -int(magnitude))
        case "Rotate":
            return image.rotate(magnitude, resample, fillcolor=fill)
        case "Posterize":
            return ImageOps.posterize(image, 8 - round(magnitude))
        case "Solarize":
            return ImageOps.solarize(image, 255 - magnitude)  # type: ignore[arg-type]
        case "AutoContrast":
            return ImageOps.autocontrast(image)
        case "Equalize":
            return ImageOps.equalize(image)
        case _:
            return enhance(image, name, 1 + magnitude)


def enhance(image: "Image.Image", name: str, factor: float) -> "Image.Image":
    """Changes the "Brightness", "Contrast", "Color" or "Sharpness" of `image`."""
    from PIL import ImageEnhance

    changed: Image.Image = getattr(ImageEnhance, name)(image).enhance(factor)
    return changed
