"""A JAX version of torch.nn.Conv2d with gradients that are fast on every platform."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.errors import ConfigError
from resnet_jax.layers import grouped, library, products, winograd
from resnet_jax.layers.inputs import check_images, name_of
from resnet_jax.layers.keep import is_plain, keep
from resnet_jax.layers.linear import KERNEL_INITS, Init, bias_init, storage_dtype
from resnet_jax.layers.linear_map import linear_map

_FEW = 32  # taps times channels; below this, a matrix product is faster
_LITTLE = 2**25  # multiply-adds; below this, compiling a loop does not pay off
_MUCH = 2**28  # multiply-adds; above this, Winograd's algorithm pays off
_MANY = 32  # minimum number of channels for Winograd (half for kernel gradients)


def convolve(
    x: jax.Array, kernel: jax.Array, *, stride: int, padding: int, groups: int = 1
) -> jax.Array:
    """Convolves x [B, H, W, C] with kernel [K, K, C // groups, F], using zero padding.

    Inside shard_map, to differentiate with respect to a kernel that is replicated over
    the devices, first apply `jax.lax.pcast(kernel, axis, to="varying")` to the kernel.
    """
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    if is_plain():
        return grouped.by_xla(stride, padding, x, kernel, groups=groups)
    if groups > 1:
        return grouped.convolve(stride, padding, groups, x, kernel)
    return _convolve(stride, padding, x, kernel)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _convolve(stride: int, padding: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    by_xla = partial(_by_xla, stride, padding)
    if _is_small(x) or (_suits_dot(x, kernel) and not library.is_used()):
        by_cpu: Callable[..., jax.Array] = partial(products.convolve, stride, padding)
    elif _suits_winograd(stride, padding, x, kernel, _MANY):
        by_cpu = partial(winograd.convolve, padding=padding)
    else:
        return by_xla(x, kernel)
    return _by_platform(by_cpu, by_xla, x, kernel)


def _suits_dot(x: jax.Array, kernel: jax.Array) -> bool:
    """Returns whether XLA's CPU convolution is much slower than a matrix product.

    This is the case for 1x1 kernels, for few channels, and for feature maps with few
    pixels, such as those that ImageNet networks compute from small images.
    """
    few = math.prod(kernel.shape[:3]) <= _FEW
    return _is_small(x) or kernel.shape[0] == 1 or few


def _suits_winograd(
    stride: int, padding: int, x: jax.Array, kernel: jax.Array, many: int
) -> bool:
    """Returns whether Winograd's algorithm is faster than direct convolution.

    Winograd's algorithm has three times the rounding error of direct convolution, so it
    is not used with JAX's highest matmul precision.
    """
    size, _, channels, features = kernel.shape
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return (
        precision not in ("highest", "float32")
        and (size, stride) == (3, 1)
        and padding <= 2
        and min(channels, features) >= many
        and x.size * features * size**2 >= _MUCH
        and x.dtype.itemsize >= 4
    )


def _is_small(x: jax.Array) -> bool:
    return x.shape[1] * x.shape[2] <= 4


@_convolve.defjvp
def _convolve_jvp(
    stride: int,
    padding: int,
    primals: tuple[jax.Array, jax.Array],
    tangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    x, kernel = primals
    convolve = partial(_convolve, stride, padding)
    forms = [
        (lambda x, kernel, dx: convolve(dx, kernel), gradient_by_x),
        (lambda x, kernel, dk: convolve(x, dk), gradient_by_kernel),
    ]
    by_x, by_kernel = (
        linear_map(forward, partial(backward, stride, padding), primals, tangent)
        for (forward, backward), tangent in zip(forms, tangents, strict=True)
    )
    return convolve(x, kernel), by_x + by_kernel


def gradient_by_x(
    stride: int, padding: int, x: jax.Array, kernel: jax.Array, dy: jax.Array
) -> jax.Array:
    def by(convolve: Any, x: jax.Array, kernel: jax.Array, dy: jax.Array) -> jax.Array:
        return _pull(lambda x: convolve(stride, padding, x, kernel), x, dy)

    by_xla, by_dot = partial(by, _by_xla), partial(by, products.convolve)
    by_cpu: Callable[..., jax.Array] = by_xla
    if _is_small(x):
        by_cpu = by_dot
    elif not _is_little(kernel, dy):
        if _suits_winograd(stride, padding, x, kernel, _MANY):
            by_cpu = partial(_x_by_winograd, padding)
        elif 1 < stride <= kernel.shape[0]:
            by_cpu = partial(products.by_phases, stride, padding)
        elif _suits_dot(x, kernel):
            by_cpu = by_dot
    return _by_platform(by_cpu, by_xla, x, kernel, dy)


def gradient_by_kernel(
    stride: int, padding: int, x: jax.Array, kernel: jax.Array, dy: jax.Array
) -> jax.Array:
    def by(convolve: Any, x: jax.Array, kernel: jax.Array, dy: jax.Array) -> jax.Array:
        return _pull(lambda kernel: convolve(stride, padding, x, kernel), kernel, dy)

    by_xla = partial(by, _by_xla)
    by_cpu: Callable[..., jax.Array] = by_xla
    if _is_small(x):
        by_cpu = partial(by, products.convolve)
    elif not _is_little(kernel, dy):
        by_cpu = partial(products.kernel_gradient, stride, padding)
        if _suits_winograd(stride, padding, x, kernel, _MANY // 2):
            by_cpu = partial(_kernel_by_winograd, padding)
    return _by_platform(by_cpu, by_xla, x, kernel, dy)


def _by_platform(
    cpu: Callable[..., jax.Array], other: Callable[..., jax.Array], *args: jax.Array
) -> jax.Array:
    found: jax.Array = lax.platform_dependent(*args, cpu=cpu, default=other)
    return found


def _pull(forward: Callable[..., Any], x: jax.Array, dy: jax.Array) -> jax.Array:
    """Applies the transpose of the linear function `forward` to the cotangent `dy`."""
    (found,) = jax.linear_transpose(forward, x)(dy)
    return jnp.asarray(found)


def _x_by_winograd(
    padding: int, x: jax.Array, kernel: jax.Array, dy: jax.Array
) -> jax.Array:
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    dx: jax.Array = winograd.convolve(dy, turned, 2 - padding)
    return dx


def _kernel_by_winograd(
    padding: int, x: jax.Array, kernel: jax.Array, dy: jax.Array
) -> jax.Array:
    dk: jax.Array = winograd.kernel_gradient(x, dy, padding)
    return dk


def _is_little(kernel: jax.Array, dy: jax.Array) -> bool:
    work: int = dy.size // dy.shape[-1] * kernel.size
    return kernel.shape[0] > 1 and work < _LITTLE


_by_xla = partial(grouped.by_xla, groups=1)


class Conv(nn.Module):
    """A 2-D convolution with torch.nn.Conv2d's padding and initialization.

    Maps x [B, H, W, C] to [B, H', W', features] with
    H' = (H + 2 * padding - kernel_size) // stride + 1. The channels and the features
    are each split into `groups` groups of equal size, and each group of features
    depends only on the corresponding group of channels.
    """

    features: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    use_bias: bool = True
    weight_init: Init = "torch"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.weight_init not in KERNEL_INITS:
            raise ConfigError(
                f"unknown weight_init {self.weight_init!r}: choose one of "
                f"{', '.join(KERNEL_INITS)}"
            )
        channels = x.shape[-1]
        if self.has_variable("params", "kernel"):
            channels = self.get_variable("params", "kernel").shape[2] * self.groups
        check_images(x, channels, name_of(self))
        if x.shape[-1] % self.groups or self.features % self.groups:
            raise ConfigError(
                f"groups={self.groups} must divide the {x.shape[-1]} channels and the "
                f"{self.features} features"
            )
        param_dtype = storage_dtype(self.dtype, self.param_dtype)
        side, inputs = self.kernel_size, x.shape[-1] // self.groups
        shape = (side, side, inputs, self.features)
        kernel = self.param(
            "kernel", KERNEL_INITS[self.weight_init], shape, param_dtype
        )
        x = convolve(
            x.astype(self.dtype),
            keep(kernel.astype(self.dtype)),
            stride=self.stride,
            padding=self.padding,
            groups=self.groups,
        )
        x = keep(x)
        if self.use_bias:
            fan_in = self.kernel_size**2 * shape[2]
            bias = self.param("bias", bias_init(fan_in), (self.features,), param_dtype)
            x = x + bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return x
