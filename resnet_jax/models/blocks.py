"""Residual blocks and their shortcuts, with torchvision's names and arithmetic."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.errors import ConfigError
from resnet_jax.layers import keep
from resnet_jax.layers.conv import Conv
from resnet_jax.layers.inputs import check_images
from resnet_jax.layers.linear import Init, Linear
from resnet_jax.layers.norm import BatchNorm, no_norm, normalized

Norm = Literal["batch", "none"]
Shortcut = Literal["identity", "pad", "conv", "conv_bn", "none"]
ModuleDef = Callable[..., Any]  # returns a module, or a function that acts like one


def _shortcut(
    block: nn.Module, x: jax.Array, features: int, train: bool
) -> jax.Array | float:
    """Applies the shortcut of `block`; the output has `features` channels.

    - identity: x itself.
    - pad: every stride-th pixel, with zero-padded channels (He et al.'s option A).
    - conv: a 1x1 convolution, even if the shape stays the same (as in the tutorial).
    - conv_bn: a 1x1 convolution and BatchNorm if the shape changes, as in torchvision
      (option B).
    - none: 0, which yields a plain network of the same depth.
    """
    if block.shortcut not in get_args(Shortcut):
        raise ConfigError(
            f"unknown shortcut {block.shortcut!r}: "
            f"choose one of {', '.join(get_args(Shortcut))}"
        )
    if block.shortcut == "none":
        return 0.0
    changes = block.stride != 1 or x.shape[-1] != features
    project = partial(block.conv, features, 1, stride=block.stride, padding=0)
    if block.shortcut == "conv":
        return project(name="downsample")(x)  # type: ignore[no-any-return]
    if not changes:
        return x
    if block.shortcut == "conv_bn":
        layers = project(name="downsample.0"), block.norm(name="downsample.1")
        return normalized(*layers, x, train)
    if block.shortcut == "pad" and x.shape[-1] <= features:
        missing = features - x.shape[-1]
        before, after = missing // 2, missing - missing // 2
        x = x[:, :: block.stride, :: block.stride, :]
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (before, after)))
    raise ConfigError(
        f"shortcut {block.shortcut!r} cannot map {x.shape[-1]} channels to {features} "
        f"at stride {block.stride}: use 'conv_bn', 'conv' or, to widen, 'pad'"
    )


def _last_norm(block: nn.Module, name: str) -> Callable[..., jax.Array]:
    options = {"scale_init": nn.initializers.zeros} if block.zero_init_last else {}
    found: Callable[..., jax.Array] = block.norm(name=name, **options)
    return found


def _drop_path(block: nn.Module, y: jax.Array, train: bool) -> jax.Array:
    if not train or not block.drop_path:
        return y
    kept = 1.0 - block.drop_path
    stays = jax.random.bernoulli(block.make_rng("dropout"), kept, (len(y), 1, 1, 1))
    return jnp.where(stays, y / kept, 0)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; maps [B, H, W, C] to [B, H', W', features].

    See He et al. 2015, figure 5 (left), and torchvision.models.resnet.BasicBlock.

    Attributes:
      shortcut: see _shortcut.
      drop_path: probability of dropping an image's residual in training (DropPath in
        timm). Kept residuals are scaled up. This needs the RNG stream "dropout".
      zero_init_last: whether to initialize the scale of the last BatchNorm to 0, so
        that the block starts as its shortcut (torchvision's zero_init_residual).
    """

    features: int
    stride: int = 1
    shortcut: Shortcut = "conv_bn"
    conv: ModuleDef = partial(Conv, use_bias=False, weight_init="kaiming")
    norm: ModuleDef = partial(BatchNorm, momentum=0.1, epsilon=1e-5)
    drop_path: float = 0.0
    zero_init_last: bool = False

    expansion = 1  # ratio of output channels to `features`
    is_preact = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = self.conv(self.features, 3, stride=self.stride, padding=1, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train=train))
        y = self.conv(self.features, 3, padding=1, name="conv2")(y)
        y = _last_norm(self, "bn2")(y, train=train)
        y = _drop_path(self, y, train)
        return nn.relu(y + _shortcut(self, x, self.features, train))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions; maps [B, H, W, C] to [B, H', W', 4 * features].

    By default, the stride is in the 3x3 convolution, as in torchvision ("V1.5").

    Attributes:
      groups: number of groups in the 3x3 convolution (ResNeXt, Xie et al. 2017).
      base_width: channels per group if `features` is 64; wide_resnet50_2 uses 128.
      stride_in_1x1: whether the stride is in the first convolution (He et al. 2015).
    """

    features: int
    stride: int = 1
    shortcut: Shortcut = "conv_bn"
    conv: ModuleDef = partial(Conv, use_bias=False, weight_init="kaiming")
    norm: ModuleDef = partial(BatchNorm, momentum=0.1, epsilon=1e-5)
    drop_path: float = 0.0
    zero_init_last: bool = False
    groups: int = 1
    base_width: int = 64
    stride_in_1x1: bool = False

    expansion = 4
    is_preact = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        features = self.features * self.expansion
        width = self.features * self.base_width // 64 * self.groups
        first, second = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
        options: dict[str, Any] = {"groups": self.groups} if self.groups > 1 else {}
        y = self.conv(width, 1, stride=first, padding=0, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train=train))
        options |= {"stride": second, "padding": 1, "name": "conv2"}
        y = self.conv(width, 3, **options)(y)
        y = nn.relu(self.norm(name="bn2")(y, train=train))
        conv3 = self.conv(features, 1, padding=0, name="conv3")
        y = normalized(conv3, _last_norm(self, "bn3"), y, train)
        y = _drop_path(self, y, train)
        return nn.relu(y + _shortcut(self, x, features, train))


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each preceded by BatchNorm and ReLU.

    See He et al. 2016, figure 4 (e); for the shapes and drop_path, see BasicBlock.

    Attributes:
      shortcut: "conv" is a 1x1 convolution of the first convolution's input if the
        shape changes, and x itself otherwise. "none" omits the shortcut.
    """

    features: int
    stride: int = 1
    shortcut: Shortcut = "conv"
    conv: ModuleDef = partial(Conv, use_bias=False, weight_init="kaiming")
    norm: ModuleDef = partial(BatchNorm, momentum=0.1, epsilon=1e-5)
    drop_path: float = 0.0

    expansion = 1
    is_preact = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if self.shortcut not in ("conv", "none"):
            raise ConfigError(
                f"PreActBlock has no shortcut {self.shortcut!r}: choose conv or none"
            )
        y = nn.relu(self.norm(name="bn1")(x, train=train))
        shortcut: jax.Array | float = x
        if self.shortcut == "none":
            shortcut = 0.0
        elif self.stride != 1 or x.shape[-1] != self.features:
            project = partial(self.conv, self.features, 1, padding=0)
            shortcut = project(stride=self.stride, name="downsample")(y)
        y = self.conv(self.features, 3, stride=self.stride, padding=1, name="conv1")(y)
        y = nn.relu(self.norm(name="bn2")(y, train=train))
        y = self.conv(self.features, 3, padding=1, name="conv2")(y)
        return shortcut + _drop_path(self, y, train)


