"""Classify image files: print the five most likely classes of each.

    resnet-jax predict cat.png                          with resnet20-cifar10
    resnet-jax predict runs/hresnet a.jpg b.png photographs/
    resnet-jax predict runs/hresnet a.jpg --saliency    also saves a Grad-CAM map
    resnet-jax predict runs/hresnet photographs/ --output p.csv
    resnet-jax predict --weights FILE --model resnet18 a.jpg

If only images are given, they are classified by resnet20-cifar10, which is included in
this package and was trained on the ten classes of CIFAR-10. For weights with 1,000
classes, ImageNet's class names are used.
"""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from resnet_jax.errors import ConfigError
from resnet_jax.fields import ranged, refuse
from resnet_jax.report.options import SubjectConfig
from resnet_jax.weights.published import SHIPPED, is_shipped

log = logging.getLogger(__name__)

UNUSED = ("batch_size",)  # SubjectConfig fields that do not apply to predictions
_NETWORK = SHIPPED[0]  # the network to use if no run is given


@dataclass(frozen=True)
class PredictConfig(SubjectConfig):
    """The images to classify and the output to write."""

    images: Positional[tuple[str, ...]] = ranged((), path="as typed")
    """Image files or folders that contain image files."""
    saliency: bool = False
    """For each image, save a Grad-CAM map of its most likely class to RUN/saliency."""
    output: str | None = ranged(None, path="as typed")
    """Write a row for each image to this file (.csv, .json, .jsonl or .parquet) instead
    of printing it."""
    top_k: int = ranged(5, at_least=1)
    """Number of classes to show for each image, starting with the most likely."""


def main(options: PredictConfig) -> None:
    """Prints the most likely classes of each image."""
    from resnet_jax.devices import platform
    from resnet_jax.report import tables

    refuse(
        options, UNUSED, "applies only to scoring: predict chooses its own batch size"
    )
    paths = options.images
    if options.run is not None and (options.weights is not None or _is_image(options)):
        paths = (options.run, *paths)
        options = dataclasses.replace(options, run=None)
        if options.weights is None:
            refuse(
                options,
                ("dataset", "data_dir"),
                f"does not apply to {_NETWORK}: omit it",
            )
            options = dataclasses.replace(options, weights=_NETWORK)
            log.info(
                "no run given: using %s, which recognizes the classes of CIFAR-10",
                _NETWORK,
            )
    if not paths:
        raise ConfigError("specify the image files: resnet-jax predict RUN a.jpg")
    output = None if options.output is None else Path(options.output)
    if output is not None:
        tables.check(output, "--output")
    platform.prepare(options.platform, options.devices)
    predict(options, paths, options.saliency, output, options.top_k)


def _is_image(options: PredictConfig) -> bool:
    """Returns whether the first path is an image or a folder of images, not a run."""
    from resnet_jax.data import folder
    from resnet_jax.run import directory

    path = Path(str(options.run))
    if not path.is_dir():
        return path.suffix.lower() in folder.SUFFIXES
    inside = {entry.name for entry in (*path.iterdir(), *path.glob("*/*"))}
    is_run = not inside.isdisjoint((*directory.FILES, "checkpoints"))
    return not is_run and any(folder.list_images(path))


def predict(
    options: SubjectConfig,
    paths: Sequence[str],
    saliency: bool,
    output: Path | None = None,
    top_k: int = 5,
) -> None:
    """Prints or writes the most likely classes of image files.

    If `saliency` is true, also saves Grad-CAM maps.
    """
    from resnet_jax.report import subject
    from resnet_jax.report.predict import predict_files

    one = subject.load(options, one="a prediction", is_prediction=True)
    run = options.run or "."
    home = Path("." if is_shipped(run) else run) / "saliency"
    predict_files(one, paths, home if saliency else None, output, top_k)
