"""Compares grouped convolutions with one convolution per group."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.errors import ConfigError
from resnet_jax.layers import grouped
from resnet_jax.layers.conv import Conv, convolve


def draw(batch, side, channels, features, groups, size):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, side, side + 1, channels))
    kernel = rng.normal(size=(size, size, channels // groups, features))
    return x, kernel


def one_by_one(x, kernel, *, stride, padding, groups):
    parts = jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1)
    make = partial(grouped.by_xla, stride, padding, groups=1)
    return jnp.concatenate([make(*pair) for pair in zip(*parts, strict=True)], axis=-1)


@pytest.mark.process
@pytest.mark.parametrize(
    ("groups", "size", "stride", "padding"),
    [(2, 3, 1, 1), (4, 3, 2, 1), (4, 1, 2, 0), (2, 3, 3, 2), (8, 2, 1, 0)],
)
def test_groups_are_convolutions_of_their_own(groups, size, stride, padding):
    how = {"stride": stride, "padding": padding, "groups": groups}
    with jax.enable_x64(True):
        x, kernel = map(jnp.asarray, draw(2, 7, 8, 16, groups, size))

        def loss(convolve, x, kernel):
            y = convolve(x, kernel, **how)
            return (y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)).sum() + (
                y**2
            ).sum()

        y, expected = (f(x, kernel, **how) for f in (convolve, one_by_one))
        np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
        for order in (jax.grad, lambda f, at: jax.grad(partial(_norm, f, at), at)):
            ours = order(partial(loss, convolve), (0, 1))(x, kernel)
            theirs = order(partial(loss, one_by_one), (0, 1))(x, kernel)
            for found, wanted in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-9)


def _norm(loss, at, x, kernel):
    """Returns a norm of the gradient, to differentiate again."""
    return sum((g**2).sum() for g in jax.grad(loss, at)(x, kernel))


def test_on_cpus_the_kernels_gradient_is_a_sum_of_products():
    """XLA's own gradient takes a hundred times as long; other platforms use it."""
    x, kernel = map(jnp.float32, draw(2, 7, 8, 16, 4, 3))

    def loss(kernel, x):
        return (convolve(x, kernel, stride=1, padding=1, groups=4) ** 2).sum()

    gradient = jax.jit(jax.grad(loss))
    text = gradient.lower(kernel, x).compile().as_text()
    assert "batch_group_count" not in text and "dot(" in text
    exported = jax.export.export(gradient, platforms=["tpu"])(kernel, x)
    assert "batch_group_count = 4" in exported.mlir_module()


def test_a_layer_of_groups():
    conv = Conv(12, 3, padding=1, groups=4)
    x = jnp.ones((2, 5, 5, 8))
    variables = conv.init(jax.random.key(0), x)
    assert variables["params"]["kernel"].shape == (3, 3, 2, 12)
    assert conv.apply(variables, x).shape == (2, 5, 5, 12)
    bound = 1 / np.sqrt(9 * 2)  # fan in counts one group's channels, as in PyTorch
    for leaf in jax.tree.leaves(variables):
        assert bound / 2 < jnp.abs(leaf).max() <= bound
    with pytest.raises(
        ConfigError, match="groups=3 must divide the 8 channels and the 12"
    ):
        Conv(12, 3, groups=3).init(jax.random.key(0), x)
    with pytest.raises(ConfigError, match="8 channels"):
        conv.apply(variables, jnp.ones((2, 5, 5, 4)))
