"""Creates residual networks by name."""

import dataclasses
import difflib
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import flax.linen as nn
import jax.numpy as jnp

from resnet_jax.config import ModelConfig
from resnet_jax.errors import ConfigError
from resnet_jax.models.blocks import BasicBlock, Bottleneck, PreActBlock
from resnet_jax.models.hresnet import HResNet
from resnet_jax.models.resnet import ResNet, Stem
from resnet_jax.models.resnet9 import ResNet9

# torchvision's networks: the block type and the number of blocks in each stage.
_IMAGENET = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}
# Other networks in torchvision; see Zagoruyko and Komodakis 2016 and Xie et al. 2017.
_WIDE: dict[str, tuple[str, dict[str, Any]]] = {
    "wide_resnet50_2": ("resnet50", {"width_per_group": 128}),
    "wide_resnet101_2": ("resnet101", {"width_per_group": 128}),
    "resnext50_32x4d": ("resnet50", {"groups": 32, "width_per_group": 4}),
    "resnext101_32x8d": ("resnet101", {"groups": 32, "width_per_group": 8}),
    "resnext101_64x4d": ("resnet101", {"groups": 64, "width_per_group": 4}),
}
# The networks of He et al. 2015, section 4.2, have three stages of n basic blocks each,
# and a depth of 6n + 2.
_CIFAR = {f"resnet{6 * n + 2}": n for n in (1, 3, 5, 7, 9, 18)}

# Networks for 32x32 images, with the sizes from their papers.
_PREACT: dict[str, dict[str, Any]] = {
    "preact_resnet18": {"stage_sizes": (2, 2, 2, 2), "widths": (64, 128, 256, 512)},
    "wrn28_10": {
        "stage_sizes": (4, 4, 4),
        "widths": (160, 320, 640),
        "stem_width": 16,
    },
}

MODELS: dict[str, Callable[..., nn.Module]] = {
    "hresnet": HResNet,
    "resnet9": ResNet9,
    **{
        name: partial(ResNet, block=block, stage_sizes=stage_sizes)
        for name, (block, stage_sizes) in _IMAGENET.items()
    },
    **{
        name: partial(ResNet, block=Bottleneck, stage_sizes=_IMAGENET[depth][1], **own)
        for name, (depth, own) in _WIDE.items()
    },
    **{
        name: partial(
            ResNet,
            block=BasicBlock,
            stage_sizes=(n, n, n),
            widths=(16, 32, 64),
            stem="cifar",
            shortcut="pad",
        )
        for name, n in _CIFAR.items()
    },
    **{
        name: partial(ResNet, block=PreActBlock, stem="cifar", shortcut="conv", **sizes)
        for name, sizes in _PREACT.items()
    },
}


# Hints for options that have other names in timm and torchvision.
_ELSEWHERE = {
    "in_chans": ": use in_channels",
    "pretrained": ": load_pretrained(name) returns a pretrained network",
    "weights": ": load_pretrained(name) returns a pretrained network",
    "drop_rate": ": use dropout",
    "drop_path_rate": ": use drop_path",
    "zero_init_residual": ": use zero_init_last",
}


def list_models() -> list[str]:
    """Returns the names that create_model accepts."""
    return list(MODELS)


def create(cfg: ModelConfig, num_classes: int, in_channels: int = 3) -> nn.Module:
    """Returns the model that `cfg` describes (see create_model)."""
    options: dict[str, Any] = {**vars(cfg), "in_channels": in_channels}
    name = options.pop("model")
    return create_model(name, num_classes=num_classes, **options)


def create_model(name: str, *, num_classes: int, **options: Any) -> nn.Module:
    """Returns the model `name`; call it as model.apply(variables, images, train=...).

    Args:
      name: one of list_models().
      num_classes: number of logits; if 0, the model returns features.
      options: fields of ModelConfig or of the model's class (ResNet, ResNet9 or
        HResNet). For an option that is None or has ModelConfig's default value, the
        model uses its own default. `skip=False` means shortcut="none", and `init` sets
        weight_init.

    Raises:
      ConfigError: if the name or an option is unknown, or if options conflict.
    """
    if name not in MODELS:
        close = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        names = ", ".join(MODELS)
        raise ConfigError(f"unknown model {name!r}: {hint}choose one of {names}")
    make = MODELS[name]
    own = {field.name for field in dataclasses.fields(_class_of(make))}
    defaults = vars(ModelConfig())
    chosen: dict[str, Any] = {}
    if options.get("skip") is False and options.get("shortcut") not in (None, "none"):
        raise ConfigError("--no-skip removes all shortcuts: drop --shortcut")
    for option, value in options.items():
        if value is None or (option in defaults and value == defaults[option]):
            continue
        if option == "skip":
            option, value = "shortcut", "none"
        option = {"init": "weight_init"}.get(option, option)
        if option not in own:
            others = sorted({"init"} | own & {*defaults, "in_channels"})
            hint = _ELSEWHERE.get(option, f": choose from {', '.join(others)}")
            raise ConfigError(f"{name} has no option {option}{hint}")
        is_type = option in ("dtype", "param_dtype")
        chosen[option] = jnp.dtype(value) if is_type else value
    model = make(num_classes=num_classes, **chosen)
    _check_together(name, model)
    return model


def _class_of(make: Callable[..., nn.Module]) -> Any:
    return make.func if isinstance(make, partial) else make


def _check_together(name: str, model: Any) -> None:
    if model.shortcut == "none":
        for option in ("drop_path", "zero_init_last"):
            if getattr(model, option):
                raise ConfigError(f"{option} needs a shortcut: drop --no-skip")
    for option in ("zero_init_last", "bn_momentum", "bn_eps"):
        is_set = getattr(model, option) != getattr(type(model), option)
        if is_set and model.norm == "none":
            raise ConfigError(f"{option} needs BatchNorm: drop --norm none")
    if model.zero_init_last and getattr(model, "block", None) is PreActBlock:
        raise ConfigError(
            f"the blocks of {name} do not end with BatchNorm: drop --zero-init-last"
        )
    stem = getattr(model, "stem", None)
    if stem is not None and stem not in get_args(Stem):
        raise ConfigError(f"unknown stem {stem!r}: choose imagenet or cifar")