class Network(nn.Module, kw_only=True):
    """Base class of all residual networks.

    Attributes:
      num_classes: number of logits; if 0, the network returns features.
      in_channels: number of image channels.
      norm: "batch", or "none" for a network without BatchNorm.
      bn_momentum: momentum of every BatchNorm, as in PyTorch: the weight of the new
        batch.
      bn_eps: epsilon of every BatchNorm.
      dropout: rate before the last layer; if not 0, it needs the RNG stream "dropout".
      weight_init: initialization of the convolutions: "kaiming" (normal, fan out, as in
        torchvision's ResNet) or "torch" (nn.Conv2d's default).
      drop_path: rate in the last block (see BasicBlock); rates rise linearly from 0.
      zero_init_last: see BasicBlock.
      remat: whether the backward pass recomputes everything but each block's input.
        Gradients stay the same; memory use falls, and computation rises by a third.
    """

    num_classes: int
    in_channels: int = 3
    norm: Norm = "batch"
    bn_momentum: float = 0.1
    bn_eps: float = 1e-5
    dropout: float = 0.0
    weight_init: Init = "kaiming"
    drop_path: float = 0.0
    zero_init_last: bool = False
    remat: bool = False
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype | None = None

    head = "fc"  # the layer that computes the logits
    logit_scale = 1.0  # the factor by which the logits are multiplied

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise ConfigError(f"unknown norm {self.norm!r}: choose batch or none")
        if self.bn_momentum is None or not 0 <= self.bn_momentum <= 1:
            raise ConfigError(f"bn_momentum {self.bn_momentum} is not in [0, 1]")
        if not self.bn_eps > 0:
            raise ConfigError(f"bn_eps {self.bn_eps} is not greater than 0")
        super().__post_init__()

    @property
    def types(self) -> dict[str, Any]:
        """Returns the dtype arguments for every layer."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    @nn.nowrap
    def fit_to_images(
        self,
        variables: dict[str, Any],
        inputs: Callable[[int], Iterable[np.ndarray]],
    ) -> dict[str, Any]:
        """Fits variables to the images before training; only resnet9 requires this.

        Args:
          inputs: a function that yields a given number of preprocessed images.
        """
        return variables

    def make_layers(self, x: jax.Array, use_bias: bool) -> tuple[ModuleDef, ModuleDef]:
        """Returns (conv, norm). Without BatchNorm, convolutions always have biases."""
        check_images(x, self.in_channels, "the network")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ConfigError(
                f"the network expects normalized images, not raw {x.dtype}: call "
                "preprocessing(images) or the function from data.make_preprocess"
            )
        is_batch = self.norm == "batch"
        options = {"weight_init": self.weight_init, **self.types}
        conv = partial(Conv, use_bias=use_bias or not is_batch, **options)
        own = {"momentum": self.bn_momentum, "epsilon": self.bn_eps, **self.types}
        return conv, partial(BatchNorm, **own) if is_batch else no_norm


def apply_block(block: nn.Module, x: jax.Array, train: bool, remat: bool) -> jax.Array:
    """Returns block(x). With `remat`, the backward pass recomputes everything but x.

    Without `remat`, bfloat16 training on GPUs keeps one feature map per convolution.
    """

    def apply(block: Any, x: jax.Array) -> Any:
        return block(x, train=train)

    if remat:
        apply = nn.remat(apply)
    elif train and keep.is_worthwhile(x.dtype):
        apply = nn.remat(apply, policy=keep.policy)
    y: jax.Array = apply(block, x)
    return y


def dropout(x: jax.Array, rate: float, train: bool) -> jax.Array:
    """Applies nn.Dropout if `rate` is not 0."""
    return nn.Dropout(rate, deterministic=not train)(x) if rate else x


def classify(
    x: jax.Array, num_classes: int, name: str, types: dict[str, Any], scale: float = 1.0
) -> jax.Array:
    """Applies the last layer and scales its output, unless `num_classes` is 0."""
    if num_classes:
        x = Linear(num_classes, name=name, **types)(x)
        x = x if scale == 1.0 else scale * x
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
