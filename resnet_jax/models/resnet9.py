"""ResNet-9 of the DAWNBench family, a small network that trains quickly."""

from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from resnet_jax.layers.inputs import check_size
from resnet_jax.layers.pool import max_pool_2x2
from resnet_jax.models import whitening
from resnet_jax.models.blocks import (
    BasicBlock,
    Network,
    Shortcut,
    apply_block,
    classify,
    dropout,
)


class ResNet9(Network):
    """A network of eight convolutions and a linear layer (Page 2018).

    It maps images [B, H, W, 3] to logits [B, num_classes] or, if `num_classes` is 0, to
    features [B, 8 * width]. The first convolution has `width` output channels, and each
    of the three stages doubles the number of channels. A stage consists of a
    convolution, 2x2 max pooling, BatchNorm and ReLU. In the first and last stages,
    these layers are followed by a residual block. The network ends with global max
    pooling and a linear layer, whose output is multiplied by 1/8. The other attributes
    are the same as in ResNet.

    Attributes:
      width: number of output channels of the first convolution.
      whiten: whether the first convolution is 1x1 instead of 3x3 and follows a fixed
        3x3 convolution that whitens the images (see whitening.py).
    """

    width: int = 64
    whiten: bool = False
    shortcut: Shortcut = "identity"

    logit_scale = 0.125  # as in Page 2018, to keep the initial losses small

    @nn.nowrap
    def fit_to_images(
        self,
        variables: dict[str, Any],
        inputs: Callable[[int], Iterable[np.ndarray]],
    ) -> dict[str, Any]:
        """Fits the whitening layer, if there is one, to the images."""
        return whitening.fit(variables, inputs)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        check_size("resnet9", x)
        conv, norm = self.make_layers(x, False)
        x = whitening.first_convolution(self, conv, x)
        x = nn.relu(norm(name="bn1")(x, train=train))
        self.sow("intermediates", "stem", x)
        for stage, features in enumerate((2, 4, 8), start=1):
            name, features = f"layer{stage}", features * self.width
            x = conv(features, 3, padding=1, name=f"{name}.conv")(x)
            x = max_pool_2x2(x)
            x = nn.relu(norm(name=f"{name}.bn")(x, train=train))
            if stage != 2:
                block = BasicBlock(
                    features,
                    shortcut=self.shortcut,
                    conv=conv,
                    norm=norm,
                    drop_path=self.drop_path * (stage - 1) / 2,
                    zero_init_last=self.zero_init_last,
                    name=f"{name}.block",
                )
                x = apply_block(block, x, train, self.remat)
            self.sow("intermediates", name, x)
        x = dropout(x.max((1, 2)), self.dropout, train)
        scaled = (self.types, self.logit_scale)
        return classify(x, self.num_classes, self.head, *scaled)
