"""Residual networks of He et al. with any depth, width and type of block."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.errors import ConfigError
from resnet_jax.layers.pool import max_pool
from resnet_jax.models.blocks import (
    Network,
    Shortcut,
    apply_block,
    classify,
    dropout,
)

Stem = Literal["imagenet", "cifar"]


class ResNet(Network):
    """A residual network of any depth and width, built from any type of block.

    It maps images [B, H, W, C] to logits [B, num_classes] or, if `num_classes` is 0, to
    the pooled features [B, widths[-1] * block.expansion]. The outputs are float32 or
    more precise. The outputs of the stem and of each stage are sown into
    "intermediates" under the names stem, layer1, layer2 and so on.

    Attributes:
      block: BasicBlock, Bottleneck, or another module with the same attributes.
      stage_sizes: number of blocks per stage; every stage after the first halves the
        height and width.
      widths: the value of `features` for the blocks in each stage.
      stem_width: number of channels of the stem; widths[0] by default.
      stem: "imagenet" is a 7x7 convolution with stride 2, followed by 3x3 max pooling
        with stride 2. "cifar" is a 3x3 convolution for small images.
      shortcut: "identity", "pad", "conv", "conv_bn" or "none"; see blocks._shortcut.
      groups: see Bottleneck, the only block that takes it.
      width_per_group: base_width of Bottleneck, the only block that takes it.
      stride_in_1x1: see Bottleneck, the only block that takes it.
      use_bias: whether convolutions have biases. Without BatchNorm, they always do.
    """

    block: Any
    stage_sizes: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem_width: int | None = None
    stem: Stem = "imagenet"
    shortcut: Shortcut = "conv_bn"
    groups: int = 1
    width_per_group: int = 64
    stride_in_1x1: bool = False
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        conv, norm = self.make_layers(x, self.use_bias)
        if len(self.stage_sizes) != len(self.widths):
            raise ConfigError(
                f"stage_sizes {self.stage_sizes} and widths {self.widths} "
                "differ in length"
            )
        if self.stem not in ("imagenet", "cifar"):
            raise ConfigError(f"unknown stem {self.stem!r}: choose imagenet or cifar")
        width = self.stem_width or self.widths[0]
        if self.stem == "imagenet":
            x = conv(width, 7, stride=2, padding=3, name="conv1")(x)
        else:
            x = conv(width, 3, padding=1, name="conv1")(x)
        if not self.block.is_preact:
            x = nn.relu(norm(name="bn1")(x, train=train))
        if self.stem == "imagenet":
            x = max_pool(x)
        self.sow("intermediates", "stem", x)
        options: dict[str, Any] = self._block_options()
        rates = iter(np.linspace(0.0, self.drop_path, sum(self.stage_sizes)).tolist())
        stages = enumerate(zip(self.stage_sizes, self.widths, strict=True), start=1)
        for stage, (size, width) in stages:
            for index in range(size):
                block = self.block(
                    width,
                    stride=2 if stage > 1 and index == 0 else 1,
                    shortcut=self.shortcut,
                    conv=conv,
                    norm=norm,
                    drop_path=next(rates),
                    **options,
                    name=f"layer{stage}.{index}",
                )
                x = apply_block(block, x, train, self.remat)
            self.sow("intermediates", f"layer{stage}", x)
        if self.block.is_preact:
            x = nn.relu(norm(name="bn")(x, train=train))
        x = dropout(x.mean((1, 2)), self.dropout, train)
        return classify(x, self.num_classes, self.head, self.types)

    def _block_options(self) -> dict[str, Any]:
        """Returns the arguments that only some blocks take."""
        options = {
            "zero_init_last": self.zero_init_last,
            "groups": self.groups,
            "base_width": self.width_per_group,
            "stride_in_1x1": self.stride_in_1x1,
        }
        usual = {"groups": 1, "base_width": 64}
        chosen = {n: v for n, v in options.items() if v != usual.get(n, False)}
        unknown = [name for name in chosen if not hasattr(self.block, name)]
        if unknown:
            raise ConfigError(f"{self.block.__name__} has no {', '.join(unknown)}")
        return chosen


class Head(nn.Module):
    """A network's last layer; maps features [B, F] to logits [B, num_classes].

    Apply this module with the variables of the network; it ignores the variables of all
    layers but `layer`.
    """

    layer: str
    num_classes: int
    logit_scale: float = 1.0
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return classify(x, self.num_classes, self.layer, types, self.logit_scale)
