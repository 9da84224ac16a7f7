import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from resnet_jax import models, training
from resnet_jax.errors import ConfigError
from resnet_jax.report import predict


def test_a_map_is_the_weighted_sum_of_the_last_block(tiny, key):
    """The gradient is known of a network that ends in a mean and a linear layer."""
    model = models.create_model(tiny, num_classes=3)
    variables = training.init_variables(model, (8, 8, 3), key=key)
    x = jax.random.normal(key, (2, 8, 8, 3))
    classes = jnp.array([2, 0])
    heat = predict.grad_cam(model, variables, x, classes)
    _, state = model.apply(variables, x, train=False, mutable=["intermediates"])
    maps = state["intermediates"]["layer2"][0]  # [2, 4, 4, 8]
    weights = variables["params"]["fc"]["kernel"][:, classes] / 16
    expected = nn.relu(jnp.einsum("bhwc,cb->bhw", maps, weights))
    expected /= expected.max((1, 2), keepdims=True)
    np.testing.assert_allclose(heat, expected, atol=1e-5)
    assert heat.shape == (2, 4, 4) and float(heat.max()) == 1.0


def test_a_network_without_blocks_is_refused(key):
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return nn.Dense(3)(x.mean((1, 2)))

    model = Plain()
    x = jnp.zeros((1, 8, 8, 3))
    variables = model.init(key, x, train=False)
    with pytest.raises(ConfigError, match="residual blocks"):
        predict.grad_cam(model, variables, x, jnp.array([0]))
