"""Finds and loads data sets by name; a new data set needs an entry in SOURCES."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnet_jax import fields
from resnet_jax.config import DataConfig
from resnet_jax.data import (
    cifar,
    cifar10_1,
    examples,
    fashion_mnist,
    folder,
    readers,
    resizing,
    shards,
    stream,
    tfds,
)
from resnet_jax.data.dataset import Dataset, Splits, hold_out, identify, subset
from resnet_jax.data.prepared import Prepared, not_rebuilt
from resnet_jax.errors import ConfigError, DataError

log = logging.getLogger(__name__)

Load = Callable[[], tuple[Dataset, Dataset]]  # train, test

_SIDE = 224  # default image_size for images of varying sizes


class Description(NamedTuple):
    """Data-set properties that affect the network, and a function to load the data."""

    num_classes: int
    image_shape: tuple[int, int, int]  # (H, W, C) of the network's input
    normalization: str  # the default; see augment.parse_normalization
    load: Load


class Source(NamedTuple):
    """A named data set."""

    image_shape: tuple[int, int, int]  # (H, W, C) if image_size is None
    # Returns the number of classes and a function to load the data.
    open: Callable[[DataConfig], tuple[int, Load]]
    normalization: str = "cifar10"


def describe(cfg: DataConfig) -> Description:
    """Returns the description of a data set without reading images.

    Raises:
      ConfigError: if the name is unknown, or a folder is used without data_dir.
      DataError: if data_dir does not have class folders.
    """
    source = _source(cfg)
    num_classes, load = source.open(cfg)
    return Description(num_classes, image_shape(cfg), source.normalization, load)


def image_shape(cfg: DataConfig) -> tuple[int, int, int]:
    """Returns the shape (H, W, C) in which a data set's images enter the network.

    Only a tfds: data set requires reading files; if it is not prepared, image_size is
    used. Only a tfds: data set or an unknown name can cause an error (see describe).
    """
    side = cfg.image_size
    try:
        height, width, channels = _source(cfg).image_shape
    except DataError:
        if side is None or not cfg.dataset.startswith(examples.PREFIX):
            raise
        height, width, channels = side, side, 3
    return side or height, side or width, cfg.in_channels or channels


def train_shape(cfg: DataConfig) -> tuple[int, int, int]:
    """Returns the shape (H, W, C) of a data set's training images."""
    height, width, channels = image_shape(cfg)
    return cfg.train_size or height, cfg.train_size or width, channels


def is_cropped(cfg: DataConfig) -> bool:
    """Returns whether image sizes differ and images are therefore resized when read.

    Image sizes are assumed to differ in a "tfds:" data set that has not been prepared.
    """
    if not cfg.dataset.startswith(examples.PREFIX):
        return cfg.dataset == "folder"
    try:
        return _describe_examples(cfg).side is None
    except DataError:
        return True


def load(cfg: DataConfig, described: Description | None = None) -> Splits:
    """Loads the training, validation and test splits of a data set.

    Args:
      described: the result of describe, if known, so that a folder is not listed again.

    Raises:
      ConfigError: if describe raises one, or if validation_split leaves a split empty.
      DataError: if the data cannot be fetched or are damaged.
    """
    train, test = (described or describe(cfg)).load()
    if not len(train):
        raise ConfigError(
            f"data set {cfg.dataset} has no training images and is for evaluation "
            f"only: score a run on it with evaluate.py RUN --dataset {cfg.dataset}"
        )
    train = subset(train, cfg.max_train_samples)
    test = subset(test, cfg.max_test_samples)
    return Splits(*hold_out(train, cfg.validation_split), test, identify(train, test))


def load_test(cfg: DataConfig) -> Splits:
    """Loads all images of the test split, but no training or validation images.

    This function raises the same errors as load, except for those about training data.
    """
    test = describe(fields.replace(cfg, rebuild_data=False)).load()[1]
    return Splits(test.take(slice(0)), test.take(slice(0)), test, {})


def load_dataset(
    name: str, data_dir: str | Path | None = None, **fields: Any
) -> tuple[Dataset, Dataset]:
    """Loads the splits (train, test) of a data set by name; see DataConfig.dataset.

    Args:
      data_dir: for "folder", the directory with train/CLASS/* and test/CLASS/*;
        otherwise a tensorflow-datasets directory, by default $TFDS_DATA_DIR or
        ~/tensorflow_datasets. CIFAR is fetched and prepared there if it is missing.
      fields: other fields of DataConfig, such as image_size or stream.

    Raises:
      ConfigError: if the name is unknown, if data_dir is required but missing, or if a
        field has no effect.
      DataError: if the data cannot be fetched or are damaged.
    """
    home = None if data_dir is None else str(data_dir)
    described = describe(cfg := DataConfig(dataset=name, data_dir=home, **fields))
    resizing.check(cfg, is_cropped=is_cropped(cfg))
    return described.load()


def _source(cfg: DataConfig) -> Source:
    if cfg.dataset.startswith(examples.PREFIX):
        found = _describe_examples(cfg)
        side, channels = found.side or _SIDE, found.channels
        normalization = "cifar10" if channels == 3 else ".5/.25"
        opening = partial(_open_examples, found)
        return Source((side, side, channels), opening, normalization)
    if cfg.dataset not in SOURCES:
        known = ", ".join(SOURCES)
        raise ConfigError(
            f"unknown data set {cfg.dataset!r}: use one of {known}, or tfds:NAME for "
            "one prepared by tensorflow-datasets"
        )
    return SOURCES[cfg.dataset]


