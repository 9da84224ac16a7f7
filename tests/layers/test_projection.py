"""The gradient of a 1x1 convolution with BatchNorm, without the map between them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.layers import BatchNorm, conv, normalize, projection
from resnet_jax.models import blocks, create_model
from resnet_jax.training import init_variables

EPSILON = 1e-5


def case(dtype, mean=0.3):
    rng = np.random.default_rng(0)
    inputs = np.maximum(rng.normal(mean, 1, (16, 8, 8, 5)), 0).astype(dtype)
    kernel = rng.normal(size=(1, 1, 5, 12)).astype(dtype)
    shape = conv.convolve(inputs, kernel, stride=1, padding=0).shape
    scale, bias, shift = rng.normal(size=(3, 12))
    return inputs, kernel, scale, bias, shift, rng.normal(size=shape)


def gradients(backward, inputs, kernel, scale, bias, shift, dy):
    """Returns the layer's gradients of inputs, kernel, scale and bias."""
    x = conv.convolve(inputs, kernel, stride=1, padding=0)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    scale, bias, shift, dy = (
        jnp.asarray(a, wide.dtype) for a in (scale, bias, shift, dy)
    )
    found, (centred, inverse) = normalize.moments(wide, scale, bias, EPSILON, shift)
    saved = (centred, found[1], inverse, scale, jnp.asarray(inputs))
    return jax.jit(backward)(*saved, jnp.asarray(kernel), dy)


@pytest.mark.process
def test_it_is_the_gradient_of_the_two_layers():
    with jax.enable_x64(True):
        arrays = case(np.float64)
        found = gradients(projection.by_factors, *arrays)
        expected = gradients(projection.by_output, *arrays)
        inputs, kernel, scale, bias, shift, dy = arrays

        def two_layers(inputs, kernel, scale, bias):
            x = conv.convolve(inputs, kernel, stride=1, padding=0)
            return normalize.normalize(x, scale, bias, EPSILON, shift)[0]

        plain = jax.vjp(two_layers, inputs, kernel, scale, bias)[1](dy)
        for one, other, third in zip(found, expected, plain, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(third, other, rtol=1e-12, atol=1e-12)


def test_its_second_derivatives_are_those_of_the_two_layers():
    with jax.enable_x64(True):
        inputs, kernel, scale, bias, shift, dy = case(np.float64)
        inputs, dy = inputs[:2, :2, :2], dy[:2, :2, :2]

        def loss(normalized, kernel):
            x = conv.convolve(inputs, kernel, stride=1, padding=0)
            return (jnp.sin(normalized(x, kernel)) * dy).sum()

        def two(x, kernel):
            return normalize.normalize(x, scale, bias, EPSILON, shift)[0]

        def at_once(x, kernel):
            args = (x, inputs, kernel, scale, bias, shift)
            return projection.normalize(*args, EPSILON)[0]

        expected, found = (
            jax.jit(jax.hessian(partial(loss, function)))(kernel)
            for function in (two, at_once)
        )
        size = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, atol=1e-10 * size)


def test_in_bfloat16_it_is_as_near_the_truth():
    """Errors against float64 are below twice those of two separate layers."""
    with jax.enable_x64(True):
        arrays = case(jnp.bfloat16)
        truth = gradients(
            projection.by_output, *(np.asarray(a, np.float64) for a in arrays)
        )
        found = gradients(projection.by_factors, *arrays)
        plain = gradients(projection.by_output, *arrays)
        truth, found, plain = jax.device_get((truth, found, plain))
    for one, other, exact in zip(found, plain, truth, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        errors = [
            np.linalg.norm(np.asarray(a, np.float64) - exact) for a in (one, other)
        ]
        assert errors[0] < 2 * errors[1] + 1e-3 * np.linalg.norm(exact)
        assert errors[0] < 0.02 * np.linalg.norm(exact)


def test_blocks_give_batch_norm_its_factors_where_the_convolution_widens(monkeypatch):
    seen = []
    real = BatchNorm.__call__

    def call(self, x, *, train, factors=None):
        seen.append((self.name, factors is not None))
        return real(self, x, train=train, factors=factors)

    monkeypatch.setattr(BatchNorm, "__call__", call)
    model = create_model(
        "resnet50", num_classes=3, stem="cifar", widths=(4, 8), stage_sizes=(1, 1)
    )
    assert model.block is blocks.Bottleneck
    images = jnp.zeros((2, 8, 8, 3))
    variables = jax.eval_shape(
        lambda key: init_variables(model, (8, 8, 3), key=key), jax.random.key(0)
    )
    seen.clear()
    apply = partial(model.apply, train=True, mutable=["batch_stats"])
    jax.eval_shape(apply, variables, images)
    # Not with a stride of two: all input pixels would be read again.
    expected = {"bn3": [True, True], "downsample.1": [True, False]}
    for name in ("bn1", "bn2", "bn3", "downsample.1"):
        given = [has for layer, has in seen if layer == name]
        assert given == expected.get(name, [False] * len(given))


def test_layers_of_others_are_called_as_they_are():
    """Uses a function as a convolution, and a BatchNorm without further arguments."""

    class Plain(BatchNorm):
        def __call__(self, x, *, train):
            return super().__call__(x, train=train)

    def widen(features, size, stride=1, padding=0, name=None):
        return lambda x: jnp.tile(x, features // x.shape[-1])

    block = blocks.Bottleneck(4, conv=widen, norm=Plain)
    x = jnp.ones((2, 4, 4, 4))
    variables = block.init(jax.random.key(0), x, train=True)
    block.apply(variables, x, train=True, mutable=["batch_stats"])
