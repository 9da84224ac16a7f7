"""A training step (loss, gradient and update) and its compilation."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from resnet_jax import waiting
from resnet_jax.data.augment import Augment
from resnet_jax.data.loader import Loader, Source, fetch
from resnet_jax.devices import mesh, processes
from resnet_jax.layers import library
from resnet_jax.models import torch_names
from resnet_jax.training import metrics
from resnet_jax.training.freezing import Predicate, inference_batch_norm
from resnet_jax.training.state import Batch, TrainState

Step = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, metrics.Sums]]
EmaDecay = float | Callable[[jax.Array], jax.Array]  # constant or function of the step


def model_key(step_key: jax.Array) -> jax.Array:
    """Returns the PRNG key for the network, derived from the step's key.

    The augmentation folds 0, 1, ... into the step's key; this function folds in 2**31.
    """
    return jax.random.fold_in(step_key, 2**31)


def train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    augment: Augment,
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    *,
    trainable: Predicate | None = None,
    backbone_bn: str = "update",
    grad_accum_steps: int = 1,
    local_bn: Mesh | None = None,
    ema_decay: EmaDecay = 0.0,
) -> tuple[TrainState, metrics.Sums]:
    """Takes one gradient step on `batch`'s mean cross-entropy; returns (state, sums).

    Args:
      trainable: a predicate on PyTorch names that is true for the parameters to update.
      backbone_bn: the mode of BatchNorm layers that are not trainable. "update" updates
        their statistics, like a PyTorch module in training mode with
        requires_grad=False; "frozen" uses inference mode.
      grad_accum_steps: see loss_and_gradient.
      local_bn: see loss_and_gradient.
      ema_decay: the decay of the moving average, if the state has one.
    """
    frozen_bn = trainable if backbone_bn == "frozen" else None
    step_key = jax.random.fold_in(key, state.step)
    images, targets = augment(step_key, batch["images"], batch["labels"], state.step)
    with inference_batch_norm(frozen_bn):
        (loss, (logits, batch_stats)), grads = loss_and_gradient(
            model,
            state.params,
            state.batch_stats,
            images,
            targets,
            model_key(step_key),
            grad_accum_steps=grad_accum_steps,
            local_bn=local_bn,
        )
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    if trainable is not None:  # adding 0.0 to -0.0 would change the sign
        learns = torch_names.map_names(trainable, params)
        params = jax.tree.map(
            lambda new, old, moves: new if moves else old, params, state.params, learns
        )
    ema = state.ema
    if ema is not None:
        moved = {"params": params, "batch_stats": batch_stats}
        ema = average(ema, moved, state.step, ema_decay)
    state = TrainState(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        ema=ema,
    )
    return state, metrics.train_sums(loss, logits, batch["labels"])


def average(ema: Any, variables: Any, step: jax.Array, decay: EmaDecay) -> Any:
    """Updates the exponential moving average of parameters and running statistics.

    Running statistics are averaged too, so that they match the averaged parameters. As
    in TensorFlow, the decay at step s (starting at 0) is at most (1 + s) / (10 + s),
    unless `decay` is a function of the step.
    """
    if callable(decay):
        keep = decay(step)
    else:
        keep = jnp.minimum(decay, (1 + step) / (10 + step))

    def of_leaf(old: jax.Array, new: jax.Array) -> jax.Array:
        return old + (1 - keep).astype(old.dtype) * (new - old)

    return jax.tree.map(of_leaf, ema, variables)


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    augment: Augment,
    trainable: Predicate | None = None,
    backbone_bn: str = "update",
    grad_accum_steps: int = 1,
    local_bn: Mesh | None = None,
    ema_decay: EmaDecay = 0.0,
) -> Step:
    """Returns train_step as an uncompiled function of (state, batch, key)."""
    return partial(
        partial(train_step, model, tx, augment),
        trainable=trainable,
        backbone_bn=backbone_bn,
        grad_accum_steps=grad_accum_steps,
        local_bn=local_bn,
        ema_decay=ema_decay,
    )


def loss_fn(
    model: nn.Module,
    params: Any,
    batch_stats: Any,
    images: jax.Array,
    targets: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, Any]]:
    """Returns (mean cross-entropy [], (logits, new statistics)) in training mode.

    Args:
      images: [B, H, W, C], preprocessed.
      targets: target distributions [B, num_classes].
      key: a PRNG key, from which the dropout key is derived.
    """
    logits, moved = model.apply(
        {"params": params, "batch_stats": batch_stats},
        images,
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": jax.random.fold_in(key, 0)},
    )
    loss = optax.softmax_cross_entropy(logits, targets).mean()
    return loss, (logits, moved.get("batch_stats", {}))


def loss_and_gradient(
    model: nn.Module,
    params: Any,
    batch_stats: Any,
    images: jax.Array,
    targets: jax.Array,
    key: jax.Array,
    *,
    grad_accum_steps: int = 1,
    local_bn: Mesh | None = None,
) -> tuple[tuple[jax.Array, tuple[jax.Array, Any]], Any]:
    """Returns ((loss, (logits, new statistics)), gradients) of loss_fn.

    Args:
      grad_accum_steps: the number of micro-batches, computed one after another. The
        loss and the gradient cover the whole batch, but BatchNorm normalizes each
        micro-batch separately, as in PyTorch. Row i belongs to micro-batch i %
        grad_accum_steps, so that each micro-batch has rows on all devices.
      local_bn: the mesh, if BatchNorm should use separate statistics on each device.
    """
    loss: Callable[..., Any] = partial(loss_fn, model)
    if local_bn is not None:
        loss = mesh.local_statistics(loss, local_bn)
    gradient = jax.value_and_grad(loss, has_aux=True)
    grad_accum_steps = min(grad_accum_steps, len(targets))
    if grad_accum_steps == 1:
        return gradient(params, batch_stats, images, targets, key)
    return _accumulated(
        gradient, params, batch_stats, images, targets, key, grad_accum_steps
    )


def _accumulated(
    gradient: Callable[..., Any],
    params: Any,
    batch_stats: Any,
    images: jax.Array,
    targets: jax.Array,
    key: jax.Array,
    parts: int,
) -> tuple[tuple[jax.Array, tuple[jax.Array, Any]], Any]:
    """Returns the batch's `gradient`, accumulated over `parts` micro-batches."""
    num_rows = len(targets)

    def add(carry: Any, micro: tuple[Any, ...]) -> tuple[Any, jax.Array]:
        total, batch_stats = carry
        images, targets, index = micro
        (loss, (logits, batch_stats)), grads = gradient(
            params, batch_stats, images, targets, jax.random.fold_in(key, index)
        )
        share = len(targets) / num_rows
        total = jax.tree.map(lambda t, x: t + share * x, total, (loss, grads))
        return (total, batch_stats), logits

    def split(x: jax.Array) -> jax.Array:
        return x.reshape(num_rows // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    dtype = jnp.result_type(targets, *jax.tree.leaves(params))
    zeros = (jnp.zeros((), dtype), jax.tree.map(jnp.zeros_like, params))
    carry: Any = (zeros, batch_stats)
    if num_rows % parts:
        found = []
        for index in range(parts):
            rows = slice(index, None, parts)
            carry, logits = add(carry, (images[rows], targets[rows], index))
            found.append(logits)
        order = [np.arange(index, num_rows, parts) for index in range(parts)]
        logits = jnp.concatenate(found)[np.argsort(np.concatenate(order))]
    else:
        # On CPUs, XLA runs loops in a single thread.
        unroll = jax.default_backend() == "cpu"
        whole = (split(images), split(targets), jnp.arange(parts))
        carry, stacked = jax.lax.scan(add, carry, whole, unroll=unroll)
        logits = stacked.swapaxes(0, 1).reshape(num_rows, -1)
    (loss, grads), batch_stats = carry
    return (loss, (logits, batch_stats)), grads


def compile_step(
    step: Step, state: TrainState, loader: Loader, key: jax.Array
) -> tuple[Callable[[TrainState, Batch], tuple[TrainState, metrics.Sums]], float]:
    """Compiles `step` for the loader's batches; returns it and the time in seconds.

    No step is run. Call the compiled step as step(state, batch); it donates `state`.
    For a batch [steps, rows], it runs several steps and returns the sums of each step.
    With several seeds, the batch has a seed axis before the row axis.

    Args:
      state: the initial state. Like `key` ([] or [seeds]), it is on the mesh's devices.

    Raises:
      ConfigError: if the model cannot train on one of the loader's batch shapes.
    """
    begun = time.monotonic()
    fed = partial(_fed, step)
    source = loader.source(loader.splits.train)
    sharding = state.step.sharding
    config: Any = jax.config
    # To find a NaN, JAX reruns the step op by op with the same arguments, so these must
    # not be donated. Without jit, there is nothing to compile.
    if config.jax_debug_nans or config.jax_disable_jit:
        jitted = library.jit(fed, out_shardings=sharding)
        return lambda state, batch: jitted(state, batch, source, key), 0.0
    jitted = library.jit(fed, donate_argnums=0, out_shardings=sharding)
    with waiting.logged("compiling the training step", processes.is_first()):
        compiled = {
            _form(batch): jitted.lower(state, batch, source, key).compile()
            for batch in loader.examples()
        }

    def run(state: TrainState, batch: Batch) -> tuple[TrainState, metrics.Sums]:
        found: tuple[TrainState, metrics.Sums] = compiled[_form(batch)](
            state, batch, source, key
        )
        return found

    return run, time.monotonic() - begun


def _fed(
    step: Step, state: TrainState, batch: Batch, source: Source, key: jax.Array
) -> tuple[TrainState, metrics.Sums]:
    def one(state: TrainState, batch: Batch) -> tuple[TrainState, metrics.Sums]:
        return step(state, fetch(source, batch), key)

    if len(_form(batch)) == key.ndim + 1:
        return one(state, batch)
    return jax.lax.scan(one, state, batch)


def _form(batch: Batch) -> tuple[int, ...]:
    """Returns the shape ([steps,] [seeds,] rows) of a batch."""
    found: tuple[int, ...] = batch["indices" if "indices" in batch else "labels"].shape
    return found
