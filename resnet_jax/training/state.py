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

from resnet_jax.models import torch_names
from resnet_jax.training import metrics, seeds
from resnet_jax.training.freezing import Predicate, inference_batch_norm
from resnet_jax.training.gradients import loss_and_gradient

Batch = dict[str, Any]  # images [B, H, W, C] uint8, labels [B] int32, mask [B] float32


@flax.struct.dataclass
class TrainState:
    """All that a training step reads and writes; arrays alone."""

    step: jax.Array  # [] int32, updates done
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any = None  # averaged variables, where there is an ema_decay

    @property
    def variables(self) -> dict[str, Any]:
        """What the model's apply takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    def with_variables(self, variables: dict[str, Any]) -> "TrainState":
        """The state before its first step, with other initial variables."""
        ema = None if self.ema is None else jax.tree.map(jnp.array, variables)
        return self.replace(**variables, ema=ema)

    @property
    def scored(self) -> dict[str, Any]:
        """The variables that are scored and exported: averaged, where they are."""
        return self.variables if self.ema is None else self.ema


class Keys(NamedTuple):
    """One random key for each purpose."""

    init: jax.Array
    augment: jax.Array


def make_keys(seed: int, num_seeds: int = 1) -> Keys:
    """The keys of a run, all from its one seed; [num_seeds] each, of seeds from it."""
    num_keys = len(Keys._fields)
    keys = [
        Keys(*jax.random.split(jax.random.key(each), num_keys))
        for each in range(seed, seed + num_seeds)
    ]
    return seeds.stack(keys)


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
    has_ema: bool = False,
) -> TrainState:
    """A fresh state for pictures of image_shape (H, W, C).

    Args:
      key: [], or [num_seeds]: then all arrays have that axis before their own.
      has_ema: whether train_step has an ema_decay.
    """

    def init(key: jax.Array) -> TrainState:
        variables = init_variables(model, image_shape, key=key)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            opt_state=tx.init(variables["params"]),
            ema=jax.tree.map(jnp.copy, variables) if has_ema else None,
        )

    return jax.jit(jax.vmap(init) if key.ndim else init)(key)


def model_key(step_key: jax.Array) -> jax.Array:
    """The network's key in a step, from the step's own, which the augmentation splits.

    To split is to fold in 0, 1, 2, ...: this is none of those.
    """
    return jax.random.fold_in(step_key, 2**31)


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
    ema_decay: float = 0.0,
) -> tuple[TrainState, metrics.Sums]:
    """One update by the mean cross-entropy of `batch`; its sums before the update.

    Args:
      trainable: by PyTorch's name of a parameter; the others stay to the bit.
      backbone_bn: of BatchNorm layers that are not trainable. "update": their
        statistics move, as with requires_grad=False in a PyTorch module in training
        mode; "frozen": they are in inference mode and their statistics stay.
      accumulate, local_bn: see gradients.loss_and_gradient.
      ema_decay: of the averaged variables, where the state has them.
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
            accumulate=accumulate,
            local_bn=local_bn,
        )
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    if trainable is not None:  # not even -0. + 0.
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


def average(ema: Any, variables: Any, step: jax.Array, decay: float) -> Any:
    """The exponential moving average of parameters and BatchNorm statistics.

    The statistics are averaged as the parameters are, for each were gathered under
    parameters of their time. The first steps forget faster, by (1 + s) / (10 + s) in
    step s from 0, as TensorFlow's.
    """
    keep = jnp.minimum(decay, (1 + step) / (10 + step))

    def of_leaf(old: jax.Array, new: jax.Array) -> jax.Array:
        return old + (1 - keep).astype(old.dtype) * (new - old)

    return jax.tree.map(of_leaf, ema, variables)


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
