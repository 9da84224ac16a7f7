"""What a network makes of files of pictures."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from resnet_jax import data, files
from resnet_jax.data import folder
from resnet_jax.data.augment import make_augment
from resnet_jax.errors import DataError
from resnet_jax.report import figures, saliency, scores
from resnet_jax.report.subject import Subject
from resnet_jax.training import evaluation

TOP = 5


def predict_files(
    subject: Subject, paths: Sequence[str], saliency_dir: Path | None = None
) -> None:
    """Prints the most likely classes of each picture with their probabilities.

    A picture is brought to the data set's size as a folder's are, and from there goes
    the way of the data's own.

    Args:
      saliency_dir: where the Grad-CAM of each picture is saved, as NAME.png.

    Raises:
      DataError: some cannot be read; the others are done before.
    """
    cfg, class_names = subject.cfg, subject.class_names
    if class_names is None:  # weights that do not say: the data set does
        loaded = data.load_dataset(cfg.dataset, cfg.data_dir, **cfg.loading)
        class_names = loaded[1].class_names
    is_folder = cfg.dataset == "folder"
    size = data.image_shape(cfg.dataset, cfg.image_size if is_folder else None)[0]
    crop_pct = cfg.crop_pct if is_folder else 1.0
    prepare = make_augment(num_classes=len(class_names), **cfg.preprocessing)
    if saliency_dir is not None:
        files.check_writable(saliency_dir, "folder", "RUN")
    read, bad = [], []
    for path in paths:
        try:
            picture = folder.read_picture(Path(path), size=size, crop_pct=crop_pct)
            read.append((path, picture))
        except Exception as error:  # Pillow's readers raise of every kind
            reason = (str(error).strip() or repr(error)).splitlines()[0][:200]
            bad.append(f"{path} ({reason})")
    for index, (path, picture) in enumerate(read):
        one = data.Dataset(picture[None], np.zeros(1, np.int32), tuple(class_names))
        logits = evaluation.predict(
            subject.model, prepare, subject.state.variables, _batches, one
        )
        probabilities = scores.softmax(logits)[0]
        print(path)
        for label in np.argsort(-probabilities, kind="stable")[:TOP]:
            print(f"  {100 * probabilities[label]:6.2f} %  {class_names[label]}")
        if saliency_dir is not None:
            label = int(probabilities.argmax())
            inputs, _ = prepare(jax.random.key(0), one.images, one.labels)
            heat = saliency.grad_cam(
                subject.model, subject.state.variables, inputs, np.array([label])
            )
            target = saliency_dir / f"{index}-{Path(path).stem}.png"
            title = f"{class_names[label]}, {100 * probabilities[label]:.1f} %"
            figures.plot_overlay(picture, np.asarray(heat[0]), title, target)
            print(f"  {target}")
    if bad:
        raise DataError(f"{len(bad)} of {len(paths)} cannot be read: {', '.join(bad)}")


def _batches(dataset: data.Dataset) -> list[dict[str, np.ndarray]]:
    return list(data.eval_batches(dataset, 1))
