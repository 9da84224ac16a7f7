"""Scores of a network, or of those of several seeds and their ensemble."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from resnet_jax.data import Dataset
from resnet_jax.training import TrainState, metrics, seeds
from resnet_jax.training.metrics import Sums


class Scores(NamedTuple):
    """What one pass over a data set found."""

    lines: list[str]  # of each seed, their spread and the ensemble; of one seed, none
    sums: Sums  # of all predictions, those of all seeds added
    best: Sums  # of the ensemble, or of the one seed
    figures: dict[str, Any]  # as metrics.report has them


def score(
    make: Callable[..., Callable[[TrainState, Dataset], Sums]],
    state: TrainState,
    dataset: Dataset,
    of_seeds: Sequence[int],
) -> Scores:
    """The scores of `state`, which has arrays of these seeds.

    Args:
      make: evaluation.make_evaluate, all but `ensemble` bound.
    """
    report = metrics.report
    if len(of_seeds) == 1:
        sums = make()(state, dataset)
        return Scores([], sums, sums, report(sums, dataset.class_names))
    sums = make(ensemble=True)(state, dataset)
    *each, ensemble = (seeds.take(sums, index) for index in range(len(of_seeds) + 1))
    sums = {name: value[:-1] for name, value in sums.items()}
    lines = [
        f"seed {seed}: {metrics.summary_line(found)}"
        for seed, found in zip(of_seeds, each, strict=True)
    ]
    found = metrics.means(sums, "test")
    mean, spread = 100 * found["test_accuracy"], 100 * found["test_accuracy_std"]
    lines.append(f"mean of {len(each)} seeds: Acc@1 {mean:.3f} (sd {spread:.3f})")
    lines.append(f"ensemble: {metrics.summary_line(ensemble)}")
    added = {name: np.sum(value, axis=0) for name, value in sums.items()}
    figures = {
        **report(added, dataset.class_names),
        "accuracy_std": found["test_accuracy_std"],
        "seeds": {
            str(seed): report(found, dataset.class_names)
            for seed, found in zip(of_seeds, each, strict=True)
        },
        "ensemble": report(ensemble, dataset.class_names),
    }
    return Scores(lines, added, ensemble, figures)
