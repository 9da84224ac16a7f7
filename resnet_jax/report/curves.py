"""Curves of training, with the points that a page shows the values of."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.report.figures import (
    COLOURS,
    Records,
    new_figure,
    plain,
    save_figure,
    style_of,
)
from resnet_jax.report.page import Picture, Point

Line = tuple[Sequence[float], Sequence[float]]
_PARTS = {"train": "training", "val": "validation", "test": "test"}


def plot_history(
    records: Records, loss_path: Path, accuracy_path: Path
) -> tuple[list[Point], list[Point]]:
    """Draws a run's loss and accuracy by epoch, with its learning rate below.

    Returns:
      The points of both images.
    """
    epochs = [record["epoch"] for record in records]
    rates = [record["lr"] for record in records]
    found = []
    for key, path, scale, ylabel in (
        ("loss", loss_path, 1, "cross-entropy"),
        ("accuracy", accuracy_path, 100, "%"),
    ):
        lines = {
            label: (epochs, [scale * record[f"{part}_{key}"] for record in records])
            for part, label in _PARTS.items()
            if f"{part}_{key}" in records[0]
        }
        found.append(plot(lines, path, key, "epoch", ylabel, rates=(epochs, rates)))
    return found[0], found[1]


def plot_runs(runs: Mapping[str, Records], directory: Path) -> list[Picture]:
    """Draws the training loss and the test accuracy of several runs.

    Returns:
      Images in `directory`: loss.png and accuracy.png by epoch, and
      accuracy-by-time.png by minutes of training.
    """
    losses, accuracies, by_time = {}, {}, {}
    for name, records in runs.items():
        epochs = [record["epoch"] for record in records]
        percent = [100 * record["test_accuracy"] for record in records]
        minutes = np.cumsum([record["seconds"] for record in records]) / 60
        losses[name] = epochs, [record["train_loss"] for record in records]
        accuracies[name] = epochs, percent
        by_time[name] = minutes.tolist(), percent
    names = ", ".join(runs)
    pictures = []
    for file, lines, title, xlabel, ylabel in (
        ("loss", losses, "training loss", "epoch", "cross-entropy"),
        ("accuracy", accuracies, "test accuracy", "epoch", "%"),
        ("accuracy-by-time", by_time, "test accuracy", "minutes of training", "%"),
    ):
        path = directory / f"{file}.png"
        points = plot(lines, path, title, xlabel, ylabel)
        alt = f"{title.capitalize()} by {xlabel}: {names}"
        pictures.append(Picture(path, alt, points))
    return pictures


def plot(
    lines: Mapping[str, Line],
    path: Path,
    title: str,
    xlabel: str,
    ylabel: str,
    rates: Line | None = None,
) -> list[Point]:
    """Draws a line for each label through its (x, y) as a PNG at `path`.

    Args:
      rates: learning rates, drawn below.

    Returns:
      The points of the lines, each with its label and values.
    """
    figure = new_figure(5.2, 4.6 if rates else 3.8)
    if rates is None:
        upper = lower = figure.subplots()
    else:
        upper, lower = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
        style: dict[str, Any] = {"color": COLOURS[-1]}
        lower.plot(*rates, **style, marker="o" if len(rates[0]) == 1 else "")
        lower.set(ylabel="learning rate")
    for index, (label, (x, y)) in enumerate(lines.items()):
        upper.plot(x, y, label=plain(label), **style_of(index))
    upper.set(title=title, ylabel=ylabel)
    lower.set(xlabel=xlabel)
    places = sorted({place for x, _ in lines.values() for place in x})
    for axes in dict.fromkeys((upper, lower)):
        _finish(axes, places if xlabel == "epoch" else [])
    upper.legend()
    save_figure(figure, path)
    width, height = figure.bbox.size
    found = []
    for label, (x, y) in lines.items():
        at = upper.transData.transform(np.column_stack([x, y]))
        for (left, bottom), one, value in zip(at, x, y, strict=True):
            where = f"{xlabel} {one:g}" if xlabel == "epoch" else f"{one:.1f} minutes"
            text = f"{label}, {where}: {value:.4g}{' %' if ylabel == '%' else ''}"
            if np.isfinite((left, bottom)).all():
                found.append(Point(left / width, 1 - bottom / height, text))
    return found


def _finish(axes: Any, epochs: Sequence[float]) -> None:
    from matplotlib.ticker import MaxNLocator

    if len(epochs) == 1:
        axes.set_xticks(epochs)
    elif epochs:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
