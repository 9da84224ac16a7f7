"""CIFAR-10.1: 2,000 new test images of CIFAR-10's classes, for evaluation only.

The images were published by Recht et al. (2018) in "Do CIFAR-10 Classifiers Generalize
to CIFAR-10?". Networks trained on CIFAR-10 are several percentage points less accurate
on these images than on CIFAR-10's own test split.
"""

import logging
from pathlib import Path

import numpy as np

from resnet_jax.config import DataConfig
from resnet_jax.data import tfds
from resnet_jax.data.archives import CLASS_NAMES
from resnet_jax.data.dataset import Dataset
from resnet_jax.errors import ConfigError, DataError

log = logging.getLogger(__name__)

NAME = "cifar10_1"  # in tensorflow-datasets
IMAGE_SHAPE = (32, 32, 3)
VERSIONS = ("v6", "v4")  # data set versions, preferred first; v6 has balanced classes
# tensorflow-datasets stores only numbers as class names.
_NAMES = (CLASS_NAMES, tuple(map(str, range(len(CLASS_NAMES)))))


def load(cfg: DataConfig) -> tuple[Dataset, Dataset]:
    """Returns an empty training split and the test split.

    The test split is taken from v6 if that version is prepared, otherwise from v4.

    Raises:
      ConfigError: if `cfg` asks to stream or rebuild the data set.
      DataError: if the data set is not prepared or is damaged.
    """
    if cfg.stream or cfg.rebuild_data:
        what = "stream" if cfg.stream else "rebuild_data"
        raise ConfigError(
            f"{what} does not apply to {NAME}, which is small and can be prepared "
            "only by tensorflow-datasets"
        )
    home = Path(cfg.data_dir or tfds.default_data_dir())
    found = [tfds.find(f"{NAME}/{version}", home) for version in VERSIONS]
    directory = next((path for path in found if path is not None), None)
    if directory is None:
        raise DataError(
            f"{NAME} is not prepared in {home}: prepare {NAME}/v6 there with "
            "tensorflow-datasets, or use --data-dir to specify the folder that "
            "contains it"
        )
    log.info("%s: reading %s", NAME, directory)
    images, labels, names = tfds.read_split(directory, "test")
    shape = images.shape[1:]
    if images.dtype != np.uint8 or shape != IMAGE_SHAPE or names not in _NAMES:
        raise DataError(
            f"{directory} is not {NAME}: it has {images.dtype} images of shape "
            f"{list(shape)} in {len(names)} classes; prepare it again"
        )
    test = Dataset(images, labels, CLASS_NAMES)
    return test.take(slice(0)), test
