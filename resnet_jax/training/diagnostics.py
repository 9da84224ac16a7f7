"""Statistics of each layer in a training step: gradients, activations and updates."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from resnet_jax.data.augment import Augment
from resnet_jax.layers.conv import Conv
from resnet_jax.layers.linear import Linear
from resnet_jax.layers.norm import BatchNorm
from resnet_jax.models import torch_names
from resnet_jax.training.freezing import Predicate, inference_batch_norm
from resnet_jax.training.state import Batch, TrainState
from resnet_jax.training.step import loss_fn, model_key

# The keys are the layers' PyTorch names, in the order of the forward pass.
Layers = dict[str, dict[str, Any]]


def layer_statistics(
    model: nn.Module,
    tx: optax.GradientTransformation,
    augment: Augment,
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    *,
    trainable: Predicate | None = None,
    backbone_bn: str = "update",
) -> Layers:
    """Returns each layer's statistics for a step on `batch`; `state` does not change.

    For every convolution, linear layer and BatchNorm, there are five float32 scalars:
      gradient: L2 norm of the gradient with respect to the layer's parameters.
      activation: root mean square of the layer's output.
      input_mean: mean of the layer's input.
      input_std: standard deviation of the layer's input.
      update_ratio: L2 norm of the update divided by the L2 norm of the parameters.

    Args:
      key: the key that train_step takes. Augmentation and dropout always use the random
        numbers of step 0, so that measurements differ only if the network changes.
    """
    key = jax.random.fold_in(key, 0)
    images, targets = augment(key, batch["images"], batch["labels"])
    found: Layers = {}
    loss = partial(loss_fn, model)
    key = model_key(key)
    args = (state.params, state.batch_stats, images, targets, key)
    with inference_batch_norm(trainable if backbone_bn == "frozen" else None):
        grads, _ = jax.grad(loss, has_aux=True)(*args)
        with nn.intercept_methods(_watch(found)):
            loss(*args)
    updates, _ = tx.update(grads, state.opt_state, state.params)
    gradients, changes, sizes = (
        _norms(tree) for tree in (grads, updates, state.params)
    )
    return {
        name: {
            "gradient": gradients[name],
            **values,
            # If all parameters are 0, the ratio is undefined.
            "update_ratio": jnp.where(
                sizes[name] > 0, changes[name] / jnp.maximum(sizes[name], 1e-30), 0.0
            ),
        }
        for name, values in found.items()
        if name in gradients  # a whitening layer has no parameters
    }


def _watch(found: Layers) -> Callable[..., Any]:
    """Returns a method interceptor that stores each layer's statistics in `found`."""

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        y, layer = call(*args, **kwargs), context.module
        is_call = context.method_name == "__call__"
        if is_call and isinstance(layer, Conv | Linear | BatchNorm):
            x = args[0].astype(jnp.float32)
            found[".".join(layer.path)] = {
                "activation": jnp.sqrt(jnp.square(y.astype(jnp.float32)).mean()),
                "input_mean": x.mean(),
                "input_std": x.std(),
            }
        return y

    return watch


def _norms(tree: Any) -> dict[str, jax.Array]:
    """Returns the L2 norm of each layer's part of `tree`, keyed by layer name."""
    leaves: dict[str, list[jax.Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        layer = torch_names.torch_name(path).rsplit(".", 1)[0]
        leaves.setdefault(layer, []).append(leaf)
    return {layer: optax.global_norm(own) for layer, own in leaves.items()}


def make_layer_statistics(
    model: nn.Module,
    tx: optax.GradientTransformation,
    augment: Augment,
    first_batch: Callable[[], Batch],
    key: jax.Array,
    trainable: Predicate | None = None,
    backbone_bn: str = "update",
) -> Callable[[TrainState], Layers]:
    """Returns a compiled function that maps a state to its layer_statistics as floats.

    Args:
      first_batch: a function that returns the batch to measure on. It is called only
        once, when the batch is first needed.
    """
    first_batch = cache(first_batch)
    order: list[str] = []  # layer names in order, because jit sorts dictionary keys

    @jax.jit
    def traced(state: TrainState, batch: Batch, key: jax.Array) -> Layers:
        bound = partial(layer_statistics, model, tx, augment, state, batch, key)
        found = bound(trainable=trainable, backbone_bn=backbone_bn)
        order[:] = found
        return found

    def measure(state: TrainState) -> Layers:
        found = jax.device_get(traced(state, first_batch(), key))
        return {n: {k: float(v) for k, v in found[n].items()} for n in order}

    return measure
