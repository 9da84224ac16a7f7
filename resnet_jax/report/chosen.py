"""Chooses the predictions that a report shows."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

NUM_SHOWN = 24  # maximum number of predictions of each kind


class Chosen(NamedTuple):
    """Predictions for a figure, with the figure's name and text alternative."""

    name: str
    alt: str
    indices: np.ndarray
    captions: list[str]


def choose(
    probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> list[Chosen]:
    """Returns the most confident mistakes and a sample of the correct predictions.

    Args:
      probabilities: predicted probabilities [N, C] of the test split.
      labels: true labels [N] int.
    """
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:NUM_SHOWN]
    right = np.flatnonzero(predicted == labels)
    right = right[spread(len(right), NUM_SHOWN)]
    captions = [
        f"{class_names[p]} {100 * c:.1f} %"
        + ("" if p == y else f"\ntrue: {class_names[y]}")
        for p, c, y in zip(predicted, confidence, labels, strict=True)
    ]
    return [
        Chosen(name, alt, indices, [captions[i] for i in indices])
        for name, alt, indices in (
            ("mistakes", "Mistakes, most confident first", wrong),
            ("right", "Correct predictions, sampled from the whole test split", right),
        )
    ]


def spread(count: int, most: int) -> np.ndarray:
    """Returns up to `most` evenly spaced indices from 0 to `count` - 1."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))
