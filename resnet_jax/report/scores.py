"""Computes metrics of predictions from probabilities and labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np

_COLUMNS = ("name", "precision", "recall", "f1", "support")


def softmax(logits: np.ndarray) -> np.ndarray:
    """Converts logits [N, C] to probabilities [N, C] in float64."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    exponentials = np.exp(shifted)
    found: np.ndarray = exponentials / exponentials.sum(1, keepdims=True)
    return found


def score(
    probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> dict[str, Any]:
    """Returns the accuracy, NLL, ECE, confusion matrix and per-class metrics.

    Args:
      probabilities: predicted probabilities [N, C]; each row sums to 1.
      labels: true labels [N] int.

    Returns:
      A dict with these keys:

      * count: the number of images.
      * accuracy: the top-1 accuracy.
      * balanced_accuracy and macro_f1: mean recall and mean F1 of the classes that
        occur.
      * nll: the mean negative log-likelihood.
      * ece and bins: the result of `calibration`.
      * confusion: counts [C][C], whose rows are the true classes.
      * classes: the name, precision, recall, f1 and support of each class. Undefined
        values are 0.
    """
    from sklearn.metrics import (
        confusion_matrix,
        f1_score,
        precision_recall_fscore_support,
        recall_score,
    )

    every = np.arange(len(class_names))
    predicted = probabilities.argmax(1)
    own = probabilities[np.arange(len(labels)), labels]
    table = precision_recall_fscore_support(
        labels, predicted, labels=every, zero_division=0.0
    )
    ece, bins = calibration(probabilities.max(1), predicted == labels)
    return {
        "count": len(labels),
        "accuracy": float((predicted == labels).mean()),
        "balanced_accuracy": float(
            recall_score(labels, predicted, labels=np.unique(labels), average="macro")
        ),
        "macro_f1": float(
            f1_score(labels, predicted, average="macro", zero_division=0.0)
        ),
        "nll": float(-np.log(np.maximum(own, np.finfo(np.float64).tiny)).mean()),
        "ece": ece,
        "bins": bins,
        "confusion": confusion_matrix(labels, predicted, labels=every).tolist(),
        "classes": [
            dict(zip(_COLUMNS, (name, *map(float, rest), int(support)), strict=True))
            for name, *rest, support in zip(class_names, *table, strict=True)
        ],
    }


def top_k_accuracy(probabilities: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Returns the fraction of images whose label is among the k most likely classes.

    Args:
      probabilities: predicted probabilities [N, C].
      labels: true labels [N] int.
    """
    own = probabilities[np.arange(len(labels)), labels]
    return float(((probabilities > own[:, None]).sum(1) < k).mean())


def calibration(
    confidences: np.ndarray, correct: np.ndarray, num_bins: int = 15
) -> tuple[float, list[dict[str, float]]]:
    """Returns the expected calibration error and the bins that contain images.

    The bins divide (0, 1] into intervals of equal width (Guo et al. 2017, section 2).
    Each bin is a dict with the keys low, high, count, confidence and accuracy: its
    ends, its number of images, and their mean confidence and accuracy.
    """
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    places = np.clip(np.digitize(confidences, edges, right=True) - 1, 0, num_bins - 1)
    bins = []
    for index in np.unique(places):
        inside = places == index
        bins.append(
            {
                "low": float(edges[index]),
                "high": float(edges[index + 1]),
                "count": int(inside.sum()),
                "confidence": float(confidences[inside].mean()),
                "accuracy": float(correct[inside].mean()),
            }
        )
    gaps = [b["count"] * abs(b["accuracy"] - b["confidence"]) for b in bins]
    return float(sum(gaps) / max(len(confidences), 1)), bins
