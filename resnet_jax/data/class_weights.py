"""Class weights for the training loss, like CrossEntropyLoss(weight=...)."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.data.augment import Augment
from resnet_jax.data.dataset import Dataset, Splits
from resnet_jax.errors import ConfigError, DataError, first_line


def load_class_weights(
    given: str | None, splits: Splits
) -> tuple[np.ndarray | None, Splits]:
    """Returns (weights [C] float32, splits), given AugmentConfig.class_weights.

    The identity of the returned splits includes the weights, so a resumed run must
    use the same weights.

    Raises:
      ConfigError: if `given` is "balanced" and a class has no training examples.
      DataError: if the file cannot be read or lacks a valid weight for a class.
    """
    if given is None:
        return None, splits
    train = splits.train
    if given == "balanced":
        found = balanced(train)
    else:
        found = read(Path(given), train.class_names)
    identity = {**splits.identity, "class weights": found.tolist()}
    return found, splits._replace(identity=identity)


def balanced(train: Dataset) -> np.ndarray:
    """Returns float32 weights [C] of N / (C * count), like scikit-learn's "balanced".

    Raises:
      ConfigError: if a class has no examples.
    """
    names = train.class_names
    counts = np.bincount(train.labels, minlength=len(names))
    if not counts.all():
        raise ConfigError(
            f"class_weights balanced: {names[int(counts.argmin())]} has no training "
            "examples: add some, or provide the weights in a file"
        )
    return np.asarray(len(train) / (len(names) * counts), np.float32)


def read(path: Path, names: Sequence[str]) -> np.ndarray:
    """Reads float32 weights [C] from JSON {name: weight}, or from one number per line.

    Raises:
      DataError: if the file cannot be read, lacks a class or has an unknown class; if a
        weight is negative or not finite; or if all weights are 0.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise DataError(
            f"{path} cannot be read ({reason}): set class_weights to 'balanced' or to "
            "a file with a weight for each class"
        ) from None
    is_json = text.lstrip().startswith(("{", "["))
    values = _of_json(path, text, names) if is_json else _of_lines(path, text, names)
    found = np.array(
        [_number(path, name, value) for name, value in zip(names, values, strict=True)],
        np.float32,
    )
    if not found.any():
        raise DataError(f"{path}: all class weights are 0, so nothing can be learned")
    return found


def _of_json(path: Path, text: str, names: Sequence[str]) -> list[Any]:
    pairs: list[tuple[str, Any]] = []

    def keep(found: list[tuple[str, Any]]) -> dict[str, Any]:
        pairs[:] = found
        return dict(found)

    try:
        content = json.loads(text, object_pairs_hook=keep)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON ({first_line(error)})") from None
    if not isinstance(content, dict):
        raise DataError(
            f"{path} is a JSON list: use {{class name: weight}}, or one number per line"
        )
    twice = [name for name, _ in pairs if [n for n, _ in pairs].count(name) > 1]
    for wrong, what in (
        (twice, "has {} twice"),
        ([n for n in content if n not in names], "has {}, which is not a class"),
        ([n for n in names if n not in content], "has no weight for {}"),
    ):
        if wrong:
            known = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            raise DataError(
                f"{path} {what.format(wrong[0])}: list each class once ({known})"
            )
    return [content[name] for name in names]


def _of_lines(path: Path, text: str, names: Sequence[str]) -> list[Any]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) != len(names):
        raise DataError(
            f"{path} has {len(lines)} lines for {len(names)} classes: give one "
            "number per line, in class order, or JSON {class name: weight}"
        )
    return lines


def _number(path: Path, name: str, value: Any) -> float:
    is_number = isinstance(value, int | float | str) and not isinstance(value, bool)
    try:
        found = float(value) if is_number else math.nan
    except (ValueError, OverflowError):
        found = math.nan
    if not 0 <= found <= float(np.finfo(np.float32).max):
        raise DataError(
            f"{path}: the weight of {name} is {str(value)[:40]!r}, but it must be "
            "finite and at least 0"
        )
    return found


def weigh(augment: Augment, weights: np.ndarray, *, is_mixed: bool) -> Augment:
    """Wraps `augment` so that cross-entropy with the new targets is weighted by class.

    The loss then equals that of torch.nn.CrossEntropyLoss(weight): the sum over the
    whole batch is divided by the total weight of the labels. If targets are
    distributions, the sum is divided by the number of images instead, as in PyTorch.
    The division is applied to the targets, so splitting a batch over devices or into
    micro-batches does not change the loss.

    Args:
      is_mixed: whether images are blended by mixup or CutMix, which makes the targets
        distributions. Label smoothing alone does not count, because each target still
        belongs to one label.
    """

    def weighted(
        key: jax.Array, images: jax.Array, labels: jax.Array, step: Any = 0
    ) -> tuple[jax.Array, jax.Array]:
        x, targets = augment(key, images, labels, step)
        by_class = jnp.asarray(weights, targets.dtype)
        targets = targets * by_class[None, :]
        if not is_mixed:
            mean = by_class[labels].mean()
            # Unlike PyTorch, this does not divide by 0 if all labels have weight 0.
            targets = targets / jnp.where(mean > 0, mean, 1)
        return x, targets

    return weighted
