"""Draws figures of a data set: class counts and sample images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from resnet_jax.report.figures import COLOURS, new_figure, plain, save_figure

_MOST_NAMED = 60  # maximum number of classes with their own bars and names


def plot_counts(
    counts: np.ndarray, names: Sequence[str], splits: Sequence[str], path: Path
) -> None:
    """Draws the number of images of each class as bars or, for many classes, as curves.

    In the curves, classes are sorted by their counts in the first split, largest first.

    Args:
      counts: [C, S] int, the number of images of each class in each split.
    """
    num_classes, num_splits = counts.shape
    if num_classes > _MOST_NAMED:
        figure = new_figure(9, 3.5)
        axes = figure.subplots()
        order = np.argsort(-counts[:, 0], kind="stable")
        for index, split in enumerate(splits):
            style = {"color": COLOURS[index], "label": plain(split), "linewidth": 0.8}
            axes.plot(counts[order, index], **style)
        axes.set(
            xlabel=f"{num_classes} classes, largest first",
            ylabel="images",
            ylim=(0, None),
        )
    else:
        figure = new_figure(9, 1.4 + 0.16 * num_classes * (num_splits + 0.6))
        axes = figure.subplots()
        height = 0.8 / num_splits
        for index, split in enumerate(splits):
            places = np.arange(num_classes) + (index + 0.5) * height - 0.4
            bars = axes.barh(
                places,
                counts[:, index],
                height,
                color=COLOURS[index],
                label=plain(split),
            )
            axes.bar_label(bars, padding=3, fontsize=8)
        shown = [plain(_short(name)) for name in names]
        axes.set_yticks(range(num_classes), shown)
        axes.set(xlabel="images", ylim=(num_classes - 0.4, -0.6))
        axes.margins(x=0.1)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper right", ncols=num_splits)
    save_figure(figure, path)


def plot_samples(
    images: np.ndarray, augmented: np.ndarray, names: Sequence[str], path: Path
) -> None:
    """Draws a row for each class: its images before and after augmentation.

    Args:
      images: images before augmentation, [N, H, W, 3] uint8.
      augmented: the same images after augmentation, [N, H, W, 3] uint8.
      names: the class name of each image.
    """
    classes = list(dict.fromkeys(names))
    rows = [[i for i, one in enumerate(names) if one == name] for name in classes]
    columns = max(3, *map(len, rows))  # a class name needs the width of three images
    figure = new_figure(1.15 * (2 * columns + 0.2), 1.35 * len(rows) + 0.4)
    halves = figure.subfigures(1, 2, wspace=0.02)
    titles = "before augmentation", "after augmentation"
    for half, title, pixels in zip(halves, titles, (images, augmented), strict=True):
        half.suptitle(title, fontsize=11)
        grid = half.subplots(len(rows), columns, squeeze=False)
        for axes in grid.ravel():
            axes.set(xticks=[], yticks=[], frame_on=False)
        for line, name, indices in zip(grid, classes, rows, strict=True):
            line[0].set_title(plain(_short(name)), fontsize=9, loc="left")
            for axes, index in zip(line, indices, strict=False):
                axes.imshow(pixels[index])
    save_figure(figure, path)


def _short(name: str) -> str:
    return name if len(name) < 30 else f"{name[:28]}.."
