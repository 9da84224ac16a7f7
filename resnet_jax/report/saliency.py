"""Where in a picture a class comes from: Grad-CAM."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.errors import ConfigError
from resnet_jax.models.summary import structure


def grad_cam(
    model: nn.Module, variables: dict[str, Any], images: jax.Array, classes: jax.Array
) -> jax.Array:
    """Maps [B, h, w] in [0, 1] of what in the last block speaks for `classes` [B].

    Selvaraju et al. 2017, equations 1 and 2: the block's output, its channels weighted
    by the mean gradient of the class's logit, negative parts cut, scaled to a largest
    value of 1 (0 everywhere where nothing speaks for the class).

    Args:
      images: [B, H, W, C], as the network takes them.

    Raises:
      ConfigError: the network has no residual block.
    """
    blocks = structure(model, images.shape[1:]).blocks
    if not blocks:
        raise ConfigError("saliency needs a network with residual blocks")
    last = blocks[-1]

    def logits(change: jax.Array) -> tuple[jax.Array, jax.Array]:
        seen = []

        def add(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            y = call(*args, **kwargs)
            if ".".join(context.module.path) == last.name:
                if context.method_name == "__call__":
                    y = y + change  # the gradient by it is that by y
                    seen.append(y)
            return y

        with nn.intercept_methods(add):
            out = model.apply(variables, images, train=False)
        return jnp.take_along_axis(out, classes[:, None], 1).sum(), seen[0]

    zeros = jnp.zeros((len(images), *last.output), jnp.float32)
    gradient, maps = jax.grad(logits, has_aux=True)(zeros)
    weights = gradient.mean((1, 2), keepdims=True)
    cam = nn.relu((weights * maps).sum(-1))
    largest = cam.max((1, 2), keepdims=True)
    return jnp.where(largest > 0, cam / jnp.where(largest > 0, largest, 1), 0)
