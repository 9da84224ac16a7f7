"""Draws figures from arrays; matplotlib is imported lazily."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.paths import shown

Records = Sequence[Mapping[str, Any]]  # the records of metrics.jsonl, one per epoch

# Okabe and Ito's colors, which color-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 255}  # one-channel images


def new_figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():  # the font may lack some characters
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(path, dpi=120)


def style_of(index: int) -> dict[str, Any]:
    # Different markers distinguish curves that coincide.
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": "oxs+^d"[index % 6],
        "linestyle": ("-", "--", ":")[index % 3],
        "markersize": 5,
    }


def plain(text: str) -> str:
    """Returns `text` with `$` escaped, so that matplotlib does not parse it as math."""
    return shown(text).replace("$", r"\$")


def plot_confusion(
    confusion: Sequence[Sequence[int]], class_names: Sequence[str], path: Path
) -> None:
    """Draws the confusion matrix as counts and as percentages of each true class."""
    counts = np.asarray(confusion)
    percent = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = min(3.5 + 0.35 * len(counts), 14)
    figure = new_figure(size, 2 * size)
    names = [
        plain(name if len(name) < 16 else f"{name[:14]}..") for name in class_names
    ]
    parts = (counts, "counts"), (percent, "% of the true class")
    for axes, (values, title) in zip(figure.subplots(2, 1), parts, strict=True):
        axes.imshow(values, cmap="Blues", vmin=0)
        axes.set(title=title, xlabel="predicted", ylabel="true")
        if len(names) > 30:
            continue
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
        axes.set_yticks(range(len(names)), names)
        for (row, column), value in np.ndenumerate(values):
            dark = value > values.max() / 2
            axes.text(
                column,
                row,
                f"{value:.0f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else "black",
            )
    save_figure(figure, path)


def plot_reliability(
    bins: Sequence[Mapping[str, float]], ece: float, path: Path
) -> None:
    """Draws accuracy against confidence, and the number of images in each bin."""
    figure = new_figure(5, 5.5)
    upper, lower = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    lows, widths = [b["low"] for b in bins], [b["high"] - b["low"] for b in bins]
    edges = {"align": "edge", "edgecolor": "white", "color": COLOURS[0]}
    upper.bar(lows, [b["accuracy"] for b in bins], widths, label="measured", **edges)
    upper.plot([0, 1], [0, 1], "--", color=COLOURS[-1], label="perfectly calibrated")
    upper.set(ylabel="accuracy", title=f"reliability: ECE {100 * ece:.2f} %")
    upper.legend()
    lower.bar(lows, [b["count"] for b in bins], widths, **edges)
    lower.set(xlabel="confidence", ylabel="images", xlim=(0, 1))
    save_figure(figure, path)


def plot_predictions(
    images: np.ndarray, captions: Sequence[str], path: Path, *, columns: int = 6
) -> None:
    """Draws uint8 images [N, H, W, 3] in a grid, each with its caption below."""
    rows = max(-(-len(images) // columns), 1)
    figure = new_figure(1.75 * columns, 2.15 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set(xticks=[], yticks=[], frame_on=False)
    for axes, image, caption in zip(grid, images, captions, strict=False):
        axes.imshow(image, **GREY)
        axes.set_xlabel(plain(caption), fontsize=9)
    save_figure(figure, path)


def plot_prediction(
    image: np.ndarray, heat: np.ndarray, likely: Sequence[tuple[str, float]], path: Path
) -> None:
    """Draws an image, the image with a heat map, and bars for the most likely classes.

    Args:
      image: the image, [H, W, 3] uint8.
      heat: the heat map [h, w] in [0, 1], which is stretched to the size of the image.
      likely: the most likely classes with their probabilities in [0, 1], in descending
        order.
    """
    figure = new_figure(10, 3.6)
    height, width = image.shape[:2]
    panels = figure.subplots(1, 3)
    for axes in panels[:2]:
        axes.imshow(image, **GREY)
        axes.axis("off")
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    veil: Any = {"cmap": "inferno", "alpha": 0.55, "interpolation": "bilinear"}
    shade = panels[1].imshow(heat, extent=extent, vmin=0, vmax=1, **veil)
    scale = figure.colorbar(shade, ax=panels[1], shrink=0.8, ticks=[0, 1])
    scale.ax.set_yticklabels(["none", "most"], fontsize=8)
    evidence = f'evidence for "{plain(likely[0][0])}" (Grad-CAM)'
    titles = ("input of the network", evidence, "likeliest classes")
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, fontsize=10)
    bars = panels[2].barh(range(len(likely)), [share for _, share in likely])
    panels[2].bar_label(
        bars, [f"{100 * share:.1f} %" for _, share in likely], padding=3
    )
    panels[2].set_yticks(range(len(likely)), [plain(name) for name, _ in likely])
    panels[2].set(xlim=(0, 1.3), xticks=[])  # with room for the labels
    panels[2].invert_yaxis()
    panels[2].spines[["top", "right", "bottom"]].set_visible(False)
    save_figure(figure, path)


def plot_maps(
    groups: Mapping[str, np.ndarray], path: Path, *, columns: int = 12
) -> None:
    """Draws feature maps in gray, with a row for each group.

    Args:
      groups: maps the name of each group to its feature maps [H, W, N].
      columns: maximum number of feature maps per group to draw.
    """
    figure = new_figure(0.9 * columns, 1.05 * len(groups))
    grid = figure.subplots(len(groups), columns, squeeze=False)
    for row, (name, maps) in zip(grid, groups.items(), strict=True):
        for index, axes in enumerate(row):
            axes.axis("off")
            if index < maps.shape[-1]:
                axes.imshow(maps[..., index], cmap="gray")
        height, width, count = maps.shape
        title = f"{plain(name)}: {height}x{width}, {count} channels"
        row[0].set_title(title, fontsize=8, loc="left")
    save_figure(figure, path)


def plot_filters(kernels: np.ndarray, path: Path) -> None:
    """Draws the filters [K, K, C, N] of the first convolution, with gray for 0."""
    count = min(kernels.shape[-1], 64)
    columns = min(16, count)
    rows = -(-count // columns)
    figure = new_figure(0.55 * columns, 0.6 * rows + 0.1)
    scale = np.abs(kernels).max() or 1.0
    for index, axes in enumerate(figure.subplots(rows, columns, squeeze=False).ravel()):
        axes.axis("off")
        if index < count:
            axes.imshow(0.5 + kernels[..., index] / (2 * scale), "gray", vmin=0, vmax=1)
    save_figure(figure, path)


def plot_statistics(statistics: Mapping[str, Any], path: Path) -> None:
    """Draws the median, quartiles and range of each layer's running statistics.

    Args:
      statistics: maps the name of each BatchNorm layer to its arrays mean [C] and
        var [C].
    """
    names = list(statistics)
    figure = new_figure(max(6, 0.22 * len(names) + 2), 6)
    parts = ("mean", "running mean"), ("var", "running variance")
    for axes, (key, label) in zip(
        figure.subplots(2, 1, sharex=True), parts, strict=True
    ):
        values = [np.asarray(statistics[name][key], np.float64) for name in names]
        quartiles = np.array([np.percentile(v, (0, 25, 50, 75, 100)) for v in values]).T
        places = np.arange(len(names))
        low, first, middle, third, high = quartiles
        axes.vlines(places, low, high, color=COLOURS[5], linewidth=2, label="range")
        axes.vlines(
            places, first, third, color=COLOURS[0], linewidth=6, label="quartiles"
        )
        axes.plot(places, middle, ".", color=COLOURS[-1], label="median")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        if key == "var":
            axes.set_yscale("log")
            axes.set_xticks(places, names, rotation=90, fontsize=7)
        else:
            axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    save_figure(figure, path)


def plot_lines(
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    path: Path,
    *,
    xlabel: str,
    ylabel: str,
    log: bool = False,
    columns: int = 3,
) -> None:
    """Draws panels of lines that share a legend.

    Args:
      panels: maps each panel's title to its lines, a mapping from labels to coordinates
        (x, y). A label has the same style in all panels.
      log: whether the y-axes are logarithmic.
      columns: maximum number of panels in a row.
    """
    from matplotlib.ticker import MaxNLocator

    columns = min(len(panels), columns) or 1
    rows = -(-len(panels) // columns) or 1
    figure = new_figure(max(4.4 * columns, 6), 3 * rows + 0.8)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=log)
    for axes in grid.ravel()[len(panels) :]:
        axes.axis("off")
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    shown: dict[str, Any] = {}
    for axes, (title, lines) in zip(grid.ravel(), panels.items(), strict=False):
        for label, (x, y) in lines.items():
            style = style_of(labels.index(label)) | {"markersize": 3}
            (shown[label],) = axes.plot(x, y, label=plain(label), **style)
        axes.set(title=plain(title), xlabel=xlabel)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if log:
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
    for axes in grid[:, 0]:
        axes.set_ylabel(ylabel)
    if shown:
        handles = [shown[label] for label in labels]
        figure.legend(handles=handles, loc="outside upper center", ncols=4)
    save_figure(figure, path)
