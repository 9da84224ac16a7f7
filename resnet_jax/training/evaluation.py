"""Evaluates networks in inference mode."""

from collections.abc import Callable, Iterable, Sized
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax import waiting
from resnet_jax.data.augment import Preprocess
from resnet_jax.data.dataset import Dataset
from resnet_jax.data.loader import Loader, Source, fetch
from resnet_jax.devices import mesh
from resnet_jax.layers import library
from resnet_jax.models import folding
from resnet_jax.training import metrics
from resnet_jax.training.state import Batch, Each, TrainState

# Maps x [B, H, W, C] to (weight in the mean, view [B, H, W, C]) pairs.
Views = Callable[[jax.Array], list[tuple[float, jax.Array]]]


def flips_and_shifts(x: jax.Array) -> list[tuple[float, jax.Array]]:
    """Returns views of x for test-time augmentation, with their weights.

    The views are x, x shifted by one pixel down and to the right, x shifted by one
    pixel up and to the left, and the mirror images of all three (Jordan 2024). Shifted
    views repeat the pixels at the edges, and each has half the weight of x.
    """
    _, height, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), "edge")
    places = ((1, 0.25), (0, 0.125), (2, 0.125))
    views = [(s, padded[:, p : p + height, p : p + width]) for p, s in places]
    return views + [(share, view[:, :, ::-1]) for share, view in views]


def logits_of(
    model: nn.Module,
    preprocess: Preprocess,
    variables: Any,
    batch: Batch,
    views: Views | None = None,
) -> jax.Array:
    """Returns the outputs of `model` for a batch: logits [B, C], or features.

    Args:
      views: the test-time augmentation, or None. Logits are averaged over the views.
    """
    images = preprocess(batch["images"])
    shown = [(1.0, images)] if views is None else views(images)
    if library.is_used():  # lets oneDNN fuse bias and ReLU into each convolution
        model, variables = folding.fold(model, variables)
    apply: Callable[..., Any] = model.apply
    total = sum(share * apply(variables, view, train=False) for share, view in shown)
    return jnp.asarray(total)


def eval_step(
    model: nn.Module,
    preprocess: Preprocess,
    state: TrainState,
    batch: Batch,
    *,
    views: Views | None = None,
    each: Each = lambda function: function,
    combine: Callable[[jax.Array], jax.Array] = lambda logits: logits,
) -> metrics.Sums:
    """Evaluates in inference mode; returns metric sums over examples whose mask is 1.

    Args:
      views: see logits_of.
      each: see seeds.make_each. With several seeds, the sums have a leading seed axis.
      combine: a function that is applied to the logits before they are scored, such as
        seeds.with_ensemble.
    """

    def predict(variables: Any) -> jax.Array:
        return logits_of(model, preprocess, variables, batch, views)

    def count(logits: jax.Array) -> metrics.Sums:
        return metrics.eval_sums(logits, batch["labels"], batch["mask"])

    sums: metrics.Sums = each(count)(combine(each(predict)(state.scored)))
    return sums


def make_evaluate(
    model: nn.Module, preprocess: Preprocess, loader: Loader, **options: Any
) -> Callable[[TrainState, Dataset], metrics.Sums]:
    """Returns a function of (state, dataset) that calls `evaluate` with a compiled
    step.

    Args:
      options: see eval_step.
    """

    @library.jit
    def step(state: TrainState, batch: Batch, source: Source) -> metrics.Sums:
        return eval_step(model, preprocess, state, fetch(source, batch), **options)

    def run(state: TrainState, dataset: Dataset) -> metrics.Sums:
        # Drop the optimizer state so that the step does not wait for it.
        state = state.replace(opt_state=())  # type: ignore[attr-defined]
        bound = partial(step, source=loader.source(dataset))
        return evaluate(bound, loader.evaluation, state, dataset)

    return run


def evaluate(
    eval_step: Callable[[TrainState, Batch], metrics.Sums],
    make_batches: Callable[[Any], Iterable[Batch]],
    state: TrainState,
    dataset: Sized,
) -> metrics.Sums:
    """Returns metric sums over `dataset`; checks that each example is counted once."""
    total = None
    with waiting.bar(len(dataset), "evaluation") as bar:
        for batch in make_batches(dataset):
            with waiting.first("evaluation", total is None):
                total = metrics.add(total, eval_step(state, batch))
            bar.update(len(batch["mask"]))
    counted = np.int64(0 if total is None else total["count"])
    if total is None or not np.all(counted == len(dataset)):
        raise RuntimeError(f"scored {counted} of {len(dataset)} examples")
    return total


def predict(
    model: nn.Module,
    preprocess: Preprocess,
    loader: Loader,
    variables: dict[str, Any],
    dataset: Dataset,
    what: str = "evaluation",
) -> np.ndarray:
    """Returns the outputs of `model` for all images, in inference mode.

    The outputs are logits [N, C], or features [N, F] if the model has num_classes=0.

    Args:
      what: the label of the progress bar.
    """

    @partial(library.jit, out_shardings=mesh.replicated(loader.mesh))
    def outputs(variables: dict[str, Any], batch: Batch, source: Source) -> jax.Array:
        return logits_of(model, preprocess, variables, fetch(source, batch))

    source = loader.source(dataset)
    parts: list[np.ndarray] = []
    variables = mesh.replicate(loader.mesh, variables)
    with waiting.bar(len(dataset), what) as bar:
        for batch in loader.evaluation(dataset):
            with waiting.first(what, not parts):
                parts.append(np.asarray(outputs(variables, batch, source)))
            bar.update(len(batch["mask"]))
    # The last rows are the padding of the last batch; drop them.
    if not parts:
        return np.zeros((0, 1), np.float32)
    return np.concatenate(parts)[: len(dataset)]
