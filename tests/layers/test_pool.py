from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import by_tier

from resnet_jax.layers import pool as pooling

pytestmark = pytest.mark.optimized


@pytest.mark.parametrize("height, width", by_tier([(6, 4), (5, 7)], [(5, 7)]))
def test_avg_pool_is_flax_s_with_its_gradient(height, width):
    x = jax.random.normal(jax.random.key(0), (3, height, width, 2))
    theirs = partial(nn.avg_pool, window_shape=(2, 2), strides=(2, 2))
    y, pull = jax.vjp(pooling.avg_pool, x)
    expected, expected_pull = jax.vjp(theirs, x)
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-7)
    dy = jax.random.normal(jax.random.key(1), y.shape)
    np.testing.assert_allclose(*pull(dy), *expected_pull(dy), rtol=1e-6)


@pytest.mark.parametrize(
    "height, width", by_tier([(6, 4), (5, 7), (1, 2)], [(6, 4), (1, 2)])
)
@pytest.mark.parametrize("ties", [False, True])
def test_max_pool_is_flax_s_with_its_gradient(height, width, ties):
    x = jax.random.normal(jax.random.key(0), (3, height, width, 2))
    if ties:  # as after ReLU: the first of equal pixels gets the gradient
        x = nn.relu(jnp.round(x))
    padding = ((1, 1), (1, 1))
    theirs = partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2), padding=padding)
    y, pull = jax.vjp(pooling.max_pool, x)
    expected, expected_pull = jax.vjp(theirs, x)
    np.testing.assert_array_equal(y, expected)
    dy = jax.random.normal(jax.random.key(1), y.shape)
    np.testing.assert_allclose(*pull(dy), *expected_pull(dy), rtol=1e-6)
