"""Measures the accuracy of a network on corrupted test images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax import waiting
from resnet_jax.data import corruptions
from resnet_jax.data.augment import Preprocess
from resnet_jax.data.corruptions import SEVERITIES
from resnet_jax.data.dataset import Dataset, Splits
from resnet_jax.data.loader import Loader
from resnet_jax.devices import mesh
from resnet_jax.report import figures
from resnet_jax.report.page import Content, Table
from resnet_jax.report.subject import Subject
from resnet_jax.training import evaluation, metrics, seeds

_IMAGES = 2000  # maximum number of test images to corrupt at a time
_BYTES = 2**28  # maximum size of these images in bytes; images in a folder may be large
_SHOWN = (1, 3, 5)  # severities that plot_corruptions draws
Found = dict[str, Any]


def measure(
    subject: Subject, preprocess: Preprocess, loader: Loader, seed: int = 0
) -> Found:
    """Measures the accuracy on the test split of `loader` under each corruption.

    For a run with several seeds, the accuracies are averaged over the seeds.

    Args:
      seed: the seed for the noise.

    Returns:
      A dict with these keys, in which accuracies are fractions:

      * count, seed and severities.
      * clean: the accuracy without corruption.
      * accuracy: a dict that maps each corruption to its accuracies by severity.
      * mean_accuracy: the mean over all corruptions and severities.
    """
    test, cfg = loader.splits.test, subject.cfg
    none = test.take(slice(0))
    # Do not keep the images on the device: the copies for every corruption would
    # accumulate there.
    own = Loader(loader.mesh, Splits(none, none, test, {}), cfg.data, held=False)
    each = seeds.make_each(cfg.run.num_seeds, loader.mesh)
    evaluate = evaluation.make_evaluate(subject.model, preprocess, own, each=each)
    state = mesh.replicate(loader.mesh, subject.state)
    batch = cfg.data.eval_batch_size
    size = min(_IMAGES, _BYTES // max(test.images[:1].nbytes, 1))
    size = max(size // batch, 1) * batch  # full batches
    settings = [(name, s) for name in corruptions.CORRUPTIONS for s in SEVERITIES]
    sums: dict[tuple[str, int], metrics.Sums] = {}
    with waiting.bar(len(test) * (1 + len(settings)), "robustness") as bar:
        for start in range(0, len(test), size):
            part = test.take(slice(start, start + size))
            images = np.asarray(part.images)
            for name, severity in [("", 0), *settings]:
                changed = images
                if name:
                    changed = corruptions.corrupt(name, images, severity, seed, start)
                dataset = Dataset(changed, part.labels, part.class_names)
                more = evaluate(state, dataset)
                found = {key: np.sum(more[key]) for key in ("correct", "count")}
                sums[name, severity] = metrics.add(sums.get((name, severity)), found)
                bar.update(len(part))
    accuracy = {key: float(own["correct"] / own["count"]) for key, own in sums.items()}
    by_name = {
        name: [accuracy[name, severity] for severity in SEVERITIES]
        for name in corruptions.CORRUPTIONS
    }
    return {
        "count": len(test),
        "seed": seed,
        "severities": list(SEVERITIES),
        "clean": accuracy["", 0],
        "accuracy": by_name,
        "mean_accuracy": float(np.mean(list(by_name.values()))),
    }


def text(found: Found) -> str:
    """Formats the result of `measure` as a table of percentages."""
    header, rows = _cells(found)
    width = max(len(row[0]) for row in [header, *rows])
    lines = [
        f"{row[0]:{width}}" + "".join(f"{cell:>8}" for cell in row[1:])
        for row in [header, *rows]
    ]
    mean, clean = 100 * found["mean_accuracy"], 100 * found["clean"]
    last = f"mean corruption accuracy {mean:.3f} (without corruption {clean:.3f})"
    return "\n".join([*lines, last])


def contents(
    picture: Callable[..., Content], found: Found, images: np.ndarray
) -> list[Content]:
    """Returns the robustness section of a report: a paragraph, a table and two figures.

    Args:
      picture: a function that makes a figure. Its arguments are a name, a text
        alternative, a function that draws the figure to a path, and the arguments of
        the drawing function.
      images: the image to show under each corruption, [1, H, W, C] uint8.
    """
    header, rows = _cells(found)
    mean, clean = 100 * found["mean_accuracy"], 100 * found["clean"]
    return [
        f"The mean accuracy is {mean:.2f} % on test images with CIFAR-10-C "
        f"corruptions (Hendrycks and Dietterich 2019) and {clean:.2f} % on the "
        "original images.",
        Table(header, rows, "Accuracy in percent by corruption and severity"),
        picture(
            "robustness",
            "Accuracy under each corruption by severity",
            plot_severities,
            found,
        ),
        picture(
            "corruptions",
            "A test image under each corruption at severities 1, 3 and 5",
            plot_corruptions,
            images,
            found["seed"],
            has_images=True,
        ),
    ]


def _cells(found: Found) -> tuple[list[str], list[list[str]]]:
    """Returns the header and rows of the table; the last row contains the means."""
    by_name = {**found["accuracy"]}
    by_name["mean"] = np.mean(list(by_name.values()), axis=0).tolist()
    header = ["severity", *map(str, found["severities"]), "mean"]
    rows = [
        [name, *(f"{100 * x:.2f}" for x in (*values, float(np.mean(values))))]
        for name, values in by_name.items()
    ]
    return header, rows


def plot_severities(found: Found, path: Path) -> None:
    """Draws the accuracy by severity, with a line for each corruption."""
    from matplotlib.ticker import MaxNLocator

    figure = figures.new_figure(8, 4.2)
    axes = figure.subplots()
    severities = [0, *found["severities"]]
    for index, (name, values) in enumerate(found["accuracy"].items()):
        percent = [100 * x for x in (found["clean"], *values)]
        axes.plot(severities, percent, label=name, **figures.style_of(index))
    axes.set(title="accuracy under corruption", xlabel="severity", ylabel="%")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center")
    figures.save_figure(figure, path)


def plot_corruptions(images: np.ndarray, seed: int, path: Path) -> None:
    """Draws the first of `images` [N, H, W, C], with a column for each corruption."""
    names = list(corruptions.CORRUPTIONS)
    columns = ["original", *names]
    figure = figures.new_figure(1.35 * len(columns) + 0.3, 1.45 * len(_SHOWN) + 0.4)
    grid = figure.subplots(len(_SHOWN), len(columns), squeeze=False)
    for row, severity in zip(grid, _SHOWN, strict=True):
        for axes, name in zip(row, columns, strict=True):
            axes.set(xticks=[], yticks=[], frame_on=False)
            if name in names:
                image = corruptions.corrupt(name, images[:1], severity, seed)[0]
                axes.imshow(image, **figures.GREY)
        row[1].set_ylabel(f"severity {severity}", fontsize=9)
    for axes, name in zip(grid[0], columns, strict=True):
        axes.set_title(name.replace(" ", "\n"), fontsize=9)
    grid[0][0].imshow(images[0], **figures.GREY)
    figures.save_figure(figure, path)
