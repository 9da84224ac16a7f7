"""The convolution, with gradients that are quick on every platform."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

_FEW = 32  # taps times channels
_LITTLE = 2**28  # multiply-adds that are not worth the time to compile a loop for them
_PIXELS = 512  # of the pictures whose columns stay in a core's cache


def convolve(
    x: jax.Array, kernel: jax.Array, *, stride: int, padding: int
) -> jax.Array:
    """The convolution of x [B, H, W, C] with kernel [K, K, C, F], padded with zeros.

    It has derivatives in reverse mode alone (jax.grad, jax.vjp).
    """
    return _convolve(stride, padding, x, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _convolve(stride: int, padding: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    by_xla = partial(_by_xla, stride, padding)
    if not _suits_dot(x, kernel):
        return by_xla(x, kernel)
    by_dot = partial(_by_dot, stride, padding)
    return lax.platform_dependent(x, kernel, cpu=by_dot, default=by_xla)


def _suits_dot(x: jax.Array, kernel: jax.Array) -> bool:
    """Whether XLA's convolution for CPUs is several times slower than a product.

    It is on maps of few pixels, which are those of ImageNet's networks on small
    pictures, for one tap, and for few channels.
    """
    few = math.prod(kernel.shape[:3]) <= _FEW
    return _is_small(x) or kernel.shape[0] == 1 or few


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
        return jax.vjp(partial(_by_xla, stride, padding), x, kernel)[1](dy)

    def by_dots(
        x: jax.Array, kernel: jax.Array, dy: jax.Array
    ) -> tuple[jax.Array, ...]:
        if _is_small(x):
            return jax.vjp(partial(_by_dot, stride, padding), x, kernel)[1](dy)
        if dy.size // dy.shape[-1] * kernel.size < _LITTLE:
            return by_xla(x, kernel, dy)
        by = _by_dot if _suits_dot(x, kernel) else _by_xla
        to_x = jax.linear_transpose(lambda x: by(stride, padding, x, kernel), x)
        return *to_x(dy), _kernel_gradient(stride, padding, x, kernel, dy)

    return lax.platform_dependent(*inputs, dy, cpu=by_dots, default=by_xla)


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


def _kernel_gradient(
    stride: int, padding: int, x: jax.Array, kernel: jax.Array, dy: jax.Array
) -> jax.Array:
    """The gradient by `kernel` of convolve(x, kernel), where that by its value is `dy`.

    A sum of products of few pictures' pixels at a time. At stride 1, x is laid side by
    side with itself moved along rows, and dy with itself moved along columns: the
    product of 3 by 3 such copies is the gradient of all 9 taps.
    """
    size, (_, _, channels, features) = kernel.shape[0], kernel.shape
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    # Where several devices share the batch, each adds up its own pictures.
    groups = math.gcd(len(x), jax.device_count()) if size > 1 else 1
    x = x.reshape(groups, -1, *x.shape[1:])
    dy = dy.reshape(groups, -1, *dy.shape[1:])
    (count, *lengths), (height, width) = x.shape[1:4], dy.shape[2:4]

    def product(x: jax.Array, dy: jax.Array) -> jax.Array:
        x = _copies(x, 3, padding, range(size), stride, width)
        if stride == 1:
            taps = reversed(range(size))
            dy = _copies(dy, 2, size - 1 - padding, taps, 1, lengths[0])
        else:
            x = _copies(x, 2, padding, range(size), stride, height)
        x = x.reshape(groups, -1, x.shape[-1])
        dy = dy.reshape(groups, -1, dy.shape[-1])
        sides = (((1,), (1,)), ((0,), (0,)))
        return lax.dot_general(x, dy, sides, preferred_element_type=dtype)

    if size == 1:
        total = product(x, dy)
    else:
        chunk = max(
            n
            for n in range(1, count + 1)
            if count % n == 0 and (n == 1 or n * height * width <= _PIXELS)
        )

        def of_chunk(step: jax.Array | int) -> jax.Array:
            parts = (
                lax.dynamic_slice_in_dim(v, step * chunk, chunk, 1) for v in (x, dy)
            )
            return product(*parts)

        total = lax.fori_loop(
            1,
            count // chunk,
            lambda step, total: total + of_chunk(step),
            of_chunk(0),
        )
    total = total.sum(0).astype(kernel.dtype)
    if stride == 1:
        total = total.reshape(size, channels, size, features).transpose(2, 0, 1, 3)
    return total.reshape(kernel.shape)


def _copies(
    x: jax.Array, axis: int, padding: int, taps: range, stride: int, length: int
) -> jax.Array:
    """x, padded along `axis`, from each of `taps` on, side by side in the last axis."""
    x = lax.pad(
        x,
        jnp.zeros((), x.dtype),
        [(padding, padding, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)],
    )
    copies = [
        lax.slice_in_dim(x, tap, tap + stride * (length - 1) + 1, stride, axis)
        for tap in taps
    ]
    return jnp.concatenate(copies, -1)
