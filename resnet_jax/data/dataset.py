"""Data sets: labeled examples, their splits, and their order in training."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from resnet_jax.data.stream import Images
from resnet_jax.data.tfds import sha256
from resnet_jax.errors import ConfigError

UNREAD = "unread: "  # prefix of digests that do not cover the pixels


@dataclass(frozen=True)
class Dataset:
    """One split of a data set, in memory or with images that are read on demand."""

    images: np.ndarray | Images  # [N, H, W, C] uint8, or features [N, F] float32
    labels: np.ndarray  # [N] int32
    class_names: tuple[str, ...]
    images_sha256: str | None = None  # if known

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        """Returns one line: the number of examples, their shape, and the classes."""
        shape = "x".join(map(str, self.images.shape[1:]))
        more = ["..."] if len(self.class_names) > 3 else []
        names = ", ".join([*self.class_names[:3], *more])
        return (
            f"Dataset({len(self):,} examples of {shape}, {len(self.class_names)} "
            f"classes: {names})"
        )

    def take(self, indices: np.ndarray | slice) -> "Dataset":
        """Returns the examples at `indices`, in that order."""
        return Dataset(self.images[indices], self.labels[indices], self.class_names)


class Splits(NamedTuple):
    """The splits of a data set; validation may be empty."""

    train: Dataset
    validation: Dataset
    test: Dataset
    identity: dict[str, Any]  # class names and digests; a resumed run must match them

    def __repr__(self) -> str:
        """Returns one line: the sizes of the splits and the shape of the examples."""
        shape = "x".join(map(str, self.test.images.shape[1:]))
        return (
            f"Splits({len(self.train):,} training, {len(self.validation):,} validation "
            f"and {len(self.test):,} test examples of {shape}, "
            f"{len(self.test.class_names)} classes)"
        )

    @property
    def scored(self) -> dict[str, Dataset]:
        """Returns the splits to score after each epoch, keyed by metric name."""
        validation = {"val": self.validation} if len(self.validation) else {}
        return {**validation, "test": self.test}


def identify(train: Dataset, test: Dataset) -> dict[str, Any]:
    """Returns the class names and digests that identify the data, as JSON values."""
    return {
        "classes": list(train.class_names),
        "training data": digest(train),
        "test data": digest(test),
    }


def changed(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Returns the names of the entries that differ between two identities."""

    def are_alike(one: Any, other: Any) -> bool:
        if isinstance(one, str) and one.startswith(UNREAD) != other.startswith(UNREAD):
            return True  # only one of the digests covers the pixels
        return bool(one == other)

    return [name for name in now if not are_alike(then[name], now[name])]


def differing(then: Sequence[str], now: Sequence[str]) -> str:
    """Describes the first difference between two lists of class names."""
    pairs = enumerate(zip_longest(then, now))
    index, (old, new) = next(pair for pair in pairs if pair[1][0] != pair[1][1])
    counts = (
        ""
        if len(then) == len(now)
        else f", with {len(then)} classes then and {len(now)} now"
    )
    return f"class {index} was {old!a} and is now {new!a}{counts}"


def digest(dataset: Dataset, *, unread: bool = False) -> str:
    """Returns the sha256 of the images and labels, in order.

    If the images are not in memory or `unread` is set, the digest starts with UNREAD
    and covers the labels and the images' shape, but not the pixels.
    """
    labels = sha256(dataset.labels)
    if unread or not isinstance(dataset.images, np.ndarray):
        kind = getattr(dataset.images, "kind", "")
        return f"{UNREAD}{dataset.images.shape} {labels}{kind}"
    form = f"{dataset.images.dtype} {dataset.images.shape}"
    images = dataset.images_sha256 or sha256(dataset.images)
    return hashlib.sha256(f"{form} {images} {labels}".encode()).hexdigest()


def subset(dataset: Dataset, size: int | None) -> Dataset:
    """Returns a fixed subset of `size` examples.

    Returns all examples if `size` is None or larger than the data set.
    """
    if size is None or size >= len(dataset):
        return dataset
    order = np.random.default_rng([0, 2**32 - 2]).permutation(len(dataset))
    return dataset.take(np.sort(order[:size]))


def hold_out(train: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
    """Returns (train, validation), with `fraction` of the examples in validation.

    The validation examples are the last ones in a fixed permutation, so runs with
    different seeds hold out the same examples and can be compared.

    Raises:
      ConfigError: if `fraction` would leave either split empty.
    """
    if not fraction:
        return train, train.take(slice(0))
    held = round(len(train) * fraction)
    if not 0 < held < len(train):
        raise ConfigError(
            f"validation_split {fraction} holds out {held} of {len(train)} examples: "
            "choose a fraction that leaves some in both splits"
        )
    # The second seed value is never an epoch number, so no epoch uses this permutation.
    order = np.random.default_rng([0, 2**32 - 1]).permutation(len(train))
    cut = len(train) - held
    return train.take(np.sort(order[:cut])), train.take(np.sort(order[cut:]))


def batch_sizes(
    num_examples: int, batch_size: int, *, drop_last: bool = False
) -> list[int]:
    """Returns the sizes of an epoch's batches.

    A partial last batch is included unless `drop_last` is set.

    Raises:
      ConfigError: if the epoch would have no batches.
    """
    whole, rest = divmod(num_examples, batch_size)
    sizes = [batch_size] * whole + ([rest] if rest and not drop_last else [])
    if not sizes:
        raise ConfigError(
            f"batch_size {batch_size} with drop_last leaves no batches, because "
            f"there are only {num_examples} examples: choose a smaller batch_size"
        )
    return sizes


def epoch_order(num_examples: int, *, seed: int, epoch: int) -> np.ndarray:
    """Returns the permutation [num_examples] determined by `seed` and `epoch`."""
    return np.random.default_rng([seed, epoch]).permutation(num_examples)


def balanced_order(labels: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """Returns N indices into `labels` [N], drawn with equal class probabilities.

    The indices are drawn with replacement, as torch's WeightedRandomSampler does with
    weights of 1 / count. The result depends only on `labels`, `seed` and `epoch`.
    """
    rng = np.random.default_rng([seed, epoch])
    # Only integers are used, so rounding cannot differ between machines.
    counts = np.unique(labels, return_counts=True)[1]
    chosen = rng.integers(0, len(counts), len(labels))
    within = rng.integers(0, counts[chosen])
    firsts = np.cumsum(counts) - counts
    found: np.ndarray = np.argsort(labels, kind="stable")[firsts[chosen] + within]
    return found


def epoch_batches(
    num_examples: int,
    sizes: Sequence[int],
    epoch: int,
    *,
    seed: int,
    repeats: int = 1,
    balanced: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Returns each batch's example indices for an epoch with the given batch sizes.

    Args:
      repeats: number of consecutive occurrences of each index, as in torchvision's
        RASampler. If it is greater than 1, the last examples in the order are dropped.
      balanced: labels [num_examples] to pass to balanced_order; if None, the examples
        are shuffled instead.
    """
    if balanced is None:
        order = epoch_order(num_examples, seed=seed, epoch=epoch)
    else:
        order = balanced_order(balanced, seed=seed, epoch=epoch)
    if repeats > 1:
        order = np.repeat(order, repeats)
    return np.split(order[: sum(sizes)], np.cumsum(sizes)[:-1])
