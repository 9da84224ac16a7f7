"""Reads and writes prepared tensorflow-datasets directories without TensorFlow."""

import contextlib
import hashlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnet_jax import files, waiting
from resnet_jax.data.records import TFRecords
from resnet_jax.errors import ConfigError, DataError, first_line
from resnet_jax.paths import expand, has_home

log = logging.getLogger(__name__)


class Coarse(NamedTuple):
    """Coarse labels, which a data set may have in addition to its fine labels."""

    train: np.ndarray  # [N] int32
    test: np.ndarray
    class_names: tuple[str, ...]


class Arrays(NamedTuple):
    """Both splits of a data set, ordered by id."""

    train: tuple[np.ndarray, np.ndarray]  # [N, H, W, C] uint8, [N] int32
    test: tuple[np.ndarray, np.ndarray]
    class_names: tuple[str, ...]
    coarse: Coarse | None = None  # written to disk, but not read back


class Published(NamedTuple):
    """Published facts about a data set."""

    name: str  # in tensorflow-datasets
    image_shape: tuple[int, int, int]  # (H, W, C)
    num_classes: int
    num_examples: dict[str, int]  # in train and test
    # For each split, the sha256 of uint8 images [N, H, W, C] and of uint8 labels [N],
    # in the order of the official files; empty if no digests are published.
    sha256: dict[str, tuple[str, str]]

    def find_fault(self, arrays: Arrays) -> str | None:
        """Returns how `arrays` differs from this data set, or None if it matches."""
        for split, (images, labels) in (("train", arrays.train), ("test", arrays.test)):
            count = self.num_examples[split]
            if images.shape != (count, *self.image_shape) or images.dtype != np.uint8:
                return f"{split} images are {images.dtype} {list(images.shape)}"
            if labels.shape != (count,):
                return f"{split} has {len(labels)} labels for {count} images"
            if labels.min() < 0 or labels.max() >= self.num_classes:
                return f"{split} labels range from {labels.min()} to {labels.max()}"
            contents = {"images": images, "labels": labels.astype(np.uint8)}
            for what, expected in zip(
                contents, self.sha256.get(split, ()), strict=False
            ):
                if sha256(contents[what]) != expected:
                    return f"the {split} {what} do not have the published sha256"
        return None


def sha256(array: np.ndarray) -> str:
    """Returns the sha256 of the bytes of `array`."""
    return hashlib.sha256(np.ascontiguousarray(array).data.cast("B")).hexdigest()


def default_data_dir() -> Path:
    """Returns $TFDS_DATA_DIR or ~/tensorflow_datasets, as tensorflow-datasets does.

    Raises:
      ConfigError: if TFDS_DATA_DIR is not set and the user has no home directory.
    """
    named = os.environ.get("TFDS_DATA_DIR")
    if not named and not has_home():
        raise ConfigError("there is no home directory to store data in: set --data-dir")
    return Path(expand(named or "~/tensorflow_datasets"))


def find(name: str, data_dir: Path) -> Path | None:
    """Returns the directory of the newest prepared version of `name`, or None."""

    def version(directory: Path) -> list[int]:
        return [int(part) for part in directory.name.split(".")]

    infos = (data_dir / name).glob("*.*.*/dataset_info.json")
    found = [
        info.parent for info in infos if info.parent.name.replace(".", "").isdigit()
    ]
    return max(found, key=version, default=None)


def read(directory: Path) -> Arrays:
    """Reads the arrays in a prepared directory of array_record or TFRECORD files.

    Raises:
      DataError: if the directory cannot be read.
    """
    train, train_labels, names = read_split(directory, "train")
    test, test_labels, _ = read_split(directory, "test")
    return Arrays((train, train_labels), (test, test_labels), names)


