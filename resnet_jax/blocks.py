"""The residual blocks, with torchvision's names and arithmetic."""

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.errors import ConfigError
from resnet_jax.layers import BatchNorm, Conv

Shortcut = Literal["identity", "pad", "conv", "conv_bn", "none"]
ModuleDef = Callable[..., nn.Module]


def no_norm(*, name: str) -> Callable[..., jax.Array]:
    """A ModuleDef in the place of BatchNorm's that leaves x as it is."""
    return lambda x, *, train: x


def _shortcut(
    block: nn.Module, x: jax.Array, features: int, train: bool
) -> jax.Array | float:
    """What `block` adds to its residual: x brought to `features` channels and stride.

    identity: x itself. pad: He et al.'s option A, every stride-th pixel and zero
    channels. conv: a 1x1 convolution, always (the tutorial's block). conv_bn: option B
    as in torchvision, a 1x1 convolution and BatchNorm where the shape changes. none:
    nothing, which makes a plain network of the same depth.
    """
    if block.shortcut not in get_args(Shortcut):
        raise ConfigError(
            f"no shortcut {block.shortcut!r}: one of {', '.join(get_args(Shortcut))}"
        )
    if block.shortcut == "none":
        return 0.0
    changes = block.stride != 1 or x.shape[-1] != features
    project = partial(block.conv, features, 1, stride=block.stride, padding=0)
    if block.shortcut == "conv":
        return project(name="downsample")(x)
    if not changes:
        return x
    if block.shortcut == "conv_bn":
        x = project(name="downsample.0")(x)
        return block.norm(name="downsample.1")(x, train=train)
    if block.shortcut == "pad" and x.shape[-1] <= features:
        missing = features - x.shape[-1]
        before, after = missing // 2, missing - missing // 2
        x = x[:, :: block.stride, :: block.stride, :]
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (before, after)))
    raise ConfigError(
        f"shortcut {block.shortcut!r} cannot join {x.shape[-1]} channels to {features} "
        f"at stride {block.stride}: use 'conv_bn', 'conv' or, to widen, 'pad'"
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut: x [B, H, W, C] to [B, H', W', features].

    He et al. 2015, figure 5 left; torchvision.models.resnet.BasicBlock.
    """

    features: int
    stride: int = 1
    shortcut: Shortcut = "conv_bn"
    conv: ModuleDef = partial(Conv, use_bias=False, weight_init="kaiming")
    norm: ModuleDef = partial(BatchNorm, momentum=0.1, epsilon=1e-5)

    expansion = 1  # channels out per `features`

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = self.conv(self.features, 3, stride=self.stride, padding=1, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train=train))
        y = self.conv(self.features, 3, padding=1, name="conv2")(y)
        y = self.norm(name="bn2")(y, train=train)
        return nn.relu(y + _shortcut(self, x, self.features, train))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions: x [B, H, W, C] to [B, H', W', 4 * features].

    The stride is the 3x3's ("V1.5"), as in torchvision.models.resnet.Bottleneck.
    """

    features: int
    stride: int = 1
    shortcut: Shortcut = "conv_bn"
    conv: ModuleDef = partial(Conv, use_bias=False, weight_init="kaiming")
    norm: ModuleDef = partial(BatchNorm, momentum=0.1, epsilon=1e-5)

    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        features = self.features * self.expansion
        y = self.conv(self.features, 1, padding=0, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train=train))
        y = self.conv(self.features, 3, stride=self.stride, padding=1, name="conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y, train=train))
        y = self.conv(features, 1, padding=0, name="conv3")(y)
        y = self.norm(name="bn3")(y, train=train)
        return nn.relu(y + _shortcut(self, x, features, train))
