"""The decoded arrays of a prepared directory, kept in the user's cache folder."""

import json
import logging
from pathlib import Path

import numpy as np

from resnet_jax import files
from resnet_jax.data.tfds import Arrays
from resnet_jax.files import cache_dir, make_private

log = logging.getLogger(__name__)


def _fingerprint(directory: Path) -> str:
    """Changes whenever a file of `directory` does."""
    paths = sorted(path for path in directory.iterdir() if path.is_file())
    stats = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths
    ]
    return json.dumps([str(directory.resolve()), stats])


def load(name: str, directory: Path) -> Arrays | None:
    """The arrays that were last read from `directory`, if it has not changed since."""
    try:
        path = cache_dir() / f"{name}.npz"
    except FileNotFoundError:  # no home, which was said
        return None
    try:
        # Opened here: np.load would leave a damaged file open.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            if file["fingerprint"].item() != _fingerprint(directory):
                return None
            return Arrays(
                train=(file["train_images"], file["train_labels"]),
                test=(file["test_images"], file["test_labels"]),
                class_names=tuple(file["class_names"].tolist()),
            )
    except FileNotFoundError:
        return None
    except Exception as error:  # NumPy and zipfile raise of every kind
        log.warning("the cache %s is damaged (%r) and made afresh", path, error)
        return None


def save(name: str, directory: Path, arrays: Arrays) -> None:
    """Keeps `arrays`, read from `directory`; only warns where that cannot be done."""
    content = {
        "fingerprint": np.array(_fingerprint(directory)),
        "class_names": np.array(arrays.class_names),
        "train_images": arrays.train[0],
        "train_labels": arrays.train[1],
        "test_images": arrays.test[0],
        "test_labels": arrays.test[1],
    }
    try:
        path = cache_dir() / f"{name}.npz"
    except FileNotFoundError:  # no home, which was said
        return
    try:
        make_private(path.parent)
        with files.scratch(path.parent) as scratch:
            whole = Path(scratch, path.name)
            np.savez(whole, **content)  # type: ignore[arg-type]
            whole.replace(path)
    except OSError as error:
        log.warning("the cache %s cannot be written (%s)", path, error.strerror)
