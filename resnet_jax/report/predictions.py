"""Writes the predictions for all test images to a file."""

from pathlib import Path

import numpy as np

from resnet_jax.config import DataConfig
from resnet_jax.data import decoding, folder, shards, sources
from resnet_jax.data.augment import Preprocess
from resnet_jax.data.loader import Loader
from resnet_jax.errors import DataError
from resnet_jax.report import scores, tables
from resnet_jax.report.subject import Subject
from resnet_jax.training import evaluation, seeds

_MAX_CLASSES = 100  # maximum number of classes for which all probabilities are written
_ROWS = 1000  # number of rows to write at a time


def write_predictions(
    path: Path, subject: Subject, preprocess: Preprocess, loader: Loader
) -> int:
    """Writes a row for each test image to `path`, and returns the number of rows.

    The columns are:

    * index.
    * path, only for a folder of images.
    * label and class.
    * predicted, predicted_class and probability, which describe the prediction.
    * correct.
    * the probability of each class, if there are at most 100 classes.

    The probabilities are averaged over the seeds of a run, as in an ensemble.

    Raises:
      ConfigError: if the file cannot be written.
      DataError: if the folder changed while it was read.
    """
    test, cfg = loader.splits.test, subject.cfg
    class_names = test.class_names
    probabilities = _probabilities(subject, preprocess, loader)
    paths = _paths(cfg.data, len(test))
    columns: dict[str, type] = {"index": int}
    if paths is not None:
        columns["path"] = str
    columns |= {"label": int, "class": str, "predicted": int, "predicted_class": str}
    columns |= {"probability": float, "correct": bool}
    has_all = len(class_names) <= _MAX_CLASSES
    if has_all:
        columns |= {f"probability_{name}": float for name in class_names}
    with tables.writing(path, columns) as write:
        for start in range(0, len(test), _ROWS):
            rows: list[list[object]] = []
            for index in range(start, min(start + _ROWS, len(test))):
                own, label = probabilities[index], int(test.labels[index])
                predicted = int(own.argmax())
                rows.append(
                    [
                        *([index] if paths is None else [index, str(paths[index])]),
                        *(label, class_names[label]),
                        *(predicted, class_names[predicted]),
                        *(float(own[predicted]), predicted == label),
                        *(own.tolist() if has_all else []),
                    ]
                )
            write(rows)
    return len(test)


def _probabilities(
    subject: Subject, preprocess: Preprocess, loader: Loader
) -> np.ndarray:
    """Returns probabilities [N, C] of the test split, averaged over the seeds."""
    test, state, num_seeds = (
        loader.splits.test,
        subject.state,
        subject.cfg.run.num_seeds,
    )
    total = np.zeros((len(test), len(test.class_names)))
    for index in range(num_seeds):
        variables = state.variables
        if num_seeds > 1:
            variables = seeds.take(variables, index)
        logits = evaluation.predict(subject.model, preprocess, loader, variables, test)
        total += scores.softmax(logits)
    return total / num_seeds


def _paths(cfg: DataConfig, count: int) -> list[Path] | None:
    """Returns the paths of a folder's `count` readable test images.

    Returns None for data sets that do not consist of image files.
    """
    if cfg.dataset != "folder" or shards.is_shards(Path(str(cfg.data_dir))):
        return None
    names = None if cfg.class_names is None else Path(cfg.class_names)
    paths = folder.scan(Path(str(cfg.data_dir)), names).splits[1].paths
    if len(paths) != count:  # --skip-bad-images skipped some
        batches = decoding.read_batches(
            *(paths, 64),
            size=sources.image_shape(cfg)[0],
            crop_pct=cfg.kept,
            interpolation=cfg.interpolation,
        )
        paths = [path for batch in batches for path in batch.paths]
    if len(paths) != count:
        raise DataError(
            f"{cfg.data_dir} has {len(paths)} test images now, but {count} were "
            "scored: do not change the folder while the command runs"
        )
    return paths
