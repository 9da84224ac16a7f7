"""Reads config.json and similar files that timm and transformers write."""

import math
import os
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from resnet_jax import files
from resnet_jax.errors import DataError, first_line
from resnet_jax.paths import shown
from resnet_jax.weights.published import IMAGENET

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"

# Network names in timm and torchvision, keyed by layer type and blocks per stage.
_FAMILY = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
    ("bottleneck", (3, 8, 36, 3)): "resnet152",
}
_WIDTHS = {"basic": (64, 128, 256, 512), "bottleneck": (256, 512, 1024, 2048)}
# timm's model arguments that change neither the architecture nor the weights' names.
_HARMLESS = {
    *("in_chans", "num_classes", "drop_rate", "drop_path_rate", "drop_block_rate"),
    *("zero_init_last", "img_size"),
}
# Pillow's interpolation methods, in the order of their numeric values.
_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
# The maximum image side, and the smallest that ConvNextImageProcessor never crops.
_MAX_SIDE, _SQUASHED = 4096, 384
T = TypeVar("T")


class Described(NamedTuple):
    """The description of weights in a folder's JSON files. Missing fields are None."""

    architecture: str | None  # a key of published.IMAGENET, or None
    num_classes: int | None  # 0 for a network without a head
    in_channels: int
    mean: tuple[float, ...] | None  # per channel, for images scaled to [0, 1]
    std: tuple[float, ...] | None
    crop: int | None  # side length of the network's square input
    resize: int | None  # length to which the shorter side is resized, or None
    interpolation: str | None  # nearest, bilinear, bicubic, lanczos, box or hamming
    class_names: tuple[str, ...] | None
    stride_in_1x1: bool  # whether a bottleneck's stride is in its first convolution
    stated: str  # description of the architecture, for messages


def read_described(directory: str | Path) -> Described:
    """Reads the description of weights from timm's or transformers' JSON files.

    timm writes the field "architecture" to config.json. transformers writes the field
    "model_type" there, and the image preprocessing to preprocessor_config.json.

    Raises:
      DataError: if config.json is missing, or a file is not in either library's format.
    """
    path = Path(directory) / CONFIG
    try:
        config = _object(files.read_json(path), "it")
        if "architecture" in config:
            return _of_timm(config)
        if "model_type" not in config:
            raise ValueError("it has neither architecture nor model_type")
        described = _of_transformers(config)
        path = Path(directory) / PREPROCESSOR
        if not os.path.lexists(path):
            return described
        return _with_processor(described, _object(files.read_json(path), "it"))
    except ValueError as error:
        raise DataError(
            f"{path} is missing, or is not in the format of timm or transformers "
            f"({_line(error)}): download it again, or pass the weights file itself"
        ) from None


def _of_timm(config: Mapping[str, Any]) -> Described:
    name = _text(config["architecture"], "architecture")
    pretrained = _get(config, "pretrained_cfg", _object)
    pretrained = config if pretrained is None else pretrained  # older, flat files
    options = _get(config, "model_args", _object) or {}
    pool = options.get("global_pool", config.get("global_pool"))
    changed = [key for key in options if key not in {*_HARMLESS, "global_pool"}]
    changed += ["global_pool"] if pool not in (None, "", "avg") else []
    is_ours = name in IMAGENET and not changed
    size = _get(pretrained, "input_size", _input_size) or (3, None)
    channels = _get(options, "in_chans", _channels) or size[0]
    both = {**pretrained, **config}
    classes = _get(both, "num_classes", _classes)
    interpolation = _get(pretrained, "interpolation", _text)
    if interpolation not in (None, *_RESAMPLE):
        raise _wrong(interpolation, "interpolation")
    crop_pct = _get(pretrained, "crop_pct", _number)
    is_cropped = pretrained.get("crop_mode") in (None, "center")
    names = _get(both, "label_names", _names) or _get(both, "labels", _names)
    return Described(
        architecture=name if is_ours else None,
        num_classes=classes,
        in_channels=channels,
        mean=_per_channel(pretrained, "mean", channels, averaged=True),
        std=_per_channel(pretrained, "std", channels, averaged=True),
        crop=size[1],
        resize=_resized(size[1], crop_pct) if is_cropped else None,
        interpolation=interpolation,
        class_names=_one_each(names, classes),
        stride_in_1x1=False,
        stated=_line(f"timm's {name}" + "".join(f", other {key}" for key in changed)),
    )


