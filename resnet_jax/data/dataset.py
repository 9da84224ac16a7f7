"""Named data sets as arrays, and the order and batches in which they are seen."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnet_jax.data import cifar as cifar10
from resnet_jax.data import folder, stream
from resnet_jax.data import tfds as prepared
from resnet_jax.errors import ConfigError

FOLDER_SIZE = 224  # of a folder's pictures, if nothing else is said
SIZE = 32  # of all others'
UNREAD = "unread: "  # begins the digest of images that are not in memory
NUM_CLASSES = {**cifar10.NUM_CLASSES, "digits": 10}


@dataclass(frozen=True)
class Dataset:
    """One part of a data set, in memory, or with images that are read when needed."""

    images: np.ndarray | stream.Pictures  # [N, H, W, 3] uint8; or features [N, F]
    labels: np.ndarray  # [N] int32
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray | slice) -> "Dataset":
        """The examples at `indices`, in that order."""
        return Dataset(self.images[indices], self.labels[indices], self.class_names)


class Description(NamedTuple):
    """What a network must know of a data set."""

    num_classes: int
    image_shape: tuple[int, int, int]  # (H, W, C), as the network sees it


def describe(
    name: str, data_dir: str | Path | None = None, *, image_size: int | None = None
) -> Description:
    """The description of data set `name`, resized to `image_size`; loads nothing.

    Raises:
      ConfigError: an unknown name, or a folder without data_dir.
      DataError: data_dir has no folder of classes.
    """
    if name == "folder":
        num_classes = len(folder.class_names(_folder(data_dir)))
    elif name in NUM_CLASSES:
        num_classes = NUM_CLASSES[name]
    else:
        raise _unknown(name)
    return Description(num_classes, image_shape(name, image_size))


def image_shape(name: str, image_size: int | None = None) -> tuple[int, int, int]:
    """(H, W, C) of data set `name` as the network sees it, resized to `image_size`."""
    side = image_size or (FOLDER_SIZE if name == "folder" else SIZE)
    return side, side, 3


def load_dataset(
    name: str,
    data_dir: str | Path | None = None,
    *,
    image_size: int | None = None,
    crop_pct: float = 0.875,
    skip_bad_images: bool = False,
    rebuild: bool = False,
    streamed: bool = False,
) -> tuple[Dataset, Dataset]:
    """(train, test) of `name`: cifar10, cifar100, digits or folder.

    Args:
      data_dir: of folder, the one with train/CLASS/* and test/CLASS/*; else a
        tensorflow-datasets directory, None for $TFDS_DATA_DIR, else
        ~/tensorflow_datasets. CIFAR-10 is fetched and prepared there if it is missing.
      image_size, crop_pct, skip_bad_images: of folder, see folder.load; the pictures of
        the others have one size, and are resized on the device.
      rebuild: fetch CIFAR-10 and prepare it afresh, in the place of what is there.
      streamed: leave the images in their files until they are needed, as is done
        where they would take over half of the machine's memory.

    Raises:
      ConfigError: an unknown name, or a folder without data_dir.
      DataError: the data cannot be had, or are not what they should be.
    """
    if rebuild and name != "cifar10":
        raise ConfigError(f"rebuild_data is for cifar10: {name} is not prepared here")
    if name == "folder":
        root = _folder(data_dir)
        sizes = {"size": image_size or FOLDER_SIZE, "crop_pct": crop_pct}
        return _load_folder(root, sizes, streamed, skip_bad_images)
    if name == "digits":
        if streamed:
            raise ConfigError("stream is of folder, cifar10 and cifar100: digits fit")
        return _load_digits()
    if name in NUM_CLASSES:
        if streamed:
            directory = cifar10.prepare(name, data_dir, rebuild=rebuild)
            return _stream_cifar(name, directory)
        splits = cifar10.load_arrays(name, data_dir, rebuild=rebuild)
        train, test = (
            Dataset(images, labels, splits.class_names)
            for images, labels in (splits.train, splits.test)
        )
        return train, test
    raise _unknown(name)


def _unknown(name: str) -> ConfigError:
    names = ", ".join([*NUM_CLASSES, "folder"])
    return ConfigError(f"no data set {name!r}: one of {names}")


def _folder(data_dir: str | Path | None) -> Path:
    if data_dir is None:
        raise ConfigError("data set folder needs --data-dir, with train/ and test/")
    return Path(data_dir).expanduser()


def _load_folder(
    root: Path, sizes: dict[str, Any], streamed: bool, skip_bad: bool
) -> tuple[Dataset, Dataset]:
    names = folder.class_names(root)
    both = ("train", "test")
    parts = [stream.from_folder(root, split, **sizes) for split in both]
    total = sum(pictures.nbytes for pictures, _ in parts)
    if streamed or stream.is_large(total):
        if skip_bad:
            raise ConfigError(
                "skip_bad_images reads all pictures before training, which stream "
                "does not: choose one"
            )
        train, test = (Dataset(*part, names) for part in parts)
        return train, test
    train, test = (
        Dataset(*folder.load(root, split, skip_bad=skip_bad, **sizes), names)
        for split in both
    )
    return train, test


def _stream_cifar(name: str, directory: Path) -> tuple[Dataset, Dataset]:
    names = prepared.class_names(directory)
    train, test = (
        Dataset(
            *stream.from_records(
                directory,
                split,
                num_examples=cifar10.NUM_EXAMPLES[split],
                num_classes=NUM_CLASSES[name],
            ),
            names,
        )
        for split in ("train", "test")
    )
    return train, test


def _load_digits() -> tuple[Dataset, Dataset]:
    """scikit-learn's 1,797 digits, 8x8 scaled to 32x32x3; 1,437 train, 360 test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    small = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    images = np.kron(small, np.ones((1, 4, 4), np.uint8))
    images = np.repeat(images[..., None], 3, axis=-1)
    labels = digits.target.astype(np.int32)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=360, stratify=labels, random_state=0
    )
    whole = Dataset(images, labels, tuple(map(str, digits.target_names)))
    return whole.take(np.sort(train)), whole.take(np.sort(test))


def digest(dataset: Dataset) -> str:
    """The sha256 of its pictures and labels, in their order.

    Of images that are not in memory it takes only how many they are, and says so.
    """
    if not isinstance(dataset.images, np.ndarray):
        labels = hashlib.sha256(dataset.labels.tobytes()).hexdigest()
        return f"{UNREAD}{dataset.images.shape} {labels}"
    found = hashlib.sha256()
    for array in (dataset.images, dataset.labels):
        found.update(f"{array.dtype} {array.shape} ".encode())
        found.update(np.ascontiguousarray(array).data.cast("B"))
    return found.hexdigest()


def subset(dataset: Dataset, size: int | None) -> Dataset:
    """`size` examples of `dataset`, the same each time; all, where None or too many."""
    if size is None or size >= len(dataset):
        return dataset
    order = np.random.default_rng([0, 2**32 - 2]).permutation(len(dataset))
    return dataset.take(np.sort(order[:size]))


def hold_out(train: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
    """(train, validation): the last part of a fixed permutation is held out.

    So runs of all seeds are compared on the same pictures, and none trains on them.

    Raises:
      ConfigError: `fraction` leaves no example in one of the parts.
    """
    if not fraction:
        return train, train.take(slice(0))
    held = round(len(train) * fraction)
    if not 0 < held < len(train):
        raise ConfigError(
            f"validation_split {fraction} holds out {held} of {len(train)} examples: "
            "choose a fraction that leaves some on both sides"
        )
    # The second word is no epoch's: no order of training is this permutation.
    order = np.random.default_rng([0, 2**32 - 1]).permutation(len(train))
    cut = len(train) - held
    return train.take(np.sort(order[:cut])), train.take(np.sort(order[cut:]))


def batch_sizes(
    num_examples: int, batch_size: int, *, drop_last: bool = False
) -> list[int]:
    """The sizes of an epoch's batches; a last partial one is among them unless dropped.

    Raises:
      ConfigError: there is no batch.
    """
    whole, rest = divmod(num_examples, batch_size)
    sizes = [batch_size] * whole + ([rest] if rest and not drop_last else [])
    if not sizes:
        raise ConfigError(
            f"batch_size {batch_size} with drop_last leaves no batch of {num_examples} "
            "examples: choose a smaller one"
        )
    return sizes


def epoch_order(num_examples: int, *, seed: int, epoch: int) -> np.ndarray:
    """The permutation [num_examples] of epoch `epoch`: a function of (seed, epoch)."""
    return np.random.default_rng([seed, epoch]).permutation(num_examples)


def epoch_batches(
    num_examples: int, sizes: Sequence[int], *, seed: int, epoch: int
) -> list[np.ndarray]:
    """The indices of the shuffled batches, of these sizes, of an epoch."""
    order = epoch_order(num_examples, seed=seed, epoch=epoch)
    return np.split(order[: sum(sizes)], np.cumsum(sizes)[:-1])


def train_batches(
    dataset: Dataset, sizes: Sequence[int], *, seed: int, epoch: int
) -> Iterator[dict[str, np.ndarray]]:
    """The batches of epoch_batches, with their images and labels, on the host."""
    for chosen in epoch_batches(len(dataset), sizes, seed=seed, epoch=epoch):
        batch = dataset.take(chosen)
        yield {"images": np.asarray(batch.images), "labels": batch.labels}


def eval_batches(dataset: Dataset, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Every example once, in order; the last batch is padded, as its mask [B] says."""
    batch_size = max(min(batch_size, len(dataset)), 1)
    for start in range(0, len(dataset), batch_size):
        images = np.asarray(dataset.images[start : start + batch_size])
        labels = dataset.labels[start : start + batch_size]
        missing = batch_size - len(labels)
        yield {
            "images": np.pad(images, [(0, missing)] + [(0, 0)] * (images.ndim - 1)),
            "labels": np.pad(labels, (0, missing)),
            "mask": np.pad(np.ones(len(labels), np.float32), (0, missing)),
        }
