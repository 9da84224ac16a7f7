"""Training curves, with the points and tables that show their values on a page."""

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
from resnet_jax.report.page import Picture, Point, Table

Line = tuple[Sequence[float], Sequence[float]]
_PARTS = {"train": "training", "val": "validation", "test": "test"}
_RATE = "learning rate"


def plot_history(
    records: Records, loss_path: Path, accuracy_path: Path
) -> list[Picture]:
    """Draws a run's loss and accuracy by epoch, each with the learning rate below it.

    Returns:
      The figures at `loss_path` and `accuracy_path`.
    """
    epochs = [record["epoch"] for record in records]
    rates = [record["lr"] for record in records]
    pictures = []
    for key, path, scale, ylabel in (
        ("loss", loss_path, 1, "cross-entropy"),
        ("accuracy", accuracy_path, 100, "%"),
    ):
        lines = {
            label: (epochs, [scale * record[f"{part}_{key}"] for record in records])
            for part, label in _PARTS.items()
            if f"{part}_{key}" in records[0]
        }
        points = plot(lines, path, key, "epoch", ylabel, rates=(epochs, rates))
        alt = f"{key.capitalize()} by epoch, with the learning rate below"
        show = _number if scale == 1 else _percent
        columns = {label: list(map(show, y)) for label, (_, y) in lines.items()}
        columns[_RATE] = [f"{rate:.4g}" for rate in rates]
        values = _table(epochs, columns, f"{key.capitalize()} by epoch")
        pictures.append(Picture(path, alt, points, values))
    return pictures


def plot_runs(runs: Mapping[str, Records], directory: Path) -> list[Picture]:
    """Draws the training loss and the test accuracy of several runs.

    Returns:
      The figures in `directory`: loss.png and accuracy.png by epoch, and
      accuracy-by-time.png by minutes of training.
    """
    losses: dict[str, Line] = {}
    accuracies: dict[str, Line] = {}
    by_time: dict[str, Line] = {}
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
        caption = f"{title.capitalize()} by {xlabel}"
        show = _percent if ylabel == "%" else _number
        columns: dict[str, dict[float, str]] = {}
        for name, (x, y) in lines.items():
            own = losses[name][0]  # the epochs of this run
            if xlabel != "epoch":
                times = [f"{one:.1f}" for one in x]
                columns[f"{name}, minutes"] = dict(zip(own, times, strict=True))
            columns[name] = dict(zip(own, map(show, y), strict=True))
        every = sorted({epoch for column in columns.values() for epoch in column})
        cells = {
            label: [column.get(epoch, "-") for epoch in every]
            for label, column in columns.items()
        }
        values = _table(every, cells, caption)
        pictures.append(Picture(path, f"{caption}: {names}", points, values))
    return pictures


def _number(value: float) -> str:
    return f"{value:.4f}"


def _percent(value: float) -> str:
    return f"{value:.2f} %"


def _table(
    epochs: Sequence[float], columns: Mapping[str, Sequence[str]], caption: str
) -> Table:
    rows = zip(epochs, *columns.values(), strict=True)
    return Table(("epoch", *columns), list(rows), caption)


def plot(
    lines: Mapping[str, Line],
    path: Path,
    title: str,
    xlabel: str,
    ylabel: str,
    rates: Line | None = None,
) -> list[Point]:
    """Draws a line for each label and saves the figure to `path` as a PNG.

    Args:
      lines: maps each label to the coordinates (x, y) of its line.
      rates: coordinates (x, y) of the learning rate curve, drawn below the lines, or
        None to omit the curve.

    Returns:
      The points of all lines, each with text that states its label and value.
    """
    figure = new_figure(5.2, 4.6 if rates else 3.8)
    if rates is None:
        upper = lower = figure.subplots()
    else:
        upper, lower = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
        style: dict[str, Any] = {"color": COLOURS[-1]}
        lower.plot(*rates, **style, marker="o" if len(rates[0]) == 1 else "")
        lower.set(ylabel=_RATE)
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
    drawn = [(label, line, upper) for label, line in lines.items()]
    if rates is not None:
        drawn.append((_RATE, rates, lower))
    found = []
    for label, (x, y), axes in drawn:
        at = axes.transData.transform(np.column_stack([x, y]))
        unit = " %" if ylabel == "%" and axes is upper else ""
        for (left, bottom), one, value in zip(at, x, y, strict=True):
            where = f"{xlabel} {one:g}" if xlabel == "epoch" else f"{one:.1f} minutes"
            text = f"{label}, {where}: {value:.4g}{unit}"
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