def read_split(
    directory: Path, split: str
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Reads the images, int32 labels and class names of one split.

    Raises:
      DataError: if the split cannot be read.
    """
    import tensorflow_datasets as tfds

    with reading(directory):
        builder = tfds.builder_from_directory(directory)
        count = builder.info.splits[split].num_examples
        each = _records(builder, directory, split)
        each = waiting.over(each, count, f"decoding {split}")
        records = sorted(each, key=lambda record: record[0])
        images = np.stack([image for _, image, _ in records])
        labels = np.array([label for _, _, label in records], np.int32)
        return images, labels, tuple(builder.info.features["label"].names)


def damaged(directory: Path, reason: str) -> DataError:
    """Returns the error for a damaged prepared directory."""
    return DataError(
        f"{directory} is damaged ({reason}): prepare it again with --rebuild-data, "
        "or choose another directory with --data-dir"
    )


@contextlib.contextmanager
def reading(directory: Path) -> Iterator[None]:
    """Converts any exception into a DataError saying that `directory` is damaged."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # tfds and its readers raise many exception types
        raise damaged(directory, first_line(error)) from error


def class_names(directory: Path) -> tuple[str, ...]:
    """Returns the class names of a prepared directory.

    Raises:
      DataError: if the names cannot be read.
    """
    import tensorflow_datasets as tfds

    with reading(directory):
        builder = tfds.builder_from_directory(directory)
        return tuple(builder.info.features["label"].names)


def open_records(directory: Path, split: str, *, images: bool = True) -> Any:
    """Opens the records of `split` for reading by position, with or without images.

    Raises:
      DataError: if the records are not in array_record files.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(directory)
    if builder.info.file_format.value != "array_record":
        raise DataError(
            f"{directory} has {builder.info.file_format.value} files, but only "
            "array_record files can be streamed: train without --stream"
        )
    skip = None if images else {"image": tfds.decode.SkipDecoding()}
    return builder.as_data_source(split, decoders=skip)


def index(
    directory: Path, split: str, published: Published
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (positions [N], labels [N] int32) of the records in `split`, in id order.

    Raises:
      DataError: if the split cannot be read by position, or if its examples or labels
        do not match `published`.
    """
    with reading(directory):
        source = open_records(directory, split, images=False)
        each = waiting.over(source, len(source), f"reading labels of {split}")
        found = [(r.get("id", b""), int(r["label"])) for r in each]
    num_examples = published.num_examples[split]
    if len(found) != num_examples:
        raise damaged(
            directory, f"{split} has {len(found)} records, not {num_examples}"
        )
    positions = np.array(sorted(range(len(found)), key=lambda i: found[i][0]))
    labels = np.array([found[i][1] for i in positions], np.int32)
    if labels.min() < 0 or labels.max() >= published.num_classes:
        reason = f"{split} labels range from {labels.min()} to {labels.max()}"
        raise damaged(directory, reason)
    return positions, labels


def _records(
    builder: Any, directory: Path, split: str
) -> Iterator[tuple[str, np.ndarray, int]]:
    """Yields (id, image, label) for each record of `split`, in no particular order."""
    info = builder.info
    if info.file_format.value == "tfrecord":
        decode = info.features.deserialize_example_np
        paths = [directory / name for name in info.splits[split].filenames]
        examples = (decode(record) for record in TFRecords(paths))
    else:
        source = builder.as_data_source(split)
        examples = (source[index] for index in range(len(source)))
    for example in examples:
        key = example.get("id", "")  # without ids, records keep their order
        key = key.decode() if isinstance(key, bytes) else str(key)
        yield key, example["image"], int(example["label"])


def write_cifar10(arrays: Arrays, data_dir: Path, old: Path | None = None) -> Path:
    """Writes data_dir/cifar10/3.0.2 as tensorflow-datasets would, and returns its path.

    `old`, if given, is moved out of the way first. If another process finished first,
    its copy is kept.

    Raises:
      OSError: if data_dir cannot be written.
    """
    return _write("Cifar10", arrays, data_dir, old)


def write_cifar100(arrays: Arrays, data_dir: Path, old: Path | None = None) -> Path:
    """Writes data_dir/cifar100/3.0.2 and returns its path; see write_cifar10.

    Missing coarse labels are written as -1, which means unknown.

    Raises:
      OSError: if data_dir cannot be written.
    """
    return _write("Cifar100", arrays, data_dir, old)


def _write(kind: str, arrays: Arrays, data_dir: Path, old: Path | None) -> Path:
    import tensorflow_datasets as tfds

    # The original builder needs TensorFlow to download, extract and encode data. Its
    # schema and writer, which define the directory's format, do not need TensorFlow.
    base = getattr(tfds.image_classification, kind)
    name = base.name

    def split_generators(builder: Any, dl_manager: Any) -> dict[str, Any]:
        builder.info.features["label"].names = list(arrays.class_names)
        if arrays.coarse is not None:
            names = list(arrays.coarse.class_names)
            builder.info.features["coarse_label"].names = names
        return {split: _examples(arrays, split, name) for split in ("train", "test")}

    with tfds.core.registered.skip_registration():
        made = type(kind, (base,), {"_split_generators": split_generators})
    data_dir.mkdir(parents=True, exist_ok=True)
    with files.scratch(data_dir) as scratch:
        builder = made(data_dir=scratch, file_format="array_record")
        if not sys.stderr.isatty():
            tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):  # tfds prints the scratch path
            builder.download_and_prepare()
        written = Path(builder.data_dir)
        directory = data_dir / written.relative_to(scratch)
        directory.parent.mkdir(exist_ok=True)
        if old is None and find(name, data_dir) != directory:
            old = directory  # an incomplete copy
        if old is not None and old.exists():
            old.rename(Path(scratch, "old"))
        try:
            written.rename(directory)
        except OSError:
            if find(name, data_dir) != directory:
                raise
    return directory


def _examples(
    arrays: Arrays, split: str, name: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (key, example) for each image, as the builder `name` does."""
    from PIL import Image

    for index, (image, label) in enumerate(zip(*getattr(arrays, split), strict=True)):
        key = f"{split}_{index:05d}"
        example = {"id": key, "image": Image.fromarray(image), "label": int(label)}
        if name == "cifar100":
            known = None if arrays.coarse is None else getattr(arrays.coarse, split)
            example["coarse_label"] = -1 if known is None else int(known[index])
        yield key, example
