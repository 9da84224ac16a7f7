"""Recognizes the network in a weights file that does not fit the chosen network."""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn

from resnet_jax.models.factory import MODELS, create_model
from resnet_jax.training.state import variable_shapes
from resnet_jax.weights import convert, match
from resnet_jax.weights.match import Match

_SIDE = 32  # image side in pixels; hresnet requires it, and others accept any side

# Unsupported network types, keyed by regular expressions for their parameter names.
_OTHERS = {
    r"\.se(_module|_layer)?\.": "a network with squeeze-and-excitation",
    r"(^|\.)conv1\.[36]\.|\.downsample\.2\.": "a ResNet-D",
    r"attn\.|attention\.|cls_token": "a vision transformer",
    r"denseblock": "a DenseNet",
    r"layer_scale|dwconv|stages\.0\.blocks\.": "a ConvNeXt or RegNet",
    r"blocks\.0\.0\.conv|features\.\d\.(conv|\d\.block)\.": (
        "a MobileNet or EfficientNet"
    ),
    r"(^|\.)features\.0\.weight": "a VGG or AlexNet",
}


def explain(
    content: Any, found: Sequence[Match], name: str, model: nn.Module
) -> str | None:
    """Describes the network in a weights file, and the options that it requires.

    Args:
      content: the content of the file.
      found: the matches for `model`, all of which have wrong shapes.
      name: the model's name.
      model: the chosen network.

    Returns:
      The text to print after the file name, or None if the file has no weights.
    """
    dictionaries = match.dictionaries(content)
    if not dictionaries:
        return None
    key = max(dictionaries, key=lambda key: len(dictionaries[key]))
    largest = dictionaries[key]
    for one in found:
        stem = _explain_stem(one, dictionaries[one.key], model)
        if stem is not None:
            return stem
    for other, options in _candidates(largest):
        shapes, head = _shapes(other, MODELS[other], tuple(options.items()))
        for one in match.find(content, shapes, head):
            if set(one.misshapen) <= {"conv1.weight"}:
                channels = _shape(dictionaries[one.key], one, "conv1.weight")[1]
                if other == name and not options and channels == model.in_channels:
                    return f"is a plain {other}: omit the options that change it"
                return f"is a {other}: use {_flags(other, options, channels)}"
    for pattern, kind in _OTHERS.items():
        shown = next((n for n in largest if re.search(pattern, n)), None)
        if shown is not None:
            return f"is {kind}, which is not supported (it has {shown})"
    if (groups := _groups(largest)) > 1:
        return f"has convolutions with {groups} groups, which is not supported"
    wanted = convert.shapes_of(
        variable_shapes(model, (_SIDE, _SIDE, model.in_channels))
    )
    return f"does not fit {name}: {convert.list_problems(largest, wanted)}"


@functools.cache
def _shapes(
    name: str, make: Any, options: tuple[tuple[str, Any], ...]
) -> tuple[match.Shapes, str]:
    """Returns (shapes, head) of the network `name`; `make` is only a cache key."""
    model: Any = create_model(name, num_classes=2, **dict(options))
    variables = variable_shapes(model, (_SIDE, _SIDE, model.in_channels))
    return convert.shapes_of(variables), model.head


def _explain_stem(
    found: Match, dictionary: Mapping[str, Any], model: Any
) -> str | None:
    """Explains a match in which only the first convolution has a different shape."""
    if found.misshapen != ("conv1.weight",):
        return None
    _, channels, side, _ = _shape(dictionary, found, "conv1.weight")
    stem = {3: "cifar", 7: "imagenet"}.get(side)
    if stem is not None and stem != getattr(model, "stem", stem):
        return f"has a first convolution with a {side}x{side} kernel: use --stem {stem}"
    if channels != model.in_channels:
        plural = "" if channels == 1 else "s"
        hint = f"use --in-channels {channels}"
        if channels not in (1, 3):
            hint = f"--in-channels {channels} does not work with image files"
        return (
            f"takes images with {channels} channel{plural}, but the chosen network "
            f"takes {model.in_channels}: {hint}"
        )
    return None


def _candidates(
    dictionary: Mapping[str, Any],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (name, options) for networks with a plausible number of convolutions."""
    count = sum(len(match.shape_of(value) or ()) == 4 for value in dictionary.values())
    for name, make in MODELS.items():
        known = getattr(make, "keywords", {})
        if "stage_sizes" not in known:
            yield name, {}
            continue
        in_block = 3 if getattr(known["block"], "expansion", 1) > 1 else 2
        least = 1 + in_block * sum(known["stage_sizes"])
        if least <= count <= least + sum(known["stage_sizes"]):
            yield name, {}
            if known.get("shortcut") == "pad":
                yield name, {"shortcut": "conv_bn"}
                yield name, {"shortcut": "conv"}


def _flags(name: str, options: Mapping[str, Any], channels: int) -> str:
    flags = [f"--model {name}"]
    flags += [f"--{option} {value}" for option, value in options.items()]
    return " ".join(flags + ([f"--in-channels {channels}"] if channels == 1 else []))


def _shape(dictionary: Mapping[str, Any], found: Match, name: str) -> tuple[int, ...]:
    shape = match.shape_of(dictionary[found.names[name]]) or ()
    return (*shape, 0, 0, 0, 0)[:4]


def _groups(dictionary: Mapping[str, Any]) -> int:
    """Returns the number of groups in the bottlenecks' 3x3 convolutions."""
    ratios = {
        len(value) // value.shape[1]
        for name, value in dictionary.items()
        if name.endswith("conv2.weight")
        and len(match.shape_of(value) or ()) == 4
        and value.shape[1]
    }
    return ratios.pop() if len(ratios) == 1 else 1
