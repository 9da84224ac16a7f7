"""Functions and checks for exporting networks as programs."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from resnet_jax.errors import DataError
from resnet_jax.layers import keep

_FEW = 7  # largest batch size of the second comparison


class Network(NamedTuple):
    """A network to export, and images to check it with."""

    model: nn.Module
    variables: Mapping[str, Any]
    images: np.ndarray  # [N, H, W, C] float32, as preprocessing returns them


def make_logits(
    model: nn.Module, variables: Mapping[str, Any]
) -> Callable[[jax.Array], jax.Array]:
    """Returns a function from images [batch, H, W, C] to logits [batch, num_classes].

    The function uses only standard operations, not this package's custom operations. It
    can be traced with a symbolic batch size.
    """
    model = model.clone(remat=False)  # remat affects only gradients

    def logits(images: jax.Array) -> jax.Array:
        with keep.compiling_for(keep.ANY):
            found: jax.Array = model.apply(variables, images, train=False)  # type: ignore[assignment]
        return found

    return logits


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest difference, relative to the largest magnitude in `expected`.

    The result is NaN if either array contains NaN.
    """
    largest = np.maximum(np.abs(expected).max(), np.finfo(np.float32).tiny)
    return float(np.abs(found - expected).max() / largest)


def check_agrees(
    run: Callable[[np.ndarray], np.ndarray],
    images: np.ndarray,
    expected: np.ndarray,
    *,
    tolerance: float,
    what: str,
    hint: str,
) -> float:
    """Compares the logits of `run` with `expected` at two batch sizes.

    Args:
      run: a function that maps images [batch, ...] to logits [batch, num_classes].
      images: all images to pass to `run`.
      expected: JAX's logits for all images.
      tolerance: the largest acceptable difference, relative to the largest logit.
      what: the beginning of the error message, up to and including a name for the
        logits of `run`.
      hint: the remedy that the error message suggests.

    Returns:
      The larger of the two differences (see difference).

    Raises:
      DataError: if a difference exceeds `tolerance`, or is NaN.
    """
    largest = 0.0
    for size in (len(images), min(_FEW, (len(images) + 1) // 2)):
        starts = range(0, len(images), size)
        found = np.concatenate([run(images[start : start + size]) for start in starts])
        differs = difference(found, expected)
        if not differs <= tolerance:  # false for NaN
            raise DataError(
                f"{what} differ from JAX's by {differs:.1e} relative to the largest "
                f"logit at a batch size of {size}, but only {tolerance:g} is "
                f"allowed: {hint}"
            )
        largest = max(largest, differs)
    return largest


def pixels_to_input(preprocessing: Mapping[str, Any]) -> str:
    """Returns a line of Python code that normalizes uint8 images, for model cards."""
    mean, std = preprocessing["mean"], preprocessing["std"]
    return f'x = ((pixels / 255 - {mean}) / {std}).astype("float32")'
