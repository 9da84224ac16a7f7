"""The kernel of a Whitening layer, from pictures."""

from typing import Any

import jax
import numpy as np

from resnet_jax.augment import Augment
from resnet_jax.data import Dataset

LAYER = "whiten"  # its name in a network
_PICTURES = 5000
_EPSILON = 5e-4  # of a variance, where the pictures have none (Jordan 2024)


def fit(
    variables: dict[str, Any], prepare: Augment, dataset: Dataset
) -> dict[str, Any]:
    """`variables` whose layer "whiten" makes patches of the pictures white.

    Of the first 5,000 pictures, whatever their order in training.

    Its outputs then have mean squares of at most 1 and no correlation, over all patches
    that lie within a picture.

    Args:
      prepare: as in evaluation: what the network sees of a picture.
    """
    statistics = dict(variables["batch_stats"])
    shape = statistics[LAYER]["kernel"].shape
    some = dataset.take(slice(_PICTURES))
    x, _ = prepare(jax.random.key(0), np.asarray(some.images), some.labels)
    kernel = whitening_kernel(np.asarray(x, np.float64), shape[0])
    statistics[LAYER] = {"kernel": kernel.astype(np.float32)}
    return {**variables, "batch_stats": statistics}


def whitening_kernel(x: np.ndarray, size: int) -> np.ndarray:
    """The principal axes of the patches of x [N, H, W, C], each over its deviation.

    As a convolution's kernel [size, size, C, size * size * C], the widest first.
    """
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
    patches = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, size**2 * x.shape[-1])
    variances, axes = np.linalg.eigh(patches.T @ patches / len(patches))
    kernel = axes / np.sqrt(variances + _EPSILON)
    return kernel[:, ::-1].reshape(size, size, x.shape[-1], -1)
