"""A fixed first layer of resnet9 that whitens image patches."""

from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.devices import processes
from resnet_jax.layers.conv import Conv, convolve
from resnet_jax.layers.linear import storage_dtype

LAYER = "whiten"  # name of the layer in a network
_IMAGES = 5000
_EPSILON = 5e-4  # added to each variance, in case it is 0 (Jordan 2024)


class Whitening(Conv):
    """A fixed, padded convolution from [B, H, W, C] to [B, H, W, kernel_size**2 * C].

    The kernel is in `batch_stats` because it is not trained but fitted to the data (see
    fit). Before the fit, the layer returns the patches unchanged.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)

        def copies() -> jax.Array:
            eye = jnp.eye(self.features, dtype=storage_dtype(self.dtype))
            return eye.reshape(shape)

        kernel = self.variable("batch_stats", "kernel", copies).value
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return convolve(x, kernel, stride=1, padding=self.padding)


def first_convolution(net: Any, conv: Callable[..., Any], x: jax.Array) -> jax.Array:
    """Applies the first convolution of ResNet9; maps [B, H, W, C] to [B, H, W, width].

    If `net.whiten` is True, this is a 1x1 convolution after a Whitening layer;
    otherwise, it is a 3x3 convolution.
    """
    if not net.whiten:
        y: jax.Array = conv(net.width, 3, padding=1, name="conv1")(x)
        return y
    features = 3**2 * x.shape[-1]
    x = Whitening(features, 3, padding=1, dtype=net.dtype, name=LAYER)(x)
    y = conv(net.width, 1, padding=0, name="conv1")(x)
    return y


def fit(
    variables: dict[str, Any], inputs: Callable[[int], Iterable[np.ndarray]]
) -> dict[str, Any]:
    """Returns `variables` with the layer "whiten", if any, fitted to the images.

    The fit always uses the same 5,000 images. Afterward, the layer's outputs are
    uncorrelated over all patches of these images that contain no padding, and the mean
    square of each output is at most 1.

    Args:
      variables: the model's variables.
      inputs: a function that takes a number of images and yields that many preprocessed
        images in chunks.
    """
    statistics = dict(variables["batch_stats"])
    if LAYER not in statistics:
        return variables
    shape = statistics[LAYER]["kernel"].shape
    kernel = whitening_kernel(inputs(_IMAGES), shape[0]).astype(np.float32)
    # All processes use the kernel of the first process, because rounding may differ
    # between processes.
    statistics[LAYER] = {"kernel": processes.from_first(kernel)}
    return {**variables, "batch_stats": statistics}


def whitening_kernel(parts: Iterable[np.ndarray], size: int) -> np.ndarray:
    """Returns a kernel that computes the whitened principal components of patches.

    Args:
      parts: the images, as chunks [N, H, W, C].
      size: height and width of the patches.

    Returns:
      A convolution kernel [size, size, C, size * size * C]. The output channels are the
      principal components, each divided by its standard deviation, in order of
      decreasing variance.
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
