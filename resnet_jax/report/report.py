"""Writes the report page of a run."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from resnet_jax import files
from resnet_jax.config import Config
from resnet_jax.data.augment import Preprocess
from resnet_jax.data.dataset import Dataset
from resnet_jax.data.loader import Loader
from resnet_jax.fields import flat
from resnet_jax.models import summary
from resnet_jax.report import (
    chosen,
    curves,
    diagram,
    figures,
    mistakes,
    origin,
    repeat,
    robustness,
    scores,
)
from resnet_jax.report.page import (
    Card,
    Content,
    Folded,
    Panels,
    Picture,
    Table,
    write,
)
from resnet_jax.report.subject import Subject
from resnet_jax.run.directory import read_run
from resnet_jax.run.logs import Record, read_metrics
from resnet_jax.training import evaluation, seeds
from resnet_jax.weights import export


def write_report(
    run_dir: Path,
    subject: Subject,
    preprocess: Preprocess,
    loader: Loader,
    robust: robustness.Found | None = None,
) -> Path:
    """Writes index.html, its figures as PNGs, and report.json to run_dir/report.

    Args:
      loader: the loader whose test split is scored.
      robust: the result of robustness.measure, or None to omit it.

    Returns:
      The path of index.html.

    Raises:
      ConfigError: if the report cannot be written.
    """
    directory = run_dir / "report"
    files.check_writable(directory, "folder", "RUN")
    cfg, model, variables = subject.cfg, subject.model, subject.state.variables
    test = loader.splits.test
    first = np.asarray(test.images[:1])
    records = _read_records(run_dir, subject.seed_index)
    logits = evaluation.predict(model, preprocess, loader, variables, test)
    probabilities = scores.softmax(logits)
    found = scores.score(probabilities, test.labels, test.class_names)
    also = {} if robust is None else {"robustness": robust}
    files.write_json(directory / "report.json", {**found, **also})

    def picture(
        name: str, alt: str, draw: Any, *args: Any, has_images: bool = False
    ) -> Picture:
        path = directory / f"{name}.png"
        draw(*args, path=path)
        return Picture(path, alt, has_images=has_images)

    top5 = scores.top_k_accuracy(probabilities, test.labels, 5)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    sections: dict[str, list[Content]] = {"Result": [_result(found, top5, num_params)]}
    if records:
        curve = _curves(directory, records)
        sections["Training"] = [curve, *_last(records), *_scored(cfg, found)]
    sections["Classes"], pairs = _by_class(picture, probabilities, test, found)
    sections["Predictions"] = _predictions(picture, probabilities, test)
    if pairs:
        sections["Mistakes by confusion"] = pairs
    sections["Calibration"] = _calibration(picture, found)
    if robust is not None:
        sections["Robustness"] = robustness.contents(picture, robust, first)
    inputs = np.asarray(preprocess(first))
    sections["Inside the network"] = _inside(picture, model, variables, inputs)
    sections["Structure"] = [_structure(picture, subject)]
    sections["Configuration"] = _configuration(run_dir, cfg)
    sections["Versions and machine"] = [_machine()]
    page = directory / "index.html"
    write(page, subject.title, sections)
    return page


def _read_records(run_dir: Path, seed_index: int | None) -> list[Record]:
    records = read_metrics(run_dir)
    if seed_index is None:
        return records
    return [seeds.of_seed(record, seed_index) for record in records]


def _curves(directory: Path, records: Sequence[Record]) -> Panels:
    paths = directory / "loss.png", directory / "accuracy.png"
    return Panels(curves.plot_history(records, *paths))


def _structure(picture: Any, subject: Subject) -> Picture:
    alt = f"{subject.cfg.model.model}: stages, blocks, shortcuts, shapes and parameters"
    draw = partial(diagram.draw, subject.model, subject.image_shape)
    found: Picture = picture("structure", alt, draw)
    return found


def _by_class(
    picture: Any, probabilities: np.ndarray, test: Dataset, found: Mapping[str, Any]
) -> tuple[list[Content], list[Content]]:
    """Returns the contents of the sections on classes and on mistakes."""
    alt = "Confusion matrix: rows are true classes, columns are predicted classes"
    names, matrix = test.class_names, found["confusion"]
    confusion = picture("confusion", alt, figures.plot_confusion, matrix, names)
    if len(names) > mistakes.MOST_CLASSES:
        return [_classes(found), confusion], []
    table, pairs = mistakes.contents(
        probabilities, test.images, test.labels, names, matrix
    )
    return [
        _classes(found),
        table,
        Folded("The matrix as a figure", [confusion]),
    ], pairs


def _predictions(
    picture: Any, probabilities: np.ndarray, test: Dataset
) -> list[Content]:
    return [
        picture(
            one.name,
            one.alt,
            figures.plot_predictions,
            np.asarray(test.images[one.indices]),
            one.captions,
            has_images=True,
        )
        for one in chosen.choose(probabilities, test.labels, test.class_names)
        if len(one.indices)
    ]


def _configuration(run_dir: Path, cfg: Config) -> list[Content]:
    rows = [(one.name, value) for one, value in flat(cfg)]
    table = Table(("field", "value"), rows, "Configuration of the run")
    again = Card({}, {}, {"training command": repeat.command(read_run(run_dir))})
    return [again, Folded(f"{len(rows)} fields", [table])]


def _calibration(picture: Any, found: Mapping[str, Any]) -> list[Content]:
    ece = found["ece"]
    alt = f"Reliability diagram, ECE {100 * ece:.2f} %"
    return [
        "A calibrated network is correct for 80 % of the images that it classifies "
        "with a confidence of 80 %. The expected calibration error (ECE) is the "
        "mean absolute difference between confidence and accuracy over 15 bins, "
        "weighted by the number of images in each bin.",
        picture("reliability", alt, figures.plot_reliability, found["bins"], ece),
    ]


def _machine() -> Table:
    machine = {
        "machine": platform.platform(),
        "devices": ", ".join(sorted({d.device_kind for d in jax.devices()})),
        **export.versions(),
    }
    caption = "Machine and package versions used for this evaluation"
    return Table(("name", "value"), list(machine.items()), caption)


def _result(found: Mapping[str, Any], top5: float, num_params: int) -> Card:
    percent = {
        "top-1 accuracy": found["accuracy"],
        "top-5 accuracy": top5,
        "balanced accuracy": found["balanced_accuracy"],
        "macro-F1": found["macro_f1"],
        "calibration error (ECE)": found["ece"],
    }
    shown = {name: f"{100 * value:.2f} %" for name, value in percent.items()}
    headline = {name: shown.pop(name) for name in list(shown)[:2]}
    headline["cross-entropy"] = f"{found['nll']:.4f}"
    headline["parameters"] = f"{num_params:,}"
    others = {"scored on": f"{found['count']:,} images, test split", **shown}
    return origin.card(headline, others)


def _scored(cfg: Config, found: Mapping[str, Any]) -> list[Content]:
    """Returns a note if only some test images were scored during training."""
    most = cfg.data.max_test_samples
    if most is None or most >= found["count"]:
        return []
    return [
        f"During training, {most:,} of the {found['count']:,} test images were "
        "scored after each epoch. The results at the top of this page are computed "
        "on all of them."
    ]


def _last(records: figures.Records) -> list[Content]:
    """Returns a table of the best and the last epoch, and the training time.

    The best epoch is chosen by validation accuracy, if there is a validation split.
    """
    parts = [one for one in ("train", "val", "test") if f"{one}_loss" in records[0]]
    part = "val" if "val" in parts else "test"
    best = max(records, key=lambda record: record[f"{part}_accuracy"])
    rows = []
    for label, record in ((f"best by {part}", best), ("last", records[-1])):
        values = []
        for one in parts:
            values.append(f"{record[f'{one}_loss']:.4f}")
            values.append(f"{100 * record[f'{one}_accuracy']:.2f}")
        rows.append((label, record["epoch"], *values))
    seconds = sum(record["seconds"] for record in records)
    metrics = [f"{one} {metric}" for one in parts for metric in ("loss", "%")]
    header = ("", "epoch", *metrics)
    return [
        Table(header, rows, "Loss and accuracy of the best and the last epoch"),
        f"Training took {seconds / 60:.1f} minutes.",
    ]


def _classes(found: Mapping[str, Any]) -> Table:
    rows = [
        (
            x["name"],
            *(f"{x[k]:.4f}" for k in ("precision", "recall", "f1")),
            x["support"],
        )
        for x in found["classes"]
    ]
    header = ("class", "precision", "recall", "F1", "images")
    return Table(header, rows, "Metrics of each class", is_sortable=True)


def _inside(
    picture: Any, model: nn.Module, variables: dict[str, Any], inputs: np.ndarray
) -> list[Content]:
    """Returns figures of filters, feature maps and running statistics."""
    contents: list[Content] = []
    layers = summary.structure(model, inputs.shape[1:]).layers
    params, running = (dict(_modules(variables[k])) for k in ("params", "batch_stats"))
    first = next(layer for layer in layers if layer.kind == "Conv")
    kernel = np.asarray(params[first.name]["kernel"])
    if kernel.shape[2] in (1, 3):  # can be shown in gray or in color
        alt = "Filters of the first convolution; gray is 0"
        contents.append(
            picture("filters", alt, figures.plot_filters, kernel, has_images=True)
        )
    _, state = model.apply(variables, inputs, train=False, mutable=["intermediates"])
    maps = {k: np.asarray(v[0][0]) for k, v in state["intermediates"].items()}
    if maps:
        alt = (
            "The first test image's feature maps after each stage (first channels only)"
        )
        contents.append(
            picture("features", alt, figures.plot_maps, maps, has_images=True)
        )
    names = [layer.name for layer in layers if layer.kind == "BatchNorm"]
    statistics = {name: running[name] for name in names}
    if statistics:
        alt = (
            "Running means and variances of each BatchNorm layer, summarized over "
            "its channels"
        )
        contents.append(picture("batchnorm", alt, figures.plot_statistics, statistics))
    return contents


def _modules(
    tree: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the name and the leaves of each module in a collection."""
    for name, value in tree.items():
        if any(isinstance(leaf, Mapping) for leaf in value.values()):
            yield from _modules(value, (*path, name))
        else:
            yield ".".join((*path, name)), value
