"""What a training step does to each layer: gradient, activation, input, update."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from resnet_jax import training
from resnet_jax.layers.conv import Conv
from resnet_jax.layers.linear import Linear
from resnet_jax.layers.norm import BatchNorm
from resnet_jax.models import torch_names
from resnet_jax.training.freezing import Predicate, inference_batch_norm
from resnet_jax.training.gradients import loss_fn

Layers = dict[
    str, dict[str, Any]
]  # by PyTorch's name, in the order of the forward pass


def layer_statistics(
    model: nn.Module,
    tx: optax.GradientTransformation,
    augment: Callable[..., tuple[jax.Array, jax.Array]],
    state: training.TrainState,
    batch: training.Batch,
    key: jax.Array,
    *,
    trainable: Predicate | None = None,
    backbone_bn: str = "update",
) -> Layers:
    """What train_step would do to each layer on `batch`; nothing moves.

    Of every convolution, linear layer and BatchNorm, each a float32 []:
      gradient: L2 norm of the loss's gradient by the layer's parameters.
      activation: root mean square of the layer's output.
      input_mean, input_std: of all values of the layer's input.
      update_ratio: L2 norm of the update over that of the parameters.

    Args:
      key: as train_step's. Augmentation and dropout are those of step 0, whatever
        state.step is, so that two measurements differ by the network alone.
    """
    key = jax.random.fold_in(key, 0)
    images, targets = augment(key, batch["images"], batch["labels"])
    found: Layers = {}

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        y = call(*args, **kwargs)
        layer = context.module
        if context.method_name == "__call__" and isinstance(
            layer, Conv | Linear | BatchNorm
        ):
            x = args[0].astype(jnp.float32)
            found[".".join(layer.path)] = {
                "activation": jnp.sqrt(jnp.square(y.astype(jnp.float32)).mean()),
                "input_mean": x.mean(),
                "input_std": x.std(),
            }
        return y

    loss = partial(loss_fn, model)
    key = training.model_key(key)
    args = (state.params, state.batch_stats, images, targets, key)
    with inference_batch_norm(trainable if backbone_bn == "frozen" else None):
        grads, _ = jax.grad(loss, has_aux=True)(*args)
        with nn.intercept_methods(watch):
            loss(*args)
    updates, _ = tx.update(grads, state.opt_state, state.params)
    gradients, changes, sizes = (
        _norms(tree) for tree in (grads, updates, state.params)
    )
    return {
        name: {
            "gradient": gradients[name],
            **values,
            # Of a layer that begins at 0 there is no such ratio.
            "update_ratio": jnp.where(
                sizes[name] > 0, changes[name] / jnp.maximum(sizes[name], 1e-30), 0.0
            ),
        }
        for name, values in found.items()
    }


def _norms(tree: Any) -> dict[str, jax.Array]:
    """The L2 norm of each layer's leaves, by the layer's name."""
    leaves: dict[str, list[jax.Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        layer = torch_names.torch_name(path).rsplit(".", 1)[0]
        leaves.setdefault(layer, []).append(leaf)
    return {layer: optax.global_norm(own) for layer, own in leaves.items()}


def make_layer_statistics(
    *args: Any, batch: training.Batch, key: jax.Array, **options: Any
) -> Callable[[training.TrainState], Layers]:
    """layer_statistics of the state alone, compiled, its values Python's floats.

    Args:
      args: model, tx and augment.
      batch, key, options: as layer_statistics has them.
    """
    order: list[str] = []  # which the dictionaries that jit returns have lost

    @jax.jit
    def traced(state: training.TrainState, batch: training.Batch, key: Any) -> Layers:
        found = layer_statistics(*args, state, batch, key, **options)
        order[:] = found
        return found

    def measure(state: training.TrainState) -> Layers:
        found = jax.device_get(traced(state, batch, key))
        return {n: {k: float(v) for k, v in found[n].items()} for n in order}

    return measure
