"""CIFAR from its sources: verified arrays and a prepared tensorflow-datasets directory."""

import hashlib
import io
import json
import logging
import os
import struct
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pooch

from resnet_jax.errors import DataError

log = logging.getLogger(__name__)

# sha256 of the bytes of images uint8 [N, 32, 32, 3] and of labels uint8 [N], both in
# the order of the official files.
_SHA256 = {
    "train": (
        "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
        "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    ),
    "test": (
        "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
        "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
    ),
}
_NUM_EXAMPLES = {"train": 50_000, "test": 10_000}


class Arrays(NamedTuple):
    """Both parts of a CIFAR data set, in the order of the official files."""

    train: tuple[np.ndarray, np.ndarray]  # [N, 32, 32, 3] uint8, [N] int32
    test: tuple[np.ndarray, np.ndarray]
    class_names: tuple[str, ...]


def default_data_dir() -> Path:
    """$TFDS_DATA_DIR, else ~/tensorflow_datasets, as tensorflow-datasets has it."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def cache_dir() -> Path:
    """$RESNET_JAX_CACHE, else the user's cache folder for this package."""
    return Path(os.environ.get("RESNET_JAX_CACHE") or pooch.os_cache("resnet_jax"))


def load_arrays(name: str, data_dir: str | Path | None = None) -> Arrays:
    """The arrays of `name`, cifar10 or cifar100, from the first source that has them.

    Raises:
      DataError: no source can be reached, or the prepared one is damaged.
    """
    data_dir = default_data_dir() if data_dir is None else Path(data_dir).expanduser()
    prepared = _find_prepared(name, data_dir)
    if prepared is None:
        raise DataError(f"no {name} in {data_dir}")
    cached = _load_cache(name, prepared)
    if cached is not None:
        log.info("%s: %s, from the cache in %s", name, prepared, cache_dir())
        return cached
    log.info("%s: %s", name, prepared)
    arrays = _read_prepared(name, prepared)
    _save_cache(name, prepared, arrays)
    return arrays


def _find_prepared(name: str, data_dir: Path) -> Path | None:
    """The newest prepared version of `name`, the folder with its dataset_info.json."""
    infos = (data_dir / name).glob("*/dataset_info.json")
    found = [path.parent for path in infos if path.parent.name[0].isdigit()]
    return max(found, key=lambda path: path.name.split("."), default=None)


def _read_prepared(name: str, prepared: Path) -> Arrays:
    """Reads a directory that tensorflow-datasets prepared, without TensorFlow.

    Raises:
      DataError: it is damaged.
    """
    advice = f"remove {prepared}, or name another directory with --data-dir"
    try:
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(prepared)
        parts = {}
        for split in ("train", "test"):
            records = list(_read_split(builder, prepared, split))
            records.sort(key=lambda record: record[0])
            images = np.stack([image for _, image, _ in records])
            labels = np.array([label for _, _, label in records], np.int32)
            parts[split] = (images, labels)
        class_names = tuple(builder.info.features["label"].names)
    except Exception as error:  # tfds and its readers raise of every kind
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise DataError(f"{prepared} is damaged ({reason[:200]}): {advice}") from error
    arrays = Arrays(class_names=class_names, **parts)
    wrong = find_fault(name, arrays)
    if wrong:
        raise DataError(f"{prepared} is damaged ({wrong}): {advice}")
    return arrays


def _read_split(
    builder: Any, prepared: Path, split: str
) -> Iterator[tuple[str, np.ndarray, int]]:
    """(id, image, label) of each record of `split`, in any order."""
    info = builder.info
    if info.file_format.value == "tfrecord":
        decode = info.features.deserialize_example_np
        files = [prepared / shard for shard in info.splits[split].filenames]
        examples = (decode(record) for path in files for record in _tfrecords(path))
    else:
        source = builder.as_data_source(split)
        examples = (source[index] for index in range(len(source)))
    for example in examples:
        key = example["id"]
        key = key.decode() if isinstance(key, bytes) else str(key)
        yield key, example["image"], int(example["label"])


def _tfrecords(path: Path) -> Iterator[bytes]:
    """The records of a TFRECORD file: <u64 length><u32 crc><bytes><u32 crc> each."""
    with path.open("rb") as file:
        while header := file.read(12):
            (length,) = struct.unpack("<Q", header[:8])
            if length > 2**24:
                raise ValueError(f"{path.name} has a record of {length} bytes")
            record = file.read(length)
            if len(record) < length or len(file.read(4)) < 4:
                raise ValueError(f"{path.name} ends in the middle of a record")
            yield record


def find_fault(name: str, arrays: Arrays) -> str | None:
    """What is wrong with `arrays` as those of `name`; None where nothing is."""
    for split, (images, labels) in (("train", arrays.train), ("test", arrays.test)):
        count = _NUM_EXAMPLES[split]
        if images.shape != (count, 32, 32, 3) or images.dtype != np.uint8:
            return f"{split} has images {images.dtype} {list(images.shape)}"
        if labels.shape != (count,):
            return f"{split} has {len(labels)} labels for {count} images"
        if labels.min() < 0 or labels.max() >= len(arrays.class_names):
            return f"{split} has labels from {labels.min()} to {labels.max()}"
        if name == "cifar10":
            content = (images, labels.astype(np.uint8))
            for what, array, sha256 in zip(
                ("images", "labels"), content, _SHA256[split], strict=True
            ):
                if hashlib.sha256(np.ascontiguousarray(array)).hexdigest() != sha256:
                    return f"the {split} {what} are not the published ones by sha256"
    return None


def _fingerprint(prepared: Path) -> str:
    """Changes whenever a file of `prepared` does."""
    files = sorted(path for path in prepared.iterdir() if path.is_file())
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return json.dumps([str(prepared.resolve()), stats])


def _load_cache(name: str, prepared: Path) -> Arrays | None:
    """The arrays that were last read from `prepared`, if it has not changed since."""
    path = cache_dir() / f"{name}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            if file["fingerprint"].item() != _fingerprint(prepared):
                return None
            arrays = Arrays(
                train=(file["train_images"], file["train_labels"]),
                test=(file["test_images"], file["test_labels"]),
                class_names=tuple(file["class_names"].tolist()),
            )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        log.warning("%s is damaged and will be written afresh", path)
        return None
    return None if find_fault(name, arrays) else arrays


def _save_cache(name: str, prepared: Path, arrays: Arrays) -> None:
    """Keeps `arrays` for the next time; only warns where that cannot be done."""
    content = {
        "fingerprint": np.array(_fingerprint(prepared)),
        "class_names": np.array(arrays.class_names),
        "train_images": arrays.train[0],
        "train_labels": arrays.train[1],
        "test_images": arrays.test[0],
        "test_labels": arrays.test[1],
    }
    path = cache_dir() / f"{name}.npz"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            whole = Path(directory, path.name)
            with whole.open("wb") as file:
                np.savez(file, **content)
            os.replace(whole, path)
    except OSError as error:
        log.warning("the cache %s cannot be written (%s)", path, error.strerror)
