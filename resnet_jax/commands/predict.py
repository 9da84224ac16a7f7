"""Classify files of images: the five most likely classes of each.

    resnet-jax predict runs/hresnet a.jpg b.png photographs/
    resnet-jax predict runs/hresnet a.jpg --saliency    and where they come from
    resnet-jax predict --weights FILE --model resnet18 a.jpg

Weights with 1,000 classes are taken for ImageNet's, whose names are known.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from resnet_jax.errors import ConfigError
from resnet_jax.fields import ranged, refuse
from resnet_jax.report.options import SubjectConfig

UNUSED = ("batch_size",)  # fields of SubjectConfig


@dataclass(frozen=True)
class PredictConfig(SubjectConfig):
    """Classify files of images."""

    images: Positional[tuple[str, ...]] = ranged((), path="as typed")
    """The files, or folders of them."""
    saliency: bool = False
    """Save where each class comes from (Grad-CAM) in RUN/saliency."""


def main(options: PredictConfig) -> None:
    """Prints the most likely classes of each image."""
    from resnet_jax.devices import platform

    refuse(options, UNUSED, "is of scores: files are taken one by one")
    paths = options.images
    if options.weights is not None and options.run is not None:  # all are images
        paths = (options.run, *paths)
        options = dataclasses.replace(options, run=None)
    if not paths:
        raise ConfigError("name files of images: resnet-jax predict RUN a.jpg")
    platform.prepare(options.platform, options.devices)
    predict(options, paths, options.saliency)


def predict(options: SubjectConfig, paths: Sequence[str], saliency: bool) -> None:
    """Prints the classes of the files; with `saliency`, saves where they come from."""
    from resnet_jax.report import subject
    from resnet_jax.report.predict import predict_files

    one = subject.load(options, one="--images", is_prediction=True)
    home = Path(options.run or ".") / "saliency"
    predict_files(one, paths, home if saliency else None)
