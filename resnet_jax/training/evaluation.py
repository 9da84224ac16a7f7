"""What a network says of pictures in inference mode, and how often it is right."""

from collections.abc import Callable, Iterable, Sized
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from resnet_jax.data.loader import Feed, Source, fetch
from resnet_jax.training import Batch, TrainState, metrics
from resnet_jax.training.seeds import Each

# Of x [B, H, W, C], some [B, H, W, C] and what share each has in the whole.
Views = Callable[[jax.Array], list[tuple[float, jax.Array]]]


def flips_and_shifts(x: jax.Array) -> list[tuple[float, jax.Array]]:
    """x, and shifted by a pixel up and left, and down and right; and all mirrored.

    The shifted ones, whose edge is repeated, have half the weight (Jordan 2024).
    """
    _, height, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), "edge")
    places = ((1, 0.25), (0, 0.125), (2, 0.125))
    views = [(s, padded[:, p : p + height, p : p + width]) for p, s in places]
    return views + [(share, view[:, :, ::-1]) for share, view in views]


def make_evaluate(
    model: nn.Module,
    augment: Callable[..., tuple[jax.Array, jax.Array]],
    feed: Feed,
    batch_size: int,
    **options: Any,
) -> Callable[[TrainState, Any], metrics.Sums]:
    """evaluate of (state, dataset) alone, compiled, its batches from `feed`.

    Args:
      options: see eval_step.
    """

    @jax.jit
    def step(state: TrainState, batch: Batch, source: Source) -> metrics.Sums:
        return eval_step(model, augment, state, fetch(source, batch), **options)

    def run(state: TrainState, dataset: Any) -> metrics.Sums:
        # Of the state only these, so that its other arrays are not waited for.
        state = state.replace(opt_state=())
        source = feed.source(dataset)
        make_batches = partial(feed.evaluation, batch_size=batch_size)
        return evaluate(partial(step, source=source), make_batches, state, dataset)

    return run


def eval_step(
    model: nn.Module,
    augment: Callable[..., tuple[jax.Array, jax.Array]],
    state: TrainState,
    batch: Batch,
    *,
    views: Views | None = None,
    each: Each | None = None,
    ensemble: bool = False,
) -> metrics.Sums:
    """The sums of one batch in inference mode, over the examples its mask marks.

    Args:
      views: of a picture, whose logits are averaged; None is the picture alone.
      each: of a state of several seeds, seeds.make_each; the sums are [num_seeds].
      ensemble: one more, the last, is of the mean of the seeds' probabilities.
    """
    images, _ = augment(jax.random.key(0), batch["images"], batch["labels"])
    each = each or (lambda function: function)

    def predict(variables: Any) -> jax.Array:
        return sum(
            share * model.apply(variables, view, train=False)
            for share, view in ([(1, images)] if views is None else views(images))
        )

    def score(logits: jax.Array) -> metrics.Sums:
        return metrics.eval_sums(logits, batch["labels"], batch["mask"])

    logits = each(predict)(state.scored)
    if ensemble:
        summed = jax.nn.logsumexp(jax.nn.log_softmax(logits), 0, keepdims=True)
        logits = jnp.concatenate([logits, summed - jnp.log(len(logits))])
    return each(score)(logits)


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
            bar.update(len(batch["mask"]))
    counted = np.int64(0 if total is None else total["count"])
    if total is None or not np.all(counted == len(dataset)):
        raise RuntimeError(f"scored {counted} examples of {len(dataset)}")
    return total
