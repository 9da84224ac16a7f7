"""The kernel of a Whitening layer, from pictures."""

from collections.abc import Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.data import Dataset, subset
from resnet_jax.data.augment import Augment
from resnet_jax.devices import processes
from resnet_jax.layers.conv import convolve
from resnet_jax.layers.linear import storage_dtype

LAYER = "whiten"  # its name in a network
_PICTURES, _AT_A_TIME = 5000, 100
_EPSILON = 5e-4  # of a variance, where the pictures have none (Jordan 2024)


class Whitening(nn.Module):
    """A fixed convolution, padded: x [B, H, W, C] to [B, H, W, size * size * C].

    Its kernel lies with the statistics, in `batch_stats`: it is one of the data's, see
    fit, and no training step moves it. At first it copies the patches.
    """

    size: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = self.size**2 * x.shape[-1]
        shape = (self.size, self.size, x.shape[-1], features)

        def copies() -> jax.Array:
            return jnp.eye(features, dtype=storage_dtype(self.dtype)).reshape(shape)

        kernel = self.variable("batch_stats", "kernel", copies).value
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return convolve(x, kernel, stride=1, padding=self.size // 2)


def fit(
    variables: dict[str, Any], prepare: Augment, dataset: Dataset
) -> dict[str, Any]:
    """`variables` whose layer "whiten" makes patches of the pictures white.

    Of 5,000 pictures, always the same. Its outputs then have mean squares of at most 1
    and no correlation, over all patches that lie within a picture.

    Args:
      prepare: as in evaluation: what the network sees of a picture.
    """
    statistics = dict(variables["batch_stats"])
    shape = statistics[LAYER]["kernel"].shape
    some = subset(dataset, _PICTURES)

    def inputs() -> Iterator[np.ndarray]:
        for start in range(0, len(some), _AT_A_TIME):  # patches take nine times more
            part = some.take(slice(start, start + _AT_A_TIME))
            images = np.asarray(part.images)
            yield np.asarray(prepare(jax.random.key(0), images, part.labels)[0])

    kernel = whitening_kernel(inputs(), shape[0]).astype(np.float32)
    # Of several processes, whose arithmetic may differ in a last bit, the first says.
    statistics[LAYER] = {"kernel": processes.from_first(kernel)}
    return {**variables, "batch_stats": statistics}


def whitening_kernel(parts: Iterable[np.ndarray], size: int) -> np.ndarray:
    """The principal axes of the patches of pictures, each over its deviation.

    Args:
      parts: some of the pictures each, [N, H, W, C].

    Returns:
      a convolution's kernel [size, size, C, size * size * C], the widest first.
    """
    total, count = 0.0, 0
    for x in parts:
        x = x.astype(np.float64)
        windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
        patches = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, size**2 * x.shape[-1])
        total, count = total + patches.T @ patches, count + len(patches)
    variances, axes = np.linalg.eigh(total / count)
    kernel = axes / np.sqrt(variances + _EPSILON)
    return kernel[:, ::-1].reshape(size, size, x.shape[-1], -1)
