"""The loss of a batch and its gradient: whole, in micro-batches, or by device."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from resnet_jax.devices import mesh as parallel


def loss_fn(
    model: nn.Module,
    params: Any,
    batch_stats: Any,
    images: jax.Array,
    targets: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, Any]]:
    """The mean cross-entropy [] in training mode; logits and moved statistics.

    Args:
      images: [B, H, W, C], as the network takes them.
      targets: distributions [B, num_classes].
      key: of the step; dropout's comes from it.
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
    accumulate: int = 1,
    local_bn: Mesh | None = None,
) -> tuple[tuple[jax.Array, tuple[jax.Array, Any]], Any]:
    """((loss, (logits, moved statistics)), gradient by params), of loss_fn.

    Args:
      accumulate: micro-batches that are computed one after the other. Loss and gradient
        are the whole batch's but for BatchNorm, which sees a micro-batch at a time, as
        in a PyTorch loop that calls backward() for each. Row i is in the micro-batch
        i % accumulate, so that each is spread over the devices as the batch is.
      local_bn: the mesh, where BatchNorm is to see each device's rows alone.
    """
    loss = partial(loss_fn, model)
    if local_bn is not None:
        loss = parallel.local_statistics(loss, local_bn)
    gradient = jax.value_and_grad(loss, has_aux=True)
    num_rows = len(targets)
    accumulate = min(accumulate, num_rows)
    if accumulate == 1:
        return gradient(params, batch_stats, images, targets, key)

    def add(carry: Any, micro: tuple[Any, ...]) -> tuple[Any, jax.Array]:
        total, batch_stats = carry
        images, targets, index = micro
        (loss, (logits, batch_stats)), grads = gradient(
            params, batch_stats, images, targets, jax.random.fold_in(key, index)
        )
        share = len(targets) / num_rows
        total = jax.tree.map(lambda t, x: t + share * x, total, (loss, grads))
        return (total, batch_stats), logits

    dtype = jnp.result_type(targets, *jax.tree.leaves(params))
    zeros = (jnp.zeros((), dtype), jax.tree.map(jnp.zeros_like, params))
    carry = (zeros, batch_stats)
    if num_rows % accumulate:
        parts = []
        for index in range(accumulate):
            rows = slice(index, None, accumulate)
            carry, part = add(carry, (images[rows], targets[rows], index))
            parts.append(part)
        order = np.concatenate(
            [np.arange(index, num_rows, accumulate) for index in range(accumulate)]
        )
        logits = jnp.concatenate(parts)[np.argsort(order)]
    else:

        def split(x: jax.Array) -> jax.Array:
            parts = x.reshape(num_rows // accumulate, accumulate, *x.shape[1:])
            return parts.swapaxes(0, 1)

        # XLA's loops on CPUs compute with one thread.
        unroll = jax.default_backend() == "cpu"
        carry, parts = jax.lax.scan(
            add,
            carry,
            (split(images), split(targets), jnp.arange(accumulate)),
            unroll=unroll,
        )
        logits = parts.swapaxes(0, 1).reshape(num_rows, -1)
    (total_loss, grads), batch_stats = carry
    return (total_loss, (logits, batch_stats)), grads
