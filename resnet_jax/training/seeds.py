"""Trains one recipe with several seeds in one program.

With several seeds, the arrays of the state and of the sums have a leading seed axis,
and `each` maps a function of one seed's arrays over that axis. Runs with a single seed
have no such axis.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from resnet_jax.data.dataset import Dataset, epoch_batches
from resnet_jax.errors import ConfigError
from resnet_jax.training import metrics, state
from resnet_jax.training.metrics import Sums
from resnet_jax.training.state import Each, Keys, TrainState


def make_each(num_seeds: int, mesh: Mesh) -> Each:
    """Returns a transformation that maps functions over seeds.

    For a single seed, this is the identity. On accelerators, each operation computes
    its results for all seeds at once (vmap). On CPUs, the seeds are computed one after
    another, because CPU convolutions support only one kernel at a time.
    """
    if num_seeds == 1:
        return lambda function: function
    if mesh.devices.flat[0].platform == "cpu":
        return unrolled
    return jax.vmap


def unrolled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns jax.vmap of `function`, unrolled into one call per index."""

    def of_all(*args: Any) -> Any:
        num = len(jax.tree.leaves(args)[0])
        found: list[Any] = []
        for index in range(num):
            # Run the calls one after another: interleaved calls compete for the caches.
            args, found = jax.lax.optimization_barrier((args, found))
            found.append(function(*take(args, index)))
        return stack(found)

    return of_all


def stack(trees: Sequence[Any]) -> Any:
    """Stacks trees along a leading seed axis; returns a single tree unchanged."""
    if len(trees) == 1:
        return trees[0]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def take(tree: Any, index: int) -> Any:
    """Returns the part of `tree` that belongs to the seed at `index`."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def shape(num_seeds: int) -> tuple[int, ...]:
    """Returns the shape of the seed axis, which is () for a single seed."""
    return () if num_seeds == 1 else (num_seeds,)


def shapes(tree: Any, num_seeds: int) -> Any:
    """Returns shapes for `num_seeds` seeds, given a `tree` of shapes for one seed."""
    axes = shape(num_seeds)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((*axes, *leaf.shape), leaf.dtype), tree
    )


def make_keys(seed: int, num_seeds: int) -> Keys:
    """Returns keys for `num_seeds` seeds from `seed` on: [num_seeds], or [] for one."""
    keys: Keys = stack([state.make_keys(n) for n in range(seed, seed + num_seeds)])
    return keys


def make_order(
    seed: int,
    num_seeds: int,
    balanced: np.ndarray | None = None,
    repeats: int = 1,
) -> Callable[[int, tuple[int, ...], int], list[np.ndarray]]:
    """Returns a function that orders each seed's examples; see data.reading.Order.

    Args:
      balanced: see data.epoch_batches.
      repeats: see data.epoch_batches. This argument is ignored with several seeds.
    """
    if num_seeds == 1:
        return partial(epoch_batches, seed=seed, balanced=balanced, repeats=repeats)
    seeds = range(seed, seed + num_seeds)
    return partial(_epoch_batches, seeds, balanced=balanced)


def _epoch_batches(
    seeds: Sequence[int],
    num_examples: int,
    sizes: Sequence[int],
    epoch: int,
    *,
    balanced: np.ndarray | None,
) -> list[np.ndarray]:
    orders = [
        epoch_batches(num_examples, sizes, epoch, seed=seed, balanced=balanced)
        for seed in seeds
    ]
    return [np.stack(batches) for batches in zip(*orders, strict=True)]


def for_each(
    function: Callable[[dict[str, Any]], dict[str, Any]], begun: TrainState
) -> TrainState:
    """Replaces the initial variables of each seed with function(variables)."""
    if begun.step.ndim == 0:
        return begun.with_variables(function(begun.variables))
    each = (take(begun.variables, index) for index in range(len(begun.step)))
    return begun.with_variables(stack([function(variables) for variables in each]))


def means(sums: Sums, prefix: str) -> dict[str, Any]:
    """Returns metrics.means and, for several seeds, standard deviations and all values.

    The added names are prefix_loss_std, prefix_loss_seeds, prefix_accuracy_std and
    prefix_accuracy_seeds.
    """
    found = metrics.means(sums, prefix)
    if np.ndim(sums["loss"]):
        for name, counted in (("loss", "loss"), ("accuracy", "correct")):
            each = np.asarray(sums[counted] / sums["count"], np.float64)
            found[f"{prefix}_{name}_std"] = float(each.std(ddof=1))
            found[f"{prefix}_{name}_seeds"] = each.tolist()
    return found


def of_seed(record: dict[str, Any], index: int) -> dict[str, Any]:
    """Returns a record of several seeds with one seed's values instead of the means."""
    end = "_seeds"
    own = {k.removesuffix(end): v[index] for k, v in record.items() if k.endswith(end)}
    return {**record, **own}


