"""Examples with labels, their splits, and the order in which training sees them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from resnet_jax.data.stream import Images
from resnet_jax.data.tfds import sha256
from resnet_jax.errors import ConfigError

UNREAD = "unread: "  # begins the digest of images that are not in memory


@dataclass(frozen=True)
class Dataset:
    """One split of a data set, in memory, or with images that are read when needed."""

    images: np.ndarray | Images  # [N, H, W, C] uint8; or features [N, F] float32
    labels: np.ndarray  # [N] int32
    class_names: tuple[str, ...]
    images_sha256: str | None = None  # if it is known

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        """Returns one line: how many examples, their shape, and the classes."""
        shape = "x".join(map(str, self.images.shape[1:]))
        more = ["..."] if len(self.class_names) > 3 else []
        names = ", ".join([*self.class_names[:3], *more])
        return (
            f"Dataset({len(self):,} examples of {shape}, {len(self.class_names)} "
            f"classes: {names})"
        )

    def take(self, indices: np.ndarray | slice) -> "Dataset":
        """The examples at `indices`, in that order."""
        return Dataset(self.images[indices], self.labels[indices], self.class_names)


class Splits(NamedTuple):
    """The splits of a data set; validation may be empty."""

    train: Dataset
    validation: Dataset
    test: Dataset
    identity: dict[str, Any]  # what a resumed run must match: class names and digests

    def __repr__(self) -> str:
        """Returns one line: how many examples each split has, and their shape."""
        shape = "x".join(map(str, self.test.images.shape[1:]))
        return (
            f"Splits({len(self.train):,} training, {len(self.validation):,} validation "
            f"and {len(self.test):,} test examples of {shape}, "
            f"{len(self.test.class_names)} classes)"
        )

    @property
    def scored(self) -> dict[str, Dataset]:
        """The splits that are scored after each epoch, by their names in metrics."""
        validation = {"val": self.validation} if len(self.validation) else {}
        return {**validation, "test": self.test}


def identify(train: Dataset, test: Dataset) -> dict[str, Any]:
    """What tells these data from others, for JSON."""
    return {
        "classes": list(train.class_names),
        "training data": digest(train),
        "test data": digest(test),
    }


def changed(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What of two identities is not that of the same data."""

    def are_alike(one: Any, other: Any) -> bool:
        if isinstance(one, str) and one.startswith(UNREAD) != other.startswith(UNREAD):
            return True  # one is of pixels, the other is not
        return bool(one == other)

    return [name for name in now if not are_alike(then[name], now[name])]


def differing(then: Sequence[str], now: Sequence[str]) -> str:
    """Where two lists of class names differ, to be told."""
    pairs = enumerate(zip_longest(then, now))
    index, (old, new) = next(pair for pair in pairs if pair[1][0] != pair[1][1])
    counts = "" if len(then) == len(now) else f", {len(then)} and {len(now)} in all"
    return f"class {index} was {old!a}, is {new!a}{counts}"


def digest(dataset: Dataset, *, unread: bool = False) -> str:
    """The sha256 of its images and labels, in their order.

    For images that are not in memory, or are to be taken as such, only of how many
    there are, which it says.
    """
    labels = sha256(dataset.labels)
    if unread or not isinstance(dataset.images, np.ndarray):
        kind = getattr(dataset.images, "kind", "")
        return f"{UNREAD}{dataset.images.shape} {labels}{kind}"
    form = f"{dataset.images.dtype} {dataset.images.shape}"
    images = dataset.images_sha256 or sha256(dataset.images)
    return hashlib.sha256(f"{form} {images} {labels}".encode()).hexdigest()


def subset(dataset: Dataset, size: int | None) -> Dataset:
    """`size` examples of `dataset`, the same each time; all, where None or too many."""
    if size is None or size >= len(dataset):
        return dataset
    order = np.random.default_rng([0, 2**32 - 2]).permutation(len(dataset))
    return dataset.take(np.sort(order[:size]))


def hold_out(train: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
    """(train, validation): the last part of a fixed permutation is held out.

    So runs of all seeds are compared on the same images, and none trains on them.

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


def balanced_order(labels: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """As many indices as `labels` [N], drawn so that each class is as likely.

    With replacement, as torch's WeightedRandomSampler draws by weights of 1 / count;
    a function of (seed, epoch).
    """
    rng = np.random.default_rng([seed, epoch])
    # Integers only, so that no machine rounds otherwise.
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
    """The indices of the batches, of these sizes, of an epoch.

    Args:
      repeats: times that an index comes in a row, as torchvision's RASampler has them;
        so the last ones of the order do not come at all.
      balanced: labels [num_examples], to draw as balanced_order does; None shuffles.
    """
    if balanced is None:
        order = epoch_order(num_examples, seed=seed, epoch=epoch)
    else:
        order = balanced_order(balanced, seed=seed, epoch=epoch)
    if repeats > 1:
        order = np.repeat(order, repeats)
    return np.split(order[: sum(sizes)], np.cumsum(sizes)[:-1])
