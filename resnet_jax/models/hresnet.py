"""The tutorial's network."""

import flax.linen as nn
import jax

from resnet_jax.layers.inputs import check_size
from resnet_jax.layers.linear import Init, Linear
from resnet_jax.layers.pool import avg_pool
from resnet_jax.models.blocks import (
    BasicBlock,
    Network,
    Shortcut,
    apply_block,
    classify,
    dropout,
)


class HResNet(Network):
    """The tutorial's network.

    It consists of three blocks, each followed by average pooling, and of three linear
    layers. It maps images [B, 32, 32, 3] to logits [B, num_classes] or, if
    `num_classes` is 0, to the features [B, 512] before the last layer. The outputs have
    at least float32 precision. Convolutions have biases, and the features are flattened
    in PyTorch's order: C, H, W. By default, each shortcut is a 1x1 convolution without
    BatchNorm, and every layer has PyTorch's default initialization.

    The attributes shortcut, norm, bn_momentum, bn_eps, dropout (applied after fc1 and
    fc2), weight_init, drop_path, zero_init_last and remat have the same meaning as in
    ResNet.
    """

    shortcut: Shortcut = "conv"
    weight_init: Init = "torch"

    head = "fc3"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        check_size("hresnet", x)
        conv, norm = self.make_layers(x, True)
        for index, features in enumerate((64, 128, 256), start=1):
            block = BasicBlock(
                features,
                shortcut=self.shortcut,
                conv=conv,
                norm=norm,
                drop_path=self.drop_path * (index - 1) / 2,
                zero_init_last=self.zero_init_last,
                name=f"b{index}",
            )
            x = apply_block(block, x, train, self.remat)
            x = avg_pool(x)
            self.sow("intermediates", f"b{index}.pool", x)
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
        for name, features in (("fc1", 2048), ("fc2", 512)):
            x = nn.relu(Linear(features, name=name, **self.types)(x))
            x = dropout(x, self.dropout, train)
        return classify(x, self.num_classes, self.head, self.types)
