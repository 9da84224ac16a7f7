"""Caches the arrays of prepared data sets in the user's cache folder."""

import hashlib
import json
import logging
from pathlib import Path

import numpy as np

from resnet_jax import files
from resnet_jax.data.tfds import Arrays
from resnet_jax.files import cache_dir, make_private

log = logging.getLogger(__name__)

_SPLITS = "train", "test"


def _fingerprint(directory: Path) -> str:
    """Returns a key that changes whenever a file in `directory` changes."""
    paths = sorted(path for path in directory.iterdir() if path.is_file())
    stats = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths
    ]
    return json.dumps([str(directory.resolve()), stats])


def load(name: str, directory: Path) -> Arrays | None:
    """Returns the cached arrays of `directory`, or None if no current cache exists."""
    parts = [f"{split}_{kind}" for split in _SPLITS for kind in ("images", "labels")]
    found = _load(f"{name}.npz", directory, (*parts, "class_names"))
    if found is None:
        return None
    train_images, train_labels, test_images, test_labels, names = found
    return Arrays(
        (train_images, train_labels), (test_images, test_labels), tuple(names.tolist())
    )


def save(name: str, directory: Path, arrays: Arrays) -> None:
    """Caches `arrays`, which were read from `directory`, or warns if this fails."""
    content = {
        "class_names": np.array(arrays.class_names),
        "train_images": arrays.train[0],
        "train_labels": arrays.train[1],
        "test_images": arrays.test[0],
        "test_labels": arrays.test[1],
    }
    _save(f"{name}.npz", directory, content)


def load_labels(directory: Path, split: str) -> np.ndarray | None:
    """Returns the labels cached by save_labels, or None if no current cache exists."""
    found = _load(_labels_name(directory, split), directory, ("labels",))
    return None if found is None else found[0]


def save_labels(directory: Path, split: str, labels: np.ndarray) -> None:
    """Caches the labels of `split`, or warns if this fails."""
    _save(_labels_name(directory, split), directory, {"labels": labels})


def _labels_name(directory: Path, split: str) -> str:
    place = hashlib.sha256(str(directory.resolve()).encode(errors="surrogateescape"))
    return f"labels-{split}-{place.hexdigest()[:16]}.npz"


def _load(
    file_name: str, directory: Path, names: tuple[str, ...]
) -> list[np.ndarray] | None:
    try:
        path = cache_dir() / file_name
    except FileNotFoundError:  # no home directory, which has already been reported
        return None
    try:
        # The file is opened here because np.load would not close a damaged file.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            if file["fingerprint"].item() != _fingerprint(directory):
                return None
            return [file[name] for name in names]
    except FileNotFoundError:
        return None
    except Exception as error:  # NumPy and zipfile raise many exception types
        log.warning("the cache %s is damaged (%r) and will be rebuilt", path, error)
        return None


def _save(file_name: str, directory: Path, content: dict[str, np.ndarray]) -> None:
    try:
        path = cache_dir() / file_name
    except FileNotFoundError:  # no home directory, which has already been reported
        return
    content = {"fingerprint": np.array(_fingerprint(directory)), **content}
    try:
        make_private(path.parent)
        with files.scratch(path.parent) as scratch:
            whole = Path(scratch, path.name)
            np.savez(whole, **content)  # type: ignore[arg-type]
            whole.replace(path)
    except OSError as error:
        log.warning("the cache %s cannot be written (%s)", path, error.strerror)
