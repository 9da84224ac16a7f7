"""Grouped convolutions, with gradients that are fast on CPUs."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.layers.linear_map import linear_map


def by_xla(
    stride: int, padding: int, x: jax.Array, kernel: jax.Array, *, groups: int
) -> jax.Array:
    """Convolves x [B, H, W, C] with kernel [K, K, C // groups, F] using XLA."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def convolve(
    stride: int, padding: int, groups: int, x: jax.Array, kernel: jax.Array
) -> jax.Array:
    """Convolves x [B, H, W, C] with kernel [K, K, C // groups, F]."""
    return by_xla(stride, padding, x, kernel, groups=groups)


@convolve.defjvp
def _convolve_jvp(
    stride: int,
    padding: int,
    groups: int,
    primals: tuple[jax.Array, jax.Array],
    tangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    x, kernel = primals
    forward = partial(convolve, stride, padding, groups)
    plain = partial(by_xla, stride, padding, groups=groups)
    by_taps = partial(_by_taps, stride, padding, groups)

    def by_x(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> jax.Array:
        (found,) = jax.linear_transpose(lambda x: plain(x, kernel), x)(dy)
        return jnp.asarray(found)

    def by_kernel(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> jax.Array:
        def pull(convolve: "partial[jax.Array]", *args: jax.Array) -> jax.Array:
            x, kernel, dy = args
            (found,) = jax.linear_transpose(lambda k: convolve(x, k), kernel)(dy)
            return jnp.asarray(found)

        # XLA's CPU convolution takes a hundred times as long as _by_taps.
        cpu, other = partial(pull, by_taps), partial(pull, plain)
        found: jax.Array = lax.platform_dependent(
            *(x, kernel, dy), cpu=cpu, default=other
        )
        return found

    dx, dk = tangents
    moved = linear_map(lambda x, kernel, dx: forward(dx, kernel), by_x, primals, dx)
    moved += linear_map(lambda x, kernel, dk: forward(x, dk), by_kernel, primals, dk)
    return forward(x, kernel), moved


def _by_taps(
    stride: int, padding: int, groups: int, x: jax.Array, kernel: jax.Array
) -> jax.Array:
    """Computes the convolution as a sum of K * K matrix products, one per tap."""
    side, _, inputs, features = kernel.shape
    edge = (padding, padding)
    padded = jnp.pad(x, ((0, 0), edge, edge, (0, 0)))
    height, width = ((n - side) // stride + 1 for n in padded.shape[1:3])
    parts = kernel.reshape(side, side, inputs, groups, features // groups)

    def product(row: int, column: int) -> jax.Array:
        rows = slice(row, row + stride * (height - 1) + 1, stride)
        columns = slice(column, column + stride * (width - 1) + 1, stride)
        seen = padded[:, rows, columns].reshape(-1, groups, inputs)
        return jnp.einsum("ngc,cgf->ngf", seen, parts[row, column])

    places = [(row, column) for row in range(side) for column in range(side)]
    total = product(*places[0])
    for place in places[1:]:
        total = total + product(*place)
    return total.reshape(len(x), height, width, features)
