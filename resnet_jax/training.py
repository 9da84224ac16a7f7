"""The training state and the pure functions that move and score it."""

import time
from collections.abc import Callable, Iterable, Sized
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from resnet_jax import metrics, names
from resnet_jax.freezing import Predicate, inference_batch_norm

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
) -> tuple[TrainState, metrics.Sums]:
    """One update by the mean cross-entropy of `batch`; its sums before the update.

    Args:
      trainable: by PyTorch's name of a parameter; the others stay to the bit.
      backbone_bn: of BatchNorm layers that are not trainable. "update": their
        statistics move, as with requires_grad=False in a PyTorch module in training
        mode; "frozen": they are in inference mode and their statistics stay.
    """
    frozen_bn = trainable if backbone_bn == "frozen" else None
    step_key = jax.random.fold_in(key, state.step)
    images, targets = augment(step_key, batch["images"], batch["labels"])
    gradient = jax.value_and_grad(loss_fn, argnums=1, has_aux=True)
    with inference_batch_norm(frozen_bn):
        (loss, (logits, batch_stats)), grads = gradient(
            model, state.params, state.batch_stats, images, targets, step_key
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


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    augment: Callable[..., tuple[jax.Array, jax.Array]],
    trainable: Predicate | None = None,
    *,
    backbone_bn: str = "update",
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, metrics.Sums]]:
    """train_step of (state, batch, key) alone, all else bound; not compiled."""
    bound = partial(train_step, model, tx, augment)
    return partial(bound, trainable=trainable, backbone_bn=backbone_bn)


def make_evaluate(
    model: nn.Module,
    augment: Callable[..., tuple[jax.Array, jax.Array]],
    make_batches: Callable[[Any], Iterable[Batch]],
) -> Callable[[TrainState, Sized], metrics.Sums]:
    """evaluate of (state, dataset) alone, its step compiled."""
    step = jax.jit(partial(eval_step, model, augment))
    return partial(evaluate, step, make_batches)


def compile_step(
    step: Callable[..., Any], state: TrainState, batches: Iterable[Batch], *args: Any
) -> tuple[Callable[..., Any], float]:
    """`step` compiled for the shapes of `batches`, and the seconds that took.

    Nothing runs. The compiled step is called as step(state, batch, *args); it writes
    over the state that it is given.

    Raises:
      ConfigError: the model cannot train on one of the shapes.
    """
    begun = time.monotonic()
    if jax.config.jax_debug_nans:  # JAX runs it again, op by op, on the same arguments
        return jax.jit(step), 0.0
    jitted = jax.jit(step, donate_argnums=0)
    compiled: dict[int, Any] = {}
    for batch in batches:
        size = len(batch["labels"])
        if size not in compiled:
            compiled[size] = jitted.lower(state, batch, *args).compile()

    def run(state: TrainState, batch: Batch, *args: Any) -> Any:
        return compiled[len(batch["labels"])](state, batch, *args)

    return run, time.monotonic() - begun


def eval_step(
    model: nn.Module,
    augment: Callable[..., tuple[jax.Array, jax.Array]],
    state: TrainState,
    batch: Batch,
) -> metrics.Sums:
    """The sums of one batch in inference mode, over the examples its mask marks."""
    images, _ = augment(jax.random.key(0), batch["images"], batch["labels"])
    logits = model.apply(state.variables, images, train=False)
    return metrics.eval_sums(logits, batch["labels"], batch["mask"])


def predict(
    model: nn.Module,
    augment: Callable[..., tuple[jax.Array, jax.Array]],
    variables: dict[str, Any],
    make_batches: Callable[[Any], Iterable[Batch]],
    dataset: Sized,
) -> np.ndarray:
    """What `model` says of the pictures of `dataset` in inference mode: [N, ...].

    Logits [N, C], or features [N, F] of a model with num_classes=0. What a mask leaves
    out is left out.
    """

    @jax.jit
    def outputs(variables: dict[str, Any], batch: Batch) -> jax.Array:
        images, _ = augment(jax.random.key(0), batch["images"], batch["labels"])
        return model.apply(variables, images, train=False)

    parts = []
    with _bar(len(dataset)) as bar:
        for batch in make_batches(dataset):
            parts.append(np.asarray(outputs(variables, batch))[batch["mask"] == 1])
            bar.update(len(batch["labels"]))
    return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)


def _bar(count: int) -> tqdm:
    """A progress bar over pictures, where stderr is a terminal."""
    options = {"unit": "image", "leave": False, "disable": None}
    return tqdm(total=count, desc="evaluation", **options)


def evaluate(
    eval_step: Callable[[TrainState, Batch], metrics.Sums],
    make_batches: Callable[[Any], Iterable[Batch]],
    state: TrainState,
    dataset: Sized,
) -> metrics.Sums:
    """The sums over `dataset`; every example is counted exactly once, or it raises."""
    total = None
    with _bar(len(dataset)) as bar:
        for batch in make_batches(dataset):
            total = metrics.add(total, eval_step(state, batch))
            bar.update(len(batch["labels"]))
    counted = 0 if total is None else int(total["count"])
    if total is None or counted != len(dataset):
        raise RuntimeError(f"scored {counted} examples of {len(dataset)}")
    return total
