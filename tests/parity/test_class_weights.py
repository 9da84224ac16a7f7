"""Compares the weighted loss with torch.nn.CrossEntropyLoss(weight=)."""

import jax
import numpy as np
import pytest
from parts import make_augment

from resnet_jax.data import class_weights
from resnet_jax.training import step

torch = pytest.importorskip("torch", reason="parity needs torch")

pytestmark = pytest.mark.parity

WEIGHTS = np.array([0.3, 2.5, 1.0, 7.0], np.float32)
NUM_ROWS, SHAPE = 12, (8, 8, 3)


class Logits:
    """A network whose parameters are its logits, for torch to use as well."""

    def apply(self, variables, images, **options):
        return variables["params"][: len(images)], {}


def ours(logits, labels, **augmentation):
    """Returns (loss, gradient of the logits, unweighted targets) of a training step."""
    plain = make_augment(SHAPE, len(WEIGHTS), **augmentation)
    is_mixed = bool({"mixup", "cutmix"} & augmentation.keys())
    augment = class_weights.weigh(plain, WEIGHTS, is_mixed=is_mixed)
    key = jax.random.key(0)
    images = np.random.default_rng(0).integers(0, 256, (NUM_ROWS, *SHAPE), np.uint8)
    x, targets = augment(key, images, labels)
    (loss, _), gradient = step.loss_and_gradient(Logits(), logits, {}, x, targets, key)
    return float(loss), np.asarray(gradient), np.array(plain(key, images, labels)[1])


def theirs(logits, targets, smoothing=0.0):
    x = torch.tensor(logits, requires_grad=True)
    criterion = torch.nn.CrossEntropyLoss(
        weight=torch.tensor(WEIGHTS), label_smoothing=smoothing
    )
    loss = criterion(x, torch.tensor(targets))
    loss.backward()
    return loss.item(), x.grad.numpy()


@pytest.fixture(params=range(3))
def drawn(request):
    """Returns (logits, labels) of a batch that lacks one class."""
    rng = np.random.default_rng(request.param)
    logits = 3 * rng.normal(size=(NUM_ROWS, len(WEIGHTS))).astype(np.float32)
    return logits, rng.integers(0, 3, NUM_ROWS).astype(np.int32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_the_loss_is_torchs(drawn, smoothing):
    logits, labels = drawn
    loss, gradient, _ = ours(logits, labels, label_smoothing=smoothing)
    expected, moved = theirs(logits, labels.astype(np.int64), smoothing)
    assert abs(loss - expected) <= 1e-6 * max(1, abs(expected))
    np.testing.assert_allclose(gradient, moved, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("blend", ["mixup", "cutmix"])
def test_of_blended_images_the_loss_is_that_of_torchs_distributions(
    drawn, blend, smoothing
):
    """For targets that are distributions, torch divides by the number of images."""
    logits, labels = drawn
    options = {blend: 1.0, "label_smoothing": smoothing}
    loss, gradient, _ = ours(logits, labels, **options)
    mixed = ours(logits, labels, **{blend: 1.0})[2]  # torch smooths these itself
    assert ((mixed > 0) & (mixed < 1)).any()
    expected, moved = theirs(logits, mixed, smoothing)
    assert abs(loss - expected) <= 1e-6 * max(1, abs(expected))
    np.testing.assert_allclose(gradient, moved, atol=1e-6)
