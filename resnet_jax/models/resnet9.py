"""A slim residual network that trains quickly: ResNet-9 of the DAWNBench family."""

import flax.linen as nn
import jax

from resnet_jax.layers.pool import max_pool_2x2
from resnet_jax.models.blocks import (
    BasicBlock,
    Network,
    Shortcut,
    apply_block,
    check_halved_thrice,
    classify,
    dropout,
)
from resnet_jax.models.whitening import Whitening


class ResNet9(Network):
    """Eight convolutions and a linear layer (Page 2018): images [B, H, W, 3] to logits.

    A convolution to `width` channels; three stages that double them, each a
    convolution, a 2x2 max-pool, BatchNorm and ReLU, the first and the last followed by
    a residual block; the maximum over the picture; a linear layer, times 1/8. With
    `num_classes=0` the features [B, 8 * width]. The other attributes are ResNet's.

    Attributes:
      width: channels of the first convolution.
      whiten: the first convolution is of one pixel, after a fixed 3x3 one that whitens
        the pictures (layers.Whitening).
    """

    width: int = 64
    whiten: bool = False
    shortcut: Shortcut = "identity"

    logit_scale = 0.125  # Page's, which keeps the first losses small

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        check_halved_thrice("resnet9", x)
        conv, norm = self.make_layers(False)
        if self.whiten:
            x = Whitening(3, dtype=self.dtype, name="whiten")(x)
            x = conv(self.width, 1, padding=0, name="conv1")(x)
        else:
            x = conv(self.width, 3, padding=1, name="conv1")(x)
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
