import jax
import numpy as np
import optax
import pytest

from resnet_jax import data, models, training
from resnet_jax.config import AugmentConfig, TransferConfig
from resnet_jax.models import whitening
from resnet_jax.weights import begin


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (130, 8, 8, 3), np.uint8)


def test_a_network_is_fitted_to_the_training_images(images, monkeypatch):
    """The fit uses the requested number of images, preprocessed in chunks."""
    monkeypatch.setattr(whitening, "_IMAGES", 120)
    dataset = data.Dataset(images, np.zeros(130, np.int32), ("a", "b"))
    preprocess = data.make_preprocess(AugmentConfig(normalize="half"), (8, 8, 3))
    model = models.create_model("resnet9", num_classes=2, width=4, whiten=True)
    state = training.init_state(
        model, optax.sgd(0.1), (8, 8, 3), key=jax.random.key(0), has_ema=True
    )
    fitted = begin.load_into(
        state, model, "resnet9", TransferConfig(), preprocess, dataset
    )
    few = data.subset(dataset, 120).images
    expected = whitening.whitening_kernel([np.asarray(preprocess(few))], 3)
    for variables in (fitted.variables, fitted.ema):
        kernel = variables["batch_stats"]["whiten"]["kernel"]
        np.testing.assert_allclose(kernel, expected, rtol=1e-3, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, fitted.params, state.params)
