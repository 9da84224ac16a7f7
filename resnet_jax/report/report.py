"""The page of a run."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from resnet_jax import files
from resnet_jax.data.augment import Preprocess
from resnet_jax.data.loader import Loader
from resnet_jax.fields import flat
from resnet_jax.models import summary
from resnet_jax.report import diagram, figures, robustness, scores
from resnet_jax.report.page import Content, Picture, Table, write
from resnet_jax.report.subject import Subject
from resnet_jax.run.logs import read_metrics
from resnet_jax.training import evaluation, seeds
from resnet_jax.weights import export

NUM_SHOWN = 24  # pictures of each kind


def write_report(
    run_dir: Path,
    subject: Subject,
    preprocess: Preprocess,
    loader: Loader,
    robust: robustness.Found | None = None,
) -> Path:
    """Writes run_dir/report: index.html, which is returned, the PNGs that are in it,
    and report.json with its figures.

    Args:
      loader: its test split is what the network is asked about.
      robust: what robustness.measure found of it, if that is to be shown.

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

    sections: dict[str, list[Content]] = {"Result": [_result(found)]}
    if records:
        alt = "Loss and accuracy by epoch, the learning rate beneath"
        curves = picture("curves", alt, figures.plot_history, records)
        sections["Training"] = [curves, _last(records)]
    alt = "Confusion matrix: rows are true classes, columns predicted ones"
    draw = figures.plot_confusion
    confusion = picture("confusion", alt, draw, found["confusion"], class_names)
    sections["Classes"] = [confusion, _classes(found)]
    sections["Predictions"] = [
        picture(
            name, alt, figures.plot_predictions, np.asarray(images[chosen]), captions
        )
        for name, alt, chosen, captions in chosen_predictions(
            probabilities, labels, class_names
        )
        if len(chosen)
    ]
    sections["Calibration"] = _calibration(picture, found)
    if robust is not None:
        shown = np.asarray(images[:1])
        sections["Robustness"] = robustness.contents(picture, robust, shown)
    sections["Inside the network"] = _inside(picture, model, variables, inputs)
    alt = f"{cfg.model.model}: stages, blocks, shortcuts, shapes, parameters"
    draw = partial(diagram.draw, model, subject.image_shape)
    sections["Structure"] = [picture("structure", alt, draw)]
    rows = [(one.name, value) for one, value in flat(cfg)]
    sections["Configuration"] = [Table(("field", "value"), rows)]
    sections["Versions and machine"] = [_machine()]
    page = directory / "index.html"
    write(page, subject.title, sections)
    return page


def _calibration(picture: Any, found: Mapping[str, Any]) -> list[Content]:
    ece = found["ece"]
    alt = f"Reliability diagram, ECE {100 * ece:.2f} %"
    return [
        "80 % of the images that the network is 80 % sure of should be right. The ECE "
        "is the mean distance from that, over 15 bins of confidence.",
        picture("reliability", alt, figures.plot_reliability, found["bins"], ece),
    ]


def _machine() -> Table:
    machine = {
        "machine": platform.platform(),
        "devices": ", ".join(sorted({d.device_kind for d in jax.devices()})),
        **export.versions(),
    }
    return Table(("what", "value"), list(machine.items()))


def _result(found: Mapping[str, Any]) -> Table:
    return Table(
        ("accuracy", "balanced accuracy", "macro-F1", "NLL", "ECE", "pictures"),
        [
            (
                f"{100 * found['accuracy']:.2f} %",
                f"{100 * found['balanced_accuracy']:.2f} %",
                f"{100 * found['macro_f1']:.2f} %",
                f"{found['nll']:.4f}",
                f"{100 * found['ece']:.2f} %",
                f"{found['count']:,}",
            )
        ],
    )


def _last(records: figures.Records) -> Table:
    """The best epoch, by validation where there is one, the last, and the time."""
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
    return Table(("class", "precision", "recall", "F1", "pictures"), rows)


def chosen_predictions(
    probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> list[tuple[str, str, np.ndarray, list[str]]]:
    """(name, alt, indices, captions): the surest mistakes, then what is right."""
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
    """First filters, feature maps by stage, BatchNorm's statistics by layer."""
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
        alt = "Feature maps of the first test picture after each stage, first channels"
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
    """(name, leaves by name) of each module of a collection."""
    for name, value in tree.items():
        if any(isinstance(leaf, Mapping) for leaf in value.values()):
            yield from _modules(value, (*path, name))
        else:
            yield ".".join((*path, name)), value