def _of_transformers(config: Mapping[str, Any]) -> Described:
    kind = _text(config["model_type"], "model_type")
    stated = _line(f"transformers' {kind}")
    unsaid = Described(None, None, 3, *(None,) * 6, stride_in_1x1=False, stated=stated)
    if kind != "resnet":
        return unsaid
    # For missing fields, use the default values of ResNetConfig().
    layer = _get(config, "layer_type", _text) or "bottleneck"
    depths = _get(config, "depths", _sizes) or (3, 4, 6, 3)
    widths = _get(config, "hidden_sizes", _sizes) or _WIDTHS["bottleneck"]
    stem = _get(config, "embedding_size", _count) or 64
    activation = _get(config, "hidden_act", _text) or "relu"
    is_early = _get(config, "downsample_in_first_stage", _flag) or False
    is_usual = stem == 64 and activation == "relu" and not is_early
    is_ours = is_usual and widths == _WIDTHS.get(layer)
    labels = _get(config, "id2label", _object)
    is_head = config.get("architectures") == ["ResNetForImageClassification"]
    without = 2 if is_head else None  # transformers omits the default of two labels
    classes = without if labels is None else len(labels)
    names = _names(labels, "id2label") if labels is not None else ()
    if all(name == f"LABEL_{index}" for index, name in enumerate(names)):
        names = ()  # transformers' placeholders, not real names
    sizes = f"depths {list(depths)}, hidden sizes {list(widths)}, embedding size {stem}"
    early = ", downsampling in the first stage" * is_early
    return unsaid._replace(
        architecture=_FAMILY.get((layer, depths)) if is_ours else None,
        num_classes=classes,
        in_channels=_get(config, "num_channels", _channels) or 3,
        class_names=_one_each(names, classes),
        stride_in_1x1=_get(config, "downsample_in_bottleneck", _flag) or False,
        stated=_line(
            f"transformers' resnet with {layer} layers, {sizes}, {activation}{early}"
        ),
    )


def _with_processor(described: Described, content: Mapping[str, Any]) -> Described:
    """Returns `described` with the preprocessing from preprocessor_config.json."""
    factor = _get(content, "rescale_factor", _number)
    is_scaled = factor is None or math.isclose(factor, 1 / 255, rel_tol=1e-3)
    if not is_scaled or content.get("do_rescale") is False:
        raise ValueError("its preprocessing does not scale images to [0, 1]")
    channels = described.in_channels
    mean = _per_channel(content, "image_mean", channels)
    std = _per_channel(content, "image_std", channels)
    if content.get("do_normalize") is False:
        mean, std = (0.0,) * channels, (1.0,) * channels
    resample = _get(content, "resample", _within(range(len(_RESAMPLE))))
    crop, resize = _crop(content)
    return described._replace(
        mean=mean,
        std=std,
        crop=crop,
        resize=None if content.get("do_resize") is False else resize,
        interpolation=None if resample is None else _RESAMPLE[resample],
    )


