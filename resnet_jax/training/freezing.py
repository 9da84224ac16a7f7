"""Freezes parameters and BatchNorm layers."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.errors import ConfigError
from resnet_jax.layers.norm import BatchNorm
from resnet_jax.models import torch_names

Predicate = Callable[[str], bool]  # takes a parameter's PyTorch name


def make_trainable(
    freeze: str, model: nn.Module, image_shape: tuple[int, int, int]
) -> Predicate | None:
    """Returns a predicate that is true for trainable parameters, or None if all are.

    Args:
      freeze: "none", "backbone" (all but the last layer), or a regular expression that
        is searched for in parameter names.
      model: the network.
      image_shape: (H, W, C) of the model's images.

    Raises:
      ConfigError: if `freeze` is not a regular expression, or if it matches no name or
        every name.
    """
    if freeze == "none":
        return None
    if freeze == "backbone":
        return lambda name: torch_names.is_in(name, [model.head])
    try:
        pattern = re.compile(freeze)
    except re.error as error:
        raise ConfigError(
            f"freeze {freeze!r} is not a regular expression ({error}): use none, "
            "backbone, or a pattern for parameter names such as '^layer1'"
        ) from None
    variables = jax.eval_shape(
        partial(model.init, train=False),
        jax.random.key(0),
        jnp.zeros((1, *image_shape)),
    )
    every = torch_names.list_names(variables["params"])
    matched = [name for name in every if pattern.search(name)]
    if len(matched) in (0, len(every)):
        which = "every parameter" if matched else "no parameter"
        raise ConfigError(
            f"freeze {freeze!r} matches {which}: names include {', '.join(every[:3])}"
        )
    return lambda name: not pattern.search(name)


def make_lr_scale(scale: float, model: nn.Module) -> Callable[[str], float] | None:
    """Returns a function that maps a parameter's name to a learning rate factor.

    The factor is 1 for the last layer and `scale` for all other layers. If `scale` is
    1, the result is None instead.
    """
    if scale == 1.0:
        return None
    return lambda name: 1.0 if torch_names.is_in(name, [model.head]) else scale


@contextmanager
def inference_batch_norm(trainable: Predicate | None) -> Iterator[None]:
    """Puts BatchNorm layers that are not trainable into inference mode.

    This implements `backbone_bn="frozen"`. Inside the context, these layers normalize
    with their running statistics and do not update them, even with train=True.

    The context takes effect while `apply` is traced. Enter it inside the function that
    is passed to jax.jit, because a function that is already compiled does not change.

    Args:
      trainable: a predicate on the name of a BatchNorm layer's weight, such as
        "layer1.0.bn1.weight". None leaves all layers in training mode.
    """

    def in_inference(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        layer = context.module
        if isinstance(layer, BatchNorm) and context.method_name == "__call__":
            if trainable and not trainable(".".join([*layer.path, "weight"])):
                kwargs = {**kwargs, "train": False}
        return call(*args, **kwargs)

    if trainable is None:
        yield
    else:
        with nn.intercept_methods(in_inference):
            yield
