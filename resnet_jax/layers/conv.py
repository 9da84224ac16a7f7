"""torch.nn.Conv2d, with gradients that are quick on every platform."""

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.errors import ConfigError
from resnet_jax.layers import winograd
from resnet_jax.layers.inputs import check_images, name_of
from resnet_jax.layers.linear import KERNEL_INITS, Init, bias_init, storage_dtype
from resnet_jax.layers.winograd import contract, split, sum_chunks

_FEW = 32  # taps times channels
_LITTLE = 2**25  # multiply-adds that are not worth the time to compile a loop for them
_MUCH = 2**28  # and of those, the least that fewer products make up for
_MANY = 32  # channels, the least likewise; half of them for the kernel's gradient
_COLUMNS = 2**18  # values of the copies of a few pictures, which stay in cache


def convolve(
    x: jax.Array, kernel: jax.Array, *, stride: int, padding: int
) -> jax.Array:
    """The convolution of x [B, H, W, C] with kernel [K, K, C, F], padded with zeros.

    It has derivatives in reverse mode alone (jax.grad, jax.vjp). For them, inside
    shard_map, a kernel that is the same on each device needs
    `jax.lax.pcast(kernel, axis, to="varying")`.
    """
    return _convolve(stride, padding, jnp.asarray(x), jnp.asarray(kernel))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _convolve(stride: int, padding: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    by_xla = partial(_by_xla, stride, padding)
    if _suits_dot(x, kernel):
        by_cpu: Callable[..., jax.Array] = partial(_by_dot, stride, padding)
    elif _suits_winograd(stride, padding, x, kernel, _MANY):
        by_cpu = partial(winograd.convolve, padding=padding)
    else:
        return by_xla(x, kernel)
    found: jax.Array = lax.platform_dependent(x, kernel, cpu=by_cpu, default=by_xla)
    return found


def _suits_dot(x: jax.Array, kernel: jax.Array) -> bool:
    """Whether XLA's convolution for CPUs is several times slower than a product.

    It is on maps of few pixels, which are those of ImageNet's networks on small
    pictures, for one tap, and for few channels.
    """
    few = math.prod(kernel.shape[:3]) <= _FEW
    return _is_small(x) or kernel.shape[0] == 1 or few


def _suits_winograd(
    stride: int, padding: int, x: jax.Array, kernel: jax.Array, many: int
) -> bool:
    """Whether there is more to gain by fewer products than to lose by the sums.

    They round thrice as much as plain products, which who asks JAX for the highest
    precision does not want.
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


def _forward(
    stride: int, padding: int, x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(stride, padding, x, kernel), (x, kernel)


def _backward(
    stride: int, padding: int, inputs: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def by_xla(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> tuple[jax.Array, ...]:
        found: tuple[jax.Array, ...] = jax.vjp(
            partial(_by_xla, stride, padding), x, kernel
        )[1](dy)
        return found

    def by_dots(
        x: jax.Array, kernel: jax.Array, dy: jax.Array
    ) -> tuple[jax.Array, ...]:
        if _is_small(x):
            found: tuple[jax.Array, ...] = jax.vjp(
                partial(_by_dot, stride, padding), x, kernel
            )[1](dy)
            return found
        suits = partial(_suits_winograd, stride, padding, x, kernel)
        work = dy.size // dy.shape[-1] * kernel.size
        if kernel.shape[0] > 1 and work < _LITTLE:
            return by_xla(x, kernel, dy)
        if suits(_MANY // 2):
            dk = winograd.kernel_gradient(x, dy, padding)
        else:
            dk = _kernel_gradient(stride, padding, x, kernel, dy)
        if suits(_MANY):
            turned = kernel[::-1, ::-1].swapaxes(2, 3)
            return winograd.convolve(dy, turned, 2 - padding), dk
        if 1 < stride <= kernel.shape[0]:
            return _by_phases(stride, padding, x, kernel, dy), dk
        by = _by_dot if _suits_dot(x, kernel) else _by_xla
        to_x = jax.linear_transpose(lambda x: by(stride, padding, x, kernel), x)
        return *to_x(dy), dk

    found: tuple[jax.Array, jax.Array] = lax.platform_dependent(
        *inputs, dy, cpu=by_dots, default=by_xla
    )
    return found


_convolve.defvjp(_forward, _backward)


def _by_xla(stride: int, padding: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _by_dot(stride: int, padding: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """convolve, as one product of the pixels below each tap that meets the picture."""
    size = kernel.shape[0]
    height, width = (
        (length + 2 * padding - size) // stride + 1 for length in x.shape[1:3]
    )
    edge = (padding, padding)
    padded = jnp.pad(x, ((0, 0), edge, edge, (0, 0)))

    def meets(tap: int, count: int, length: int) -> bool:
        places = range(tap, tap + stride * count, stride)
        return any(padding <= place < padding + length for place in places)

    taps = [
        (i, j)
        for i in range(size)
        for j in range(size)
        if meets(i, height, x.shape[1]) and meets(j, width, x.shape[2])
    ]
    columns = [
        padded[
            :,
            i : i + stride * (height - 1) + 1 : stride,
            j : j + stride * (width - 1) + 1 : stride,
        ]
        for i, j in taps
    ]
    weights = jnp.concatenate([kernel[i, j] for i, j in taps])
    return jnp.concatenate(columns, axis=-1) @ weights


@jax.named_scope("kernel_gradient")  # in profiles
def _kernel_gradient(
    stride: int, padding: int, x: jax.Array, kernel: jax.Array, dy: jax.Array
) -> jax.Array:
    """The gradient by `kernel` of convolve(x, kernel), where that by its value is `dy`.

    A sum of products of few pictures at a time: x's copies of all taps, side by side,
    with dy.
    """
    size, _, channels, features = kernel.shape
    height, width = dy.shape[1:3]

    def product(x: jax.Array, dy: jax.Array) -> jax.Array:
        x = _copies(x, -2, padding, size, stride, width)
        return contract(_copies(x, -3, padding, size, stride, height), dy)

    if size == 1:
        total = product(x[None], dy[None])
    else:
        pixels = _COLUMNS // (size**2 * channels + features)
        total = sum_chunks(product, *split(x, dy, pixels=pixels))
    return total.sum(0).astype(kernel.dtype).reshape(kernel.shape)


def _by_phases(
    stride: int, padding: int, x: jax.Array, kernel: jax.Array, dy: jax.Array
) -> jax.Array:
    """The gradient by `x`, where that by its value is `dy`.

    The pixels of x that are `stride` apart meet the same taps, and their gradient is a
    convolution of dy with these. XLA's is with all taps, and zeros in dy.
    """
    counts = [-(-(length + padding) // stride) for length in x.shape[1:3]]

    def of_phase(i: int, j: int) -> jax.Array:
        taps = kernel[i::stride, j::stride][::-1, ::-1]
        edges = [
            (size - 1, count - length)
            for size, count, length in zip(
                taps.shape[:2], counts, dy.shape[1:3], strict=True
            )
        ]
        numbers = ("NHWC", "HWOI", "NHWC")
        return lax.conv_general_dilated(dy, taps, (1, 1), edges, None, None, numbers)

    phases = [[of_phase(i, j) for j in range(stride)] for i in range(stride)]
    dx = jnp.stack([jnp.stack(row, 3) for row in phases], 2)
    height, width = (count * stride for count in counts)
    dx = dx.reshape(len(x), height, width, x.shape[-1])
    return dx[:, padding : padding + x.shape[1], padding : padding + x.shape[2]]


def _copies(
    x: jax.Array, axis: int, padding: int, taps: int, stride: int, length: int
) -> jax.Array:
    """x, padded along `axis`, from each of its taps on, side by side in the last."""
    axis %= x.ndim
    x = lax.pad(
        x,
        jnp.zeros((), x.dtype),
        [(padding, padding, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)],
    )
    copies = [
        lax.slice_in_dim(x, tap, tap + stride * (length - 1) + 1, stride, axis)
        for tap in range(taps)
    ]
    return jnp.concatenate(copies, -1)


class Conv(nn.Module):
    """A 2-D convolution with torch.nn.Conv2d's padding and initialisation.

    Maps x [B, H, W, C] to [B, H', W', features] with
    H' = (H + 2 * padding - kernel_size) // stride + 1.
    """

    features: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    use_bias: bool = True
    weight_init: Init = "torch"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.weight_init not in KERNEL_INITS:
            raise ConfigError(
                f"no weight_init {self.weight_init!r}: one of {', '.join(KERNEL_INITS)}"
            )
        channels = x.shape[-1]
        if self.has_variable("params", "kernel"):
            channels = self.get_variable("params", "kernel").shape[2]
        check_images(x, channels, name_of(self))
        param_dtype = storage_dtype(self.dtype, self.param_dtype)
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param(
            "kernel", KERNEL_INITS[self.weight_init], shape, param_dtype
        )
        x = convolve(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            stride=self.stride,
            padding=self.padding,
        )
        if self.use_bias:
            fan_in = self.kernel_size**2 * shape[2]
            bias = self.param("bias", bias_init(fan_in), (self.features,), param_dtype)
            x = x + bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return x
