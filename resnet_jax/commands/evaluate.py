"""Score a run, an exported folder or a weights file on all test images.

    python evaluate.py runs/hresnet
    python evaluate.py runs/hresnet --checkpoint best --output report.json
    python evaluate.py runs/hresnet --report           also writes an HTML page
    python evaluate.py runs/hresnet --robustness --predictions p.csv
    python evaluate.py --weights FILE --model resnet20 --normalize imagenet

Prints the accuracy of each class, the accuracy of the first batch, and the averages
over the classes (balanced accuracy and macro-F1). The last line shows Acc@1 and Acc@5
in percent, the mean cross-entropy (loss) and the number of images (n). See also
`resnet-jax predict`, `export` and `compare`.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from resnet_jax.commands.predict import UNUSED
from resnet_jax.errors import ConfigError
from resnet_jax.fields import flat, ranged, refuse
from resnet_jax.report.options import SubjectConfig
from resnet_jax.weights.published import is_shipped

if TYPE_CHECKING:  # these import JAX
    from resnet_jax.data.augment import Preprocess
    from resnet_jax.data.loader import Loader
    from resnet_jax.report.subject import Subject
    from resnet_jax.training.seeds import Scores

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluateConfig(SubjectConfig):
    """The scores to compute and the files to write."""

    tta: bool = False
    """Also score with test-time augmentation, which averages the logits of each image,
    its shifts by one pixel, and their mirror images."""
    report: bool = False
    """Write RUN/report, a page with the curves, the confusion matrix, predictions and
    the network."""
    robustness: bool = False
    """Also score the test images under seven corruptions at five severities each, which
    takes 36 times as long."""
    output: str | None = ranged(None, path="as typed")
    """Write all scores to this JSON file."""
    predictions: str | None = ranged(None, path="as typed")
    """Write a row for each test image to this file (.csv, .json, .jsonl or
    .parquet)."""
    images: tuple[str, ...] = ranged((), path="as typed")
    """Deprecated: use `resnet-jax predict RUN FILES`. This option will be removed in
    the next release.
    """
    saliency: bool = False
    """Deprecated; valid only with --images: use `resnet-jax predict --saliency`."""
    compare: tuple[str, ...] = ranged((), path="as typed")
    """Deprecated: use `resnet-jax compare RUNS`. This option will be removed in the
    next release.
    """
    page: str = ranged("comparison.html", path="as typed")
    """Deprecated; valid only with --compare: HTML page to write."""
    export: str | None = ranged(None, path="as typed")
    """Deprecated: use `resnet-jax export RUN DIR`. This option will be removed in the
    next release.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        names = {one.name for one, _ in flat(self)}
        if self.compare:
            if self.run is not None or self.weights is not None:
                raise ConfigError(
                    "--compare takes run directories only: omit RUN and --weights"
                )
            others = names - {"compare", "page"}
            refuse(
                self,
                others,
                "cannot be combined with --compare, which allows only --page",
            )
            return
        refuse(self, ["page"], "needs --compare")
        if self.images:
            others = names & {"tta", "report", "output", "export", *UNUSED}
            others |= {"predictions", "robustness"}
            refuse(self, others, "applies only to scoring: omit it or --images")
        else:
            refuse(self, ["saliency"], "needs --images")
        if self.run is None or is_shipped(self.run):
            refuse(self, ["report"], "is for runs only: specify a run directory")
        self.check()


class Evaluation(NamedTuple):
    """A network and its scores on the test images."""

    subject: "Subject"
    preprocess: "Preprocess"
    loader: "Loader"
    all: "Scores"
    one_batch: "Scores"
    augmented: "Scores | None"
    note: str  # describes the test images; "" if they are the run's own