def _describe_examples(cfg: DataConfig) -> examples.ImageSet:
    home = Path(cfg.data_dir or tfds.default_data_dir())
    return examples.describe(examples.find(cfg.dataset, home))


def _open_examples(found: examples.ImageSet, cfg: DataConfig) -> tuple[int, Load]:
    if cfg.rebuild_data:
        raise not_rebuilt(cfg.dataset)
    return len(found.class_names), partial(_load_examples, found, cfg)


def _load_examples(
    found: examples.ImageSet, cfg: DataConfig
) -> tuple[Dataset, Dataset]:
    how = {
        "size": cfg.image_size or _SIDE,
        "crop_pct": cfg.kept,
        "interpolation": cfg.interpolation,
    }
    parts = [examples.Reader(found, split, **how) for split in found.splits]
    num_bytes = int(np.prod(parts[0].image_shape)) * sum(found.num_examples)
    read: Callable[..., tuple[Any, np.ndarray]] = readers.from_examples
    if not (cfg.stream or stream.is_large(num_bytes)):
        read = examples.Reader.load
    where = found.directory, found.splits[1]
    log.info("%s: reading %s; runs are scored on %s", cfg.dataset, *where)
    train, test = (Dataset(*read(reader), found.class_names) for reader in parts)
    return train, test


def _prepared(how: Prepared, normalization: str = "cifar10") -> Source:
    def open_(cfg: DataConfig) -> tuple[int, Load]:
        return how.published.num_classes, partial(how.load, cfg)

    return Source(how.published.image_shape, open_, normalization)


def _open_folder(cfg: DataConfig) -> tuple[int, Load]:
    if cfg.data_dir is None:
        raise ConfigError("data set folder needs --data-dir with train/ and test/")
    if shards.is_shards(Path(cfg.data_dir)):
        prepared = shards.read(Path(cfg.data_dir))
        return len(prepared.class_names), partial(_load_shards, prepared, cfg)
    listing = folder.scan(
        Path(cfg.data_dir), None if cfg.class_names is None else Path(cfg.class_names)
    )
    return len(listing.class_names), partial(_load_folder, listing, cfg)


def _load_folder(listing: folder.Listing, cfg: DataConfig) -> tuple[Dataset, Dataset]:
    size = image_shape(cfg)[0]
    num_bytes = size * size * 3 * sum(len(part.paths) for part in listing.splits)
    read: Callable[..., tuple[Any, np.ndarray]] = readers.from_folder
    if not (cfg.stream or stream.is_large(num_bytes)):
        read = partial(folder.load, skip_bad=cfg.skip_bad_images)
    elif cfg.skip_bad_images:
        raise ConfigError(
            "skip_bad_images reads all images before training, but this data set is "
            "read during training: skip bad images with `resnet-jax prepare folder "
            "DIR OUT --skip-bad-images`"
        )
    how = {"crop_pct": cfg.kept, "interpolation": cfg.interpolation}
    train, test = (
        Dataset(*read(part, size=size, **how), listing.class_names)
        for part in listing.splits
    )
    return train, test


def _load_shards(listing: shards.Listing, cfg: DataConfig) -> tuple[Dataset, Dataset]:
    if cfg.class_names is not None:
        raise ConfigError("leave out class_names: shards contain the class names")
    side = image_shape(cfg)[0]
    how = {"size": side, "crop_pct": cfg.kept, "interpolation": cfg.interpolation}

    is_read = cfg.stream or stream.is_large(side * side * 3 * len(listing))

    def split(name: str) -> Dataset:
        labels = listing.labels(name)
        reader = shards.Reader(listing, name, **how)
        if not is_read:
            return Dataset(reader.load(), labels, listing.class_names)
        rows, shape = np.arange(len(labels)), (side, side, 3)
        kind = f" {listing.kind}"
        images = stream.Images(reader, rows, shape, is_cropped=True, kind=kind)
        return Dataset(images, labels, listing.class_names)

    return split("train"), split("test")


def _open_digits(cfg: DataConfig) -> tuple[int, Load]:
    if cfg.stream:
        raise ConfigError(
            "stream supports only folders and prepared data sets: digits fit in memory"
        )
    if cfg.rebuild_data:
        raise not_rebuilt(cfg.dataset)
    return 10, _load_digits


def _load_digits() -> tuple[Dataset, Dataset]:
    """Loads scikit-learn's 1,797 digits: 1,437 for training and 360 for testing."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    small = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    images = np.kron(small, np.ones((1, 4, 4), np.uint8))  # scaled to 32x32
    images = np.repeat(images[..., None], 3, axis=-1)
    labels = digits.target.astype(np.int32)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=360, stratify=labels, random_state=0
    )
    whole = Dataset(images, labels, tuple(map(str, digits.target_names)))
    return whole.take(np.sort(train)), whole.take(np.sort(test))


SOURCES: dict[str, Source] = {
    "cifar10": _prepared(Prepared(cifar.CIFAR10, cifar.fetch, tfds.write_cifar10)),
    "cifar100": _prepared(
        Prepared(cifar.CIFAR100, cifar.fetch_cifar100, tfds.write_cifar100)
    ),
    "digits": Source((32, 32, 3), _open_digits),
    "folder": Source((_SIDE, _SIDE, 3), _open_folder),
    "fashion_mnist": _prepared(
        Prepared(fashion_mnist.FASHION_MNIST, fashion_mnist.read),
        normalization=".286/.353",
    ),
    cifar10_1.NAME: Source(
        cifar10_1.IMAGE_SHAPE, lambda cfg: (10, partial(cifar10_1.load, cfg))
    ),
}