def _crop(content: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Returns (crop side, resized shorter side); None replaces a missing value."""
    size = content.get("size")
    is_named = isinstance(size, Mapping) and "shortest_edge" in size
    is_shorter = is_named or isinstance(size, int)
    side = _get(content, "size", _square)
    crop = _get(content, "crop_size", _square)
    crop_pct = _get(content, "crop_pct", _number)
    if crop is not None and content.get("do_center_crop") is not False:
        return crop, side if is_shorter else None
    if crop_pct is not None and is_shorter and side is not None:
        return side, _resized(side, crop_pct) if side < _SQUASHED else None
    if is_named:  # no crop, and the image keeps its aspect ratio
        return None, side
    return side, None  # resized to a square, regardless of the aspect ratio


def _resized(crop: int | None, crop_pct: float | None) -> int | None:
    if crop is None or crop_pct is None:
        return None
    if not 0 < crop_pct <= 1 or crop / crop_pct >= _MAX_SIDE + 1:
        raise ValueError(f"crop_pct is {crop_pct}")
    return math.floor(crop / crop_pct)


def _one_each(names: Sequence[str] | None, classes: int | None) -> Any:
    """Returns `names` as a tuple, or None if empty; requires one name per class."""
    if names and classes is not None and len(names) != classes:
        raise ValueError(f"it has {len(names)} names for {classes} classes")
    return tuple(names) if names else None


def _per_channel(
    content: Mapping[str, Any], field: str, channels: int, averaged: bool = False
) -> tuple[float, ...] | None:
    """Returns one value per channel; if `averaged`, a single channel gets the mean."""
    found = content.get(field)
    if found is None:
        return None
    values = tuple(_number(value, field) for value in _list(found, field))
    if not values or (field.endswith("std") and min(values) <= 0):
        raise _wrong(found, field)
    if averaged and channels == 1:
        values = (math.fsum(values) / len(values),)
    if len(values) == 1:
        values *= channels
    if len(values) != channels:
        raise ValueError(f"{field} has {len(values)} values for {channels} channels")
    return values


def _get(content: Mapping[str, Any], field: str, parse: Callable[[Any, str], T]) -> Any:
    """Returns the field, converted by `parse`, or None if it is missing or null."""
    value = content.get(field)
    return None if value is None else parse(value, field)


def _wrong(value: Any, field: str) -> ValueError:
    return ValueError(f"{field} is {reprlib.repr(value)}")


def _typed(kind: type[T]) -> Callable[[Any, str], T]:
    def parse(value: Any, field: str) -> T:
        if not isinstance(value, kind):
            raise _wrong(value, field)
        return value

    return parse


def _within(allowed: range) -> Callable[[Any, str], int]:
    def parse(value: Any, field: str) -> int:
        if type(value) is not int or value not in allowed:  # rejects bools
            raise _wrong(value, field)
        return value

    return parse


_object, _list = _typed(dict), _typed(list)
_text, _flag = _typed(str), _typed(bool)
_count, _classes = _within(range(1, 2**20)), _within(range(2**20))
_channels, _side = _within(range(1, 1025)), _within(range(1, _MAX_SIDE + 1))


def _number(value: Any, field: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not abs(value) < 1e9:  # excludes NaN too
        raise _wrong(value, field)
    return float(value)


def _sizes(value: Any, field: str) -> tuple[int, ...]:
    return tuple(_count(size, field) for size in _list(value, field))


def _input_size(value: Any, field: str) -> tuple[int, int | None]:
    """Returns (channels, side) from timm's [C, H, W]; the side is None if H != W."""
    if not isinstance(value, list) or len(value) != 3:
        raise _wrong(value, field)
    height, width = (_side(side, field) for side in value[1:])
    return _channels(value[0], field), height if height == width else None


def _square(value: Any, field: str) -> int | None:
    """Parses a size in any transformers format; returns None if it is not square."""
    if not isinstance(value, dict):
        return _side(value, field)
    if "shortest_edge" in value:
        return _side(value["shortest_edge"], field)
    height, width = value.get("height"), value.get("width")
    return _side(height, field) if height == width else None


def _names(value: Any, field: str) -> tuple[str, ...]:
    """Parses a list or index-keyed dict of names; returns () if any name is missing."""
    if isinstance(value, dict):
        numbers = [str(number) for number in range(len(value))]
        value = [value[number] for number in numbers if number in value]
        if len(value) != len(numbers):
            return ()
    return tuple(shown(_text(name, field)) for name in _list(value, field))


def _line(text: object) -> str:
    """Formats any value from a file as one printable line."""
    return "".join(c if c.isprintable() else "?" for c in first_line(text))
