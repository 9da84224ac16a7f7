"""The family of residual networks, with torchvision's names and arithmetic."""

import difflib
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.blocks import BasicBlock, Bottleneck, ModuleDef, Shortcut, no_norm
from resnet_jax.errors import ConfigError
from resnet_jax.layers import BatchNorm, Conv, Init, Linear
from resnet_jax.pooling import avg_pool, max_pool

Stem = Literal["imagenet", "cifar"]
Norm = Literal["batch", "none"]


class ResNet(nn.Module):
    """A residual network of any block, depth and width.

    Maps images [B, H, W, C] to logits [B, num_classes], at least float32; with
    `num_classes=0` to the pooled features [B, widths[-1] * block.expansion]. The output
    of the stem and of each stage is sown into "intermediates" as stem, layer1, ...

    Attributes:
      block: BasicBlock, Bottleneck, or a module with their attributes.
      stage_sizes: blocks of each stage; every stage after the first halves the picture.
      widths: `features` of the blocks of each stage.
      stem: "imagenet" is a 7x7 convolution of stride 2 and a 3x3 max-pool of stride 2;
        "cifar" a 3x3 convolution for small pictures.
      shortcut: identity | pad | conv | conv_bn, see BasicBlock; "none" makes the plain
        network of the same depth.
      use_bias: whether convolutions have biases; without BatchNorm they always have.
      norm: "batch", or "none" for a network without BatchNorm.
      dropout: part of the features that training sets to 0 before the last layer; it
        needs the random stream "dropout".
      weight_init: of the convolutions: "kaiming" (normal, fan out, as torchvision's
        ResNet) or "torch" (nn.Conv2d's default).
      remat: keep of a block only its input for the backward pass, and compute the rest
        again: the same gradients with less memory and a third more arithmetic.
    """

    block: ModuleDef
    stage_sizes: tuple[int, ...]
    num_classes: int
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem: Stem = "imagenet"
    shortcut: Shortcut = "conv_bn"
    use_bias: bool = False
    norm: Norm = "batch"
    dropout: float = 0.0
    weight_init: Init = "kaiming"
    remat: bool = False
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype | None = None

    head = "fc"  # the layer that gives the logits

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv, norm = _layers(self, self.use_bias, types)
        if len(self.stage_sizes) != len(self.widths):
            raise ConfigError(
                f"stage_sizes {self.stage_sizes} and widths {self.widths} "
                "differ in length"
            )
        if self.stem not in ("imagenet", "cifar"):
            raise ConfigError(f"no stem {self.stem!r}: imagenet or cifar")
        if self.stem == "imagenet":
            x = conv(self.widths[0], 7, stride=2, padding=3, name="conv1")(x)
        else:
            x = conv(self.widths[0], 3, padding=1, name="conv1")(x)
        x = nn.relu(norm(name="bn1")(x, train=train))
        if self.stem == "imagenet":
            x = max_pool(x)
        self.sow("intermediates", "stem", x)
        stages = enumerate(zip(self.stage_sizes, self.widths, strict=True), start=1)
        for stage, (size, width) in stages:
            for index in range(size):
                block = self.block(
                    width,
                    stride=2 if stage > 1 and index == 0 else 1,
                    shortcut=self.shortcut,
                    conv=conv,
                    norm=norm,
                    name=f"layer{stage}.{index}",
                )
                x = _apply(block, x, train, self.remat)
            self.sow("intermediates", f"layer{stage}", x)
        x = _dropout(x.mean((1, 2)), self.dropout, train)
        return _classify(x, self.num_classes, self.head, types)


class Head(nn.Module):
    """The last layer of a network alone: features [B, F] to logits [B, num_classes].

    It takes the network's own variables and reads `layer` of them.
    """

    layer: str
    num_classes: int
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return _classify(x, self.num_classes, self.layer, types)


class HResNet(nn.Module):
    """The tutorial's network: three blocks with average pools, three linear layers.

    Maps images [B, 32, 32, 3] to logits [B, num_classes], at least float32; with
    `num_classes=0` to the features [B, 512] before the last layer. Convolutions have
    biases, each shortcut is a 1x1 convolution without BatchNorm, the features are
    flattened in PyTorch's order C, H, W, and every layer has PyTorch's default init.
    shortcut, norm, dropout (after fc1 and fc2), weight_init and remat are as in ResNet.
    """

    num_classes: int
    shortcut: Shortcut = "conv"
    norm: Norm = "batch"
    dropout: float = 0.0
    weight_init: Init = "torch"
    remat: bool = False
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype | None = None

    head = "fc3"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if min(x.shape[1:3]) < 8:
            raise ConfigError(
                f"hresnet halves pictures thrice: {x.shape[1]}x{x.shape[2]} is too "
                "small, 8x8 the least"
            )
        conv, norm = _layers(self, True, types)
        block = partial(BasicBlock, shortcut=self.shortcut, conv=conv, norm=norm)
        for index, features in enumerate((64, 128, 256), start=1):
            x = _apply(block(features, name=f"b{index}"), x, train, self.remat)
            x = avg_pool(x)
            self.sow("intermediates", f"b{index}.pool", x)
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
        for name, features in (("fc1", 2048), ("fc2", 512)):
            x = nn.relu(Linear(features, name=name, **types)(x))
            x = _dropout(x, self.dropout, train)
        return _classify(x, self.num_classes, self.head, types)


def _layers(
    model: nn.Module, use_bias: bool, types: dict[str, Any]
) -> tuple[ModuleDef, ModuleDef]:
    """(conv, norm) as `model` has them."""
    if model.norm not in get_args(Norm):
        raise ConfigError(f"no norm {model.norm!r}: one of {', '.join(get_args(Norm))}")
    is_batch = model.norm == "batch"
    conv = partial(
        Conv,
        use_bias=use_bias or not is_batch,
        weight_init=model.weight_init,
        **types,
    )
    norm = partial(BatchNorm, momentum=0.1, epsilon=1e-5, **types)
    return conv, norm if is_batch else no_norm


def _apply(block: nn.Module, x: jax.Array, train: bool, remat: bool) -> jax.Array:
    if not remat:
        return block(x, train=train)
    return nn.remat(lambda block, x: block(x, train=train))(block, x)


def _dropout(x: jax.Array, rate: float, train: bool) -> jax.Array:
    return nn.Dropout(rate, deterministic=not train)(x) if rate else x


def _classify(
    x: jax.Array, num_classes: int, name: str, types: dict[str, Any]
) -> jax.Array:
    if num_classes:
        x = Linear(num_classes, name=name, **types)(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


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

MODELS: dict[str, Callable[..., nn.Module]] = {
    "hresnet": HResNet,
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
      remat: see ResNet.
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
        "remat": remat,
        "dtype": jnp.dtype(dtype),
    }
    if not skip:
        options["shortcut"] = "none"
    if init is not None:
        options["weight_init"] = init
    if param_dtype is not None:
        options["param_dtype"] = jnp.dtype(param_dtype)
    if stem is not None:
        if name == "hresnet":
            raise ConfigError("hresnet has no stem to choose: --stem None")
        if stem not in ("imagenet", "cifar"):
            raise ConfigError(f"no stem {stem!r}: imagenet or cifar")
        options["stem"] = stem
    return MODELS[name](**options)
