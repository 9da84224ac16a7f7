from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from parts import init_variables

from resnet_jax import models, training
from resnet_jax.config import AugmentConfig
from resnet_jax.data import make_preprocess
from resnet_jax.models import whitening


def smooth(count: int, side: int) -> np.ndarray:
    """Returns images with correlated neighboring pixels and channels."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, side + 2, side + 2, 1)) + 0.3 * rng.normal(
        size=(count, side + 2, side + 2, 3)
    )
    x = x[:, 2:] + x[:, 1:-1] + x[:, :-2]
    x = x[:, :, 2:] + x[:, :, 1:-1] + x[:, :, :-2]
    return np.clip(128 + 25 * x, 0, 255).astype(np.uint8)


def test_patches_become_white():
    images = smooth(200, 12)
    model = models.create_model("resnet9", num_classes=10, width=4, whiten=True)
    init = partial(training.init_variables, model, (12, 12, 3))
    variables = jax.jit(init)(key=jax.random.key(0))
    preprocess = make_preprocess(AugmentConfig(normalize="half"), (12, 12, 3))
    x = preprocess(images)
    asked = []

    def inputs(count):
        asked.append(count)
        yield np.asarray(x[:150])
        yield np.asarray(x[150:])

    fitted = model.fit_to_images(variables, inputs)
    assert asked == [5000]

    @jax.jit
    def outputs(variables):
        return model.apply(
            variables,
            x,
            train=False,
            capture_intermediates=lambda module, _: module.name == "whiten",
        )[1]["intermediates"]["whiten"]["__call__"][0]

    def whitened(variables):
        found = outputs(variables)
        inside = np.asarray(found[:, 1:-1, 1:-1]).reshape(-1, 27)
        return inside.T @ inside / len(inside)

    before, after = whitened(variables), whitened(fitted)
    assert np.abs(before - np.diag(np.diag(before))).max() > 0.5
    np.testing.assert_allclose(after, np.diag(np.diag(after)), atol=2e-3)
    assert (np.diag(after) < 1.001).all() and np.diag(after)[:3].min() > 0.99


def test_an_unfitted_layer_copies_the_patches(key):
    model = models.create_model("resnet9", num_classes=10, width=4, whiten=True)
    variables = init_variables(model, (8, 8, 3), key=key)
    kernel = variables["batch_stats"]["whiten"]["kernel"]
    np.testing.assert_array_equal(kernel.reshape(27, 27), jnp.eye(27))


def test_the_principal_axes_are_numpy_s():
    x = np.random.default_rng(0).normal(size=(50, 6, 6, 2)) @ [[2.0, 1.0], [0.0, 0.5]]
    kernel = whitening.whitening_kernel([x[:20], x[20:]], 1).reshape(2, 2)
    pixels = x.reshape(-1, 2)
    left, singular, axes = np.linalg.svd(
        pixels / len(pixels) ** 0.5, full_matrices=False
    )
    expected = axes.T / np.sqrt(singular**2 + 5e-4)
    np.testing.assert_allclose(np.abs(kernel), np.abs(expected), rtol=1e-8)


def test_other_networks_learn_nothing_of_the_images():
    def inputs(count):
        raise AssertionError("it asked for images")

    for name, options in (("resnet8", {}), ("resnet9", {"width": 4})):
        model = models.create_model(name, num_classes=10, **options)
        shapes = training.variable_shapes(model, (32, 32, 3))
        assert model.fit_to_images(shapes, inputs) is shapes
