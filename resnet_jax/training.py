"""The training state and the pure functions that move and score it."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from resnet_jax import metrics, names
from resnet_jax.freezing import Predicate, inference_batch_norm
from resnet_jax.gradients import loss_and_gradient

Batch = dict[str, Any]  # images [B, H, W, C] uint8, labels [B] int32, mask [B] float32


@flax.struct.dataclass
class TrainState:
    """All that a training step reads and writes; arrays alone."""

    step: jax.Array  # [] int32, updates done
    params: Any
    batch_stats: Any
    opt_state: Any

    @property
    def variables(self) -> dict[str, Any]:
        """What the model's apply takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


class Keys(NamedTuple):
    """One random key for each purpose."""

    init: jax.Array
    augment: jax.Array


def make_keys(seed: int) -> Keys:
    """The keys of a run, all from its one seed."""
    return Keys(*jax.random.split(jax.random.key(seed), len(Keys._fields)))


def init_variables(
    model: nn.Module, image_shape: tuple[int, int, int], *, key: jax.Array
) -> dict[str, Any]:
    """Fresh {"params", "batch_stats"} for pictures of image_shape (H, W, C)."""
    variables = model.init(key, jnp.zeros((1, *image_shape)), train=False)
    return {"batch_stats": {}, **variables}


def variable_shapes(
    model: nn.Module, image_shape: tuple[int, int, int]
) -> dict[str, Any]:
    """The shapes and types of what init_variables gives; nothing is computed."""
    init = partial(init_variables, model, image_shape)
    return jax.eval_shape(init, key=jax.random.key(0))


def init_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    *,
    key: jax.Array,
) -> TrainState:
    """A fresh state for pictures of image_shape (H, W, C)."""

    def init(key: jax.Array) -> TrainState:
        variables = init_variables(model, image_shape, key=key)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            opt_state=tx.init(variables["params"]),
        )

    return jax.jit(init)(key)


def train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    augment: Callable[..., tuple[jax.Array, jax.Array]],
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    *,
    trainable: Predicate | None = None,
    backbone_bn: str = "update",
    accumulate: int = 1,
    local_bn: Mesh | None = None,
) -> tuple[TrainState, metrics.Sums]:
    """One update by the mean cross-entropy of `batch`; its sums before the update.

    Args:
      trainable: by PyTorch's name of a parameter; the others stay to the bit.
      backbone_bn: of BatchNorm layers that are not trainable. "update": their
        statistics move, as with requires_grad=False in a PyTorch module in training
        mode; "frozen": they are in inference mode and their statistics stay.
      accumulate, local_bn: see gradients.loss_and_gradient.
    """
    frozen_bn = trainable if backbone_bn == "frozen" else None
    step_key = jax.random.fold_in(key, state.step)
    images, targets = augment(step_key, batch["images"], batch["labels"])
    with inference_batch_norm(frozen_bn):
        (loss, (logits, batch_stats)), grads = loss_and_gradient(
            model,
            state.params,
            state.batch_stats,
            images,
            targets,
            step_key,
            accumulate=accumulate,
            local_bn=local_bn,
        )
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    if trainable is not None:  # not even -0. + 0.
        learns = names.map_names(trainable, params)
        params = jax.tree.map(
            lambda new, old, moves: new if moves else old, params, state.params, learns
        )
    state = TrainState(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    return state, metrics.train_sums(loss, logits, batch["labels"])


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    augment: Callable[..., tuple[jax.Array, jax.Array]],
    trainable: Predicate | None = None,
    **options: Any,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, metrics.Sums]]:
    """train_step of (state, batch, key) alone, all else bound; not compiled."""
    bound = partial(train_step, model, tx, augment)
    return partial(bound, trainable=trainable, **options)