def main(options: EvaluateConfig) -> None:
    """Scores a network, prints the scores and writes the requested files."""
    from resnet_jax import files, waiting
    from resnet_jax.commands import compare, export, predict
    from resnet_jax.devices import platform
    from resnet_jax.report import predictions, robustness
    from resnet_jax.report.report import write_report
    from resnet_jax.training import metrics

    if options.compare:
        _say_moved("--compare", "compare RUNS")
        compare.main(compare.CompareConfig(options.compare, options.page))
        return
    platform.prepare(options.platform, options.devices)
    rows = _check_outputs(options)
    if options.images:
        _say_moved("--images", "predict RUN FILES")
        predict.predict(options, options.images, options.saliency)
        return
    if options.export is not None:
        _say_moved("--export", "export RUN DIR")
        files.check_writable(Path(options.export).parent, "folder", "--export")
    one = "--report" if options.report else "--export" if options.export else ""
    found = evaluate(options, one=one, tta=options.tta)
    subject, test = found.subject, found.loader.splits.test
    print(subject.title)
    print(metrics.class_table(found.all.best, test.class_names))
    print(metrics.balance_line(found.all.best))
    print(f"one batch: {metrics.summary_line(found.one_batch.sums)}")
    for line in found.all.lines:
        print(line)
    figures = {**found.all.figures, "one_batch": found.one_batch.figures}
    if found.augmented is not None:
        for line in [
            *found.augmented.lines,
            metrics.summary_line(found.augmented.sums),
        ]:
            print(f"test-time augmentation: {line}")
        figures["tta"] = found.augmented.figures
    scored = subject, found.preprocess, found.loader
    robust = robustness.measure(*scored) if options.robustness else None
    if robust is not None:
        print(robustness.text(robust))
        figures["robustness"] = robust
    if options.output is not None:
        what = {"scored": subject.title, "step": int(subject.state.step)}
        files.write_json(Path(options.output), {**what, **figures})
        log.info("scores: %s", options.output)
    if options.report:
        with waiting.clock("drawing the report"):
            page = write_report(Path(str(options.run)), *scored, robust)
        print(f"report: {page}")
    if options.export is not None:
        export.write(Path(options.export), found)
    if rows is not None:
        count = predictions.write_predictions(rows, *scored)
        print(f"predictions: {rows}, {count} images")
    note = f" ({found.note})" if found.note else ""
    print(f"{metrics.summary_line(found.all.sums)}{note}")


def _check_outputs(options: EvaluateConfig) -> Path | None:
    """Returns the file for predictions, if any.

    Raises:
      ConfigError: if a file or folder that an option names cannot be written.
    """
    from resnet_jax import files
    from resnet_jax.report import tables

    if options.output is not None:
        files.check_writable(Path(options.output).parent, "folder", "--output")
    if options.predictions is None:
        return None
    tables.check(Path(options.predictions), "--predictions")
    return Path(options.predictions)


def evaluate(
    options: SubjectConfig,
    *,
    one: str,
    tta: bool = False,
    check: Callable[["Subject"], None] = lambda subject: None,
) -> Evaluation:
    """Scores the network specified by `options`, using the same functions as training.

    Args:
      one: the option that requires a single network, or ""; see subject.load.
      tta: whether to score with test-time augmentation as well.
      check: a function that is called with the subject before scoring, and that can
        prevent scoring by raising an exception.
    """
    from resnet_jax import data, devices, training
    from resnet_jax.report import subject

    scored = subject.load(options, one=one)
    check(scored)
    cfg = scored.cfg
    splits = data.load_test(cfg.data)
    note = subject.check_data(scored, splits.test)
    if note:
        scored = scored._replace(title=f"{scored.title}, {note}")
    mesh = devices.make_mesh(options.devices, options.platform)
    loader = data.Loader(mesh, splits, cfg.data)
    preprocess = data.make_preprocess(cfg.augment, scored.image_shape)
    each = training.make_each(cfg.run.num_seeds, mesh)
    make: Any = partial(
        training.make_evaluate, scored.model, preprocess, loader, each=each
    )
    state = devices.replicate(mesh, scored.state)
    seeds = range(cfg.seed, cfg.seed + cfg.run.num_seeds)
    test, views = splits.test, training.flips_and_shifts
    return Evaluation(
        scored,
        preprocess,
        loader,
        training.score(make, state, test, seeds),
        training.score(make, state, test.take(slice(cfg.data.batch_size)), seeds),
        training.score(partial(make, views=views), state, test, seeds) if tta else None,
        note,
    )


def _say_moved(option: str, command: str) -> None:
    log.warning(
        "evaluate %s is deprecated and will be removed in the next release: "
        "use `resnet-jax %s`",
        option,
        command,
    )