def index_of(
    seed: int | None, first: int, num_seeds: int, run: str, one: str
) -> int | None:
    """Returns the index of `seed` in a run; None for a single seed or for all seeds.

    Args:
      one: the name of an option that needs a single network, or "".

    Raises:
      ConfigError: if the run has no such seed, or if `one` requires choosing a seed.
    """
    last = first + num_seeds - 1
    known = f"seed {first}" if num_seeds == 1 else f"seeds {first} to {last}"
    if seed is None:
        if num_seeds > 1 and one:
            raise ConfigError(
                f"{one} needs one network, but {run} has {known}: specify --seed"
            )
        return None
    if not first <= seed <= last:
        raise ConfigError(f"{run} has no seed {seed}, only {known}")
    return None if num_seeds == 1 else seed - first


def with_ensemble(logits: jax.Array) -> jax.Array:
    """Appends the logits of the ensemble, which averages the seeds' probabilities.

    Args:
      logits: [num_seeds, B, C].
    """
    summed = jax.nn.logsumexp(jax.nn.log_softmax(logits), 0, keepdims=True)
    return jnp.concatenate([logits, summed - jnp.log(len(logits))])


class Scores(NamedTuple):
    """The result of one pass over a data set."""

    lines: list[str]  # one per seed, then the mean and the ensemble; empty for one seed
    sums: Sums  # the metric sums over the predictions of all seeds
    best: Sums  # the metric sums for the ensemble, or for the only seed
    figures: dict[str, Any]  # see metrics.report


def score(
    make: Callable[..., Callable[[TrainState, Dataset], Sums]],
    state: TrainState,
    dataset: Dataset,
    of_seeds: Sequence[int],
) -> Scores:
    """Returns the scores of `state` on `dataset`.

    Args:
      make: evaluation.make_evaluate with all arguments but `combine` bound.
      state: the state to score.
      dataset: the data set to score it on.
      of_seeds: the seeds whose arrays `state` contains.
    """
    report = metrics.report
    if len(of_seeds) == 1:
        sums = make()(state, dataset)
        return Scores([], sums, sums, report(sums, dataset.class_names))
    sums = make(combine=with_ensemble)(state, dataset)
    *each, ensemble = (take(sums, index) for index in range(len(of_seeds) + 1))
    sums = {name: value[:-1] for name, value in sums.items()}
    lines = [
        f"seed {seed}: {metrics.summary_line(found)}"
        for seed, found in zip(of_seeds, each, strict=True)
    ]
    found = means(sums, "test")
    mean, spread = 100 * found["test_accuracy"], 100 * found["test_accuracy_std"]
    lines.append(f"mean of {len(each)} seeds: Acc@1 {mean:.3f} (sd {spread:.3f})")
    lines.append(f"ensemble: {metrics.summary_line(ensemble)}")
    added = {name: np.sum(value, axis=0) for name, value in sums.items()}
    by_seed = {
        str(seed): report(found, dataset.class_names)
        for seed, found in zip(of_seeds, each, strict=True)
    }
    balances = {
        name: float(np.mean([figures[name] for figures in by_seed.values()]))
        for name in ("balanced_accuracy", "macro_f1")
    }
    figures = {
        **report(added, dataset.class_names),
        **balances,  # the mean of the F1 scores is not the F1 score of the sums
        "accuracy_std": found["test_accuracy_std"],
        "seeds": by_seed,
        "ensemble": report(ensemble, dataset.class_names),
    }
    return Scores(lines, added, ensemble, figures)
