"""Every picture, from arrays; matplotlib wakes up inside."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Records = Sequence[Mapping[str, Any]]  # of metrics.jsonl, a line an epoch


def plot_curves(runs: Mapping[str, Records], path: Path) -> None:
    """Training loss and test accuracy by epoch, a line a run, as a PNG at `path`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    for (name, records), style in zip(runs.items(), _styles(len(runs)), strict=True):
        epochs = [record["epoch"] for record in records]
        losses = [record["train_loss"] for record in records]
        accuracies = [100 * record["test_accuracy"] for record in records]
        loss.plot(epochs, losses, label=name, **style)
        accuracy.plot(epochs, accuracies, label=name, **style)
    loss.set(title="training loss", xlabel="epoch", ylabel="mean cross-entropy")
    accuracy.set(title="test accuracy", xlabel="epoch", ylabel="%")
    for axes in (loss, accuracy):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _styles(count: int) -> list[dict[str, Any]]:
    # Marks of their own, so that curves that coincide are both seen.
    marks = ("o", "x", "s", "+", "^", "d")
    return [
        {"marker": marks[i % 6], "linestyle": "-" if i % 2 == 0 else "--"}
        for i in range(count)
    ]
