"""Metrics: sums over batches, final means, and lines of JSON."""

import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

Sums = dict[str, Any]  # name -> array; the sums of several batches can be added


def train_sums(loss: jax.Array, logits: jax.Array, labels: jax.Array) -> Sums:
    """Returns the metric sums over a training batch, given its mean loss (a scalar)."""
    count = labels.shape[0]
    return {
        "loss": loss * count,
        "correct": (logits.argmax(-1) == labels).sum(dtype=jnp.float32),
        "count": jnp.asarray(count, jnp.float32),
    }


def eval_sums(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> Sums:
    """Returns the metric sums over the examples whose mask is 1.

    An example counts as correct in the top k if fewer than k classes have a larger
    logit than the labeled class. As in argmax, the class with the lower index wins a
    tie.

    Args:
      logits: [B, C].
      labels: [B] int32.
      mask: [B] float32.
    """
    num_classes = logits.shape[-1]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    earlier = jnp.arange(num_classes)[None, :] < labels[:, None]
    unordered = jnp.isnan(logits) | jnp.isnan(own)  # a NaN is never correct
    rank = ((logits > own) | ((logits == own) & earlier) | unordered).sum(-1)
    correct = (rank == 0) * mask
    by_class = jax.nn.one_hot(labels, num_classes)
    predicted = jax.nn.one_hot(logits.argmax(-1), num_classes)
    return {
        # This uses jnp.where because the loss of a padded row may be NaN.
        "loss": jnp.where(mask > 0, losses, 0).sum(),
        "correct": correct.sum(),
        "correct_top5": ((rank < 5) * mask).sum(),
        "count": mask.sum(),
        "class_correct": (by_class * correct[:, None]).sum(0),
        "class_count": (by_class * mask[:, None]).sum(0),
        "class_predicted": (predicted * mask[:, None]).sum(0),
    }


def add(total: Sums | None, more: Sums) -> Sums:
    """Adds `more` to `total` on the host in float64, which keeps counts exact."""
    more = {name: np.asarray(value, np.float64) for name, value in more.items()}
    if total is None:
        return more
    return {name: total[name] + value for name, value in more.items()}


def means(sums: Sums, prefix: str) -> dict[str, Any]:
    """Returns the mean loss and the accuracy, named prefix_loss and prefix_accuracy.

    If the sums have a seed axis, the results are averaged over the seeds.
    """
    return {
        f"{prefix}_{name}": float(np.mean(np.asarray(sums[counted] / sums["count"])))
        for name, counted in (("loss", "loss"), ("accuracy", "correct"))
    }


def json_line(record: dict[str, Any]) -> str:
    """Returns `record` as one line of JSON, without a newline."""
    return json.dumps(record, allow_nan=True)


def summary_line(sums: Sums) -> str:
    """Returns a line of the form `Acc@1 .. Acc@5 .. loss .. n ..`.

    It shows the accuracies in percent, the mean cross-entropy and the number of
    examples.
    """
    count = float(sums["count"])
    top1, top5 = (
        100 * float(sums[name]) / count for name in ("correct", "correct_top5")
    )
    loss = float(sums["loss"]) / count
    return f"Acc@1 {top1:.3f} Acc@5 {top5:.3f} loss {loss:.6f} n {count:.0f}"


def epoch_line(record: dict[str, Any]) -> str:
    """Formats a record of metrics.jsonl as a readable line."""
    parts = [
        f"epoch {record['epoch']:3d}  step {record['step']}  lr {record['lr']:.3g}"
    ]
    for name in ("train", "val", "test"):
        if f"{name}_loss" in record:
            accuracy = 100 * record[f"{name}_accuracy"]
            spread = record.get(f"{name}_accuracy_std")
            parts.append(
                f"{name} loss {record[f'{name}_loss']:.4f} acc {accuracy:.2f}%"
                + ("" if spread is None else f" (sd {100 * spread:.2f})")
            )
    parts.append(f"{record['seconds']:.1f} s")
    parts.append(f"{record['images_per_second']:.0f} images/s")
    return "  ".join(parts)


def balance(sums: Sums) -> dict[str, float]:
    """Returns balanced_accuracy and macro_f1, as fractions.

    As in scikit-learn, both means exclude classes without images, with one exception:
    if such a class is predicted, it is included in macro_f1 with an F1 of 0.
    """
    correct, there, predicted = (
        np.asarray(sums[f"class_{name}"]) for name in ("correct", "count", "predicted")
    )
    recall = correct[there > 0] / there[there > 0]
    known = there + predicted > 0
    f1 = 2 * correct[known] / (there + predicted)[known]
    return {"balanced_accuracy": float(recall.mean()), "macro_f1": float(f1.mean())}


def balance_line(sums: Sums) -> str:
    """Returns a line of the form `balanced accuracy .. macro-F1 ..`, in percent."""
    found = balance(sums)
    accuracy, f1 = 100 * found["balanced_accuracy"], 100 * found["macro_f1"]
    return f"balanced accuracy {accuracy:.3f} macro-F1 {f1:.3f}"


def report(sums: Sums, class_names: Sequence[str]) -> dict[str, Any]:
    """Returns metrics computed from eval_sums: accuracies, cross-entropy and counts."""
    count = float(sums["count"])
    by_class = zip(class_names, sums["class_correct"], sums["class_count"], strict=True)
    return {
        "accuracy": float(sums["correct"]) / count,
        "accuracy_top5": float(sums["correct_top5"]) / count,
        **balance(sums),
        "loss": float(sums["loss"]) / count,
        "count": int(count),
        "class_accuracy": {
            name: float(correct) / float(total) if total else None
            for name, correct, total in by_class
        },
    }


def class_table(sums: Sums, class_names: Sequence[str]) -> str:
    """Returns a table with the accuracy of each class, one class per line."""
    width = max(map(len, class_names))
    rows = zip(class_names, sums["class_correct"], sums["class_count"], strict=True)
    return "\n".join(
        f"{name:{width}}  {100 * correct / max(total, 1):6.2f}%  "
        f"{correct:.0f} of {total:.0f}"
        for name, correct, total in rows
    )
