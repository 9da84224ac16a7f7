"""The report page of a run."""

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
from resnet_jax.data.loader import Loader
from resnet_jax.fields import flat
from resnet_jax.models import summary
from resnet_jax.report import (
    curves,
    diagram,
    figures,
    mistakes,
    origin,
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
from resnet_jax.run.logs import read_metrics
from resnet_jax.training import evaluation, seeds
from resnet_jax.weights import export

NUM_SHOWN = 24  # images of each kind


def write_report(
    run_dir: Path,
    subject: Subject,
    preprocess: Preprocess,
    loader: Loader,
    robust: robustness.Found | None = None,
) -> Path:
    """Writes run_dir/report: index.html, its figures as PNGs, and report.json.

    Args:
      loader: its test split is scored.
      robust: what robustness.measure found, if that is to be shown.

    Returns:
      The path of index.html.

    Raises:
      ConfigError: it cannot be written there.
    """
    directory = run_dir / "report"
    files.check_writable(directory, "folder", "RUN")
    cfg, model, variables = subject.cfg, subject.model, subject.state.variables
    test = loader.splits.test
    class_names, images, labels = test.class_names, test.images, test.labels
    inputs = np.asarray(preprocess(np.asarray(images[:1])))
    records = read_metrics(run_dir)
    if subject.seed_index is not None:
        records = [seeds.of_seed(record, subject.seed_index) for record in records]
    logits = evaluation.predict(model, preprocess, loader, variables, test)
    probabilities = scores.softmax(logits)
    found = scores.score(probabilities, labels, class_names)
    also = {} if robust is None else {"robustness": robust}
    files.write_json(directory / "report.json", {**found, **also})

    def picture(name: str, alt: str, draw: Any, *args: Any, **options: Any) -> Picture:
        path = directory / f"{name}.png"
        draw(*args, path=path, **options)
        return Picture(path, alt)

    top5 = scores.top_k_accuracy(probabilities, labels, 5)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    result = _result(found, top5, num_params)
    sections: dict[str, list[Content]] = {"Result": [result]}
    if records:
        paths = directory / "loss.png", directory / "accuracy.png"
        points = curves.plot_history(records, *paths)
        panels = [
            Picture(path, f"{what} by epoch, with the learning rate below", at)
            for path, what, at in zip(paths, ("Loss", "Accuracy"), points, strict=True)
        ]
        sections["Training"] = [Panels(panels), _last(records), *_scored(cfg, found)]
    alt = "Confusion matrix: rows are true classes, columns predicted ones"
    draw = figures.plot_confusion
    confusion = picture("confusion", alt, draw, found["confusion"], class_names)
    pairs: list[Content] = []
    sections["Classes"] = [_classes(found)]
    if len(class_names) <= mistakes.MOST_CLASSES:
        matrix, pairs = mistakes.contents(
            probabilities, images, labels, class_names, found["confusion"]
        )
        sections["Classes"] += [matrix, Folded("The matrix as a figure", [confusion])]
    else:
        sections["Classes"] += [confusion]
    sections["Predictions"] = [
        picture(
            name, alt, figures.plot_predictions, np.asarray(images[chosen]), captions
        )
        for name, alt, chosen, captions in chosen_predictions(
            probabilities, labels, class_names
        )
        if len(chosen)
    ]
    if pairs:
        sections["Mistakes by confusion"] = pairs
    sections["Calibration"] = _calibration(picture, found)
    if robust is not None:
        shown = np.asarray(images[:1])
        sections["Robustness"] = robustness.contents(picture, robust, shown)
    sections["Inside the network"] = _inside(picture, model, variables, inputs)
    alt = f"{cfg.model.model}: stages, blocks, shortcuts, shapes, parameters"
    draw = partial(diagram.draw, model, subject.image_shape)
    sections["Structure"] = [picture("structure", alt, draw)]
    rows = [(one.name, value) for one, value in flat(cfg)]
    table = Table(("field", "value"), rows)
    sections["Configuration"] = [Folded(f"{len(rows)} fields", [table])]
    sections["Versions and machine"] = [_machine()]
    page = directory / "index.html"
    write(page, subject.title, sections)
    return page


def _calibration(picture: Any, found: Mapping[str, Any]) -> list[Content]:
    ece = found["ece"]
    alt = f"Reliability diagram, ECE {100 * ece:.2f} %"
    return [
        "80 % of the images predicted with a confidence of 80 % should be right. The "
        "expected calibration error (ECE) is the mean distance from that, over 15 bins "
        "of confidence.",
        picture("reliability", alt, figures.plot_reliability, found["bins"], ece),
    ]


def _machine() -> Table:
    machine = {
        "machine": platform.platform(),
        "devices": ", ".join(sorted({d.device_kind for d in jax.devices()})),
        **export.versions(),
    }
    return Table(("what", "value"), list(machine.items()))


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
    where = origin.describe()
    long = {"command": where.pop("command")}
    others = {"scored on": f"{found['count']:,} images, test split", **shown, **where}
    return Card(headline, others, long)


def _scored(cfg: Config, found: Mapping[str, Any]) -> list[Content]:
    """Says why the last epoch's accuracy may differ from that of the page."""
    most = cfg.data.max_test_samples
    if most is None or most >= found["count"]:
        return []
    return [
        f"During training {most:,} of the {found['count']:,} test images were scored "
        "after each epoch; the figures above are of all of them."
    ]


def _last(records: figures.Records) -> Table:
    """Returns the best epoch, by validation if there is any, the last, and the time."""
    part = "val" if "val_accuracy" in records[0] else "test"
    best = max(records, key=lambda record: record[f"{part}_accuracy"])
    rows = []
    for label, record in ((f"best by {part}", best), ("last", records[-1])):
        parts = [
            f"{record[f'{part}_loss']:.4f}, {100 * record[f'{part}_accuracy']:.2f} %"
            if f"{part}_loss" in record
            else "-"
            for part in ("train", "val", "test")
        ]
        rows.append((label, record["epoch"], *parts))
    seconds = sum(record["seconds"] for record in records)
    rows.append(("time", f"{seconds / 60:.1f} min of training", "", "", ""))
    return Table(("", "epoch", "training", "validation", "test"), rows)


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
    return Table(header, rows, is_sortable=True)


def chosen_predictions(
    probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> list[tuple[str, str, np.ndarray, list[str]]]:
    """Returns (name, alt, indices, captions) of confident mistakes, then right ones."""
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:NUM_SHOWN]
    right = np.flatnonzero(predicted == labels)[:NUM_SHOWN]
    captions = [
        f"{class_names[p]} {100 * c:.1f} %"
        + ("" if p == y else f"\ntrue: {class_names[y]}")
        for p, c, y in zip(predicted, confidence, labels, strict=True)
    ]
    return [
        (name, alt, chosen, [captions[i] for i in chosen])
        for name, alt, chosen in (
            ("mistakes", "Mistakes, the most confident first", wrong),
            ("right", "Right predictions, the first of the test set", right),
        )
    ]


def _inside(
    picture: Any, model: nn.Module, variables: dict[str, Any], inputs: np.ndarray
) -> list[Content]:
    """Returns the first filters, feature maps by stage, and BatchNorm's statistics."""
    contents: list[Content] = []
    layers = summary.structure(model, inputs.shape[1:]).layers
    params, running = (dict(_modules(variables[k])) for k in ("params", "batch_stats"))
    first = next(layer for layer in layers if layer.kind == "Conv")
    kernel = np.asarray(params[first.name]["kernel"])
    if kernel.shape[2] in (1, 3):  # can be shown as colours or greys
        alt = "Filters of the first convolution, grey is 0"
        contents.append(picture("filters", alt, figures.plot_filters, kernel))
    _, state = model.apply(variables, inputs, train=False, mutable=["intermediates"])
    maps = {k: np.asarray(v[0][0]) for k, v in state["intermediates"].items()}
    if maps:
        alt = "Feature maps of the first test image after each stage, first channels"
        contents.append(picture("features", alt, figures.plot_maps, maps))
    names = [layer.name for layer in layers if layer.kind == "BatchNorm"]
    statistics = {name: running[name] for name in names}
    if statistics:
        alt = "Running means and variances of each BatchNorm layer over its channels"
        contents.append(picture("batchnorm", alt, figures.plot_statistics, statistics))
    return contents


def _modules(
    tree: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields (name, leaves by name) of each module of a collection."""
    for name, value in tree.items():
        if any(isinstance(leaf, Mapping) for leaf in value.values()):
            yield from _modules(value, (*path, name))
        else:
            yield ".".join((*path, name)), value
