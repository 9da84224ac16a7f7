"""The family of residual networks by name."""

import difflib
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from resnet_jax.errors import ConfigError
from resnet_jax.layers.linear import Init
from resnet_jax.models.blocks import BasicBlock, Bottleneck, Norm, PreActBlock
from resnet_jax.models.hresnet import HResNet
from resnet_jax.models.resnet import ResNet, Stem
from resnet_jax.models.resnet9 import ResNet9

# torchvision's table of depths; the basic blocks of He et al. section 4.2 come in three
# stages of n blocks, depth 6n + 2.
_IMAGENET = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}
_CIFAR = {f"resnet{6 * n + 2}": n for n in (1, 3, 5, 7, 9, 18)}

# Of pictures of 32 pixels, as their papers have them.
_PREACT = {
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


def list_models() -> list[str]:
    """The names that create_model takes."""
    return list(MODELS)


def create_model(
    name: str,
    *,
    num_classes: int,
    stem: Stem | None = None,
    skip: bool = True,
    norm: Norm = "batch",
    dropout: float = 0.0,
    init: Init | None = None,
    drop_path: float = 0.0,
    zero_init_last: bool = False,
    width: int | None = None,
    whiten: bool = False,
    remat: bool = False,
    dtype: Any = jnp.float32,
    param_dtype: Any = None,
) -> nn.Module:
    """The model called `name`, to be used as model.apply(variables, images, train=...).

    Args:
      name: one of list_models().
      num_classes: width of the logits; 0 for features.
      stem: "imagenet" or "cifar" instead of the model's own (not for hresnet).
      skip: False leaves the shortcuts out: the plain network of the same depth.
      norm: "none" leaves BatchNorm out, and gives every convolution a bias.
      dropout: see ResNet.
      init: of the convolutions, "kaiming" or "torch", instead of the model's own.
      drop_path, zero_init_last, remat: see ResNet.
      width, whiten: of resnet9, see ResNet9.
      dtype: of the arithmetic. Parameters and statistics have
        promote_types(dtype, float32), parameters `param_dtype` where given.

    Raises:
      ConfigError: an unknown name or stem.
    """
    if name not in MODELS:
        close = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(f"no model {name!r}: {hint}one of {', '.join(MODELS)}")
    options: dict[str, Any] = {
        "num_classes": num_classes,
        "norm": norm,
        "dropout": dropout,
        "drop_path": drop_path,
        "remat": remat,
        "dtype": jnp.dtype(dtype),
    }
    if not skip:
        options["shortcut"] = "none"
        if drop_path:
            raise ConfigError("drop_path leaves a shortcut: not without --skip")
        if zero_init_last:
            raise ConfigError("zero_init_last leaves a shortcut: not without --skip")
    if zero_init_last:
        if norm == "none":
            raise ConfigError("zero_init_last is of BatchNorm: not with --norm none")
        if name in _PREACT:
            raise ConfigError(f"{name} has no last BatchNorm: without --zero-init-last")
        options["zero_init_last"] = True
    for option, value in (("width", width), ("whiten", whiten)):
        if value is not None and value is not False:
            if name != "resnet9":
                raise ConfigError(f"{option} is resnet9's: {name} has none to choose")
            options[option] = value
    if init is not None:
        options["weight_init"] = init
    if param_dtype is not None:
        options["param_dtype"] = jnp.dtype(param_dtype)
    if stem is not None:
        if name in ("hresnet", "resnet9"):
            raise ConfigError(f"{name} has no stem to choose: --stem None")
        if stem not in ("imagenet", "cifar"):
            raise ConfigError(f"no stem {stem!r}: imagenet or cifar")
        options["stem"] = stem
    return MODELS[name](**options)
