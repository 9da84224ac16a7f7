"""Every named network in inference: logits and every stage's features."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnet_jax

pytest.importorskip("torchvision", reason="parity needs torch and torchvision")
import torch
import twins

pytestmark = [pytest.mark.optimized, pytest.mark.parity]

SLOW = (  # resnet50 and resnext50_32x4d cover these
    *("resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2"),
    *("resnext101_32x8d", "resnext101_64x4d"),
)
CASES = [
    pytest.param(name, stem, marks=[pytest.mark.slow] * (name in SLOW))
    for name in resnet_jax.list_models()
    for stem in (
        ("imagenet", "cifar")
        if name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
        else (None,)
    )
]


def ours(model, variables, images):
    # Not compiled as a whole, because deep networks repeat a few shapes.
    logits, state = model.apply(
        variables, jnp.asarray(images), train=False, mutable=["intermediates"]
    )
    found = {k: np.asarray(v[0], np.float64) for k, v in state["intermediates"].items()}
    return {**found, "logits": np.asarray(logits, np.float64)}


@pytest.mark.parametrize(("name", "stem"), CASES)
def test_features_and_logits(name, stem):
    twin, make = twins.make_pair(name, stem)
    twin.eval()
    side = 64 if stem == "imagenet" else 32
    # By chance, rounding errors of 20 logits in two programs differ by a factor of 2.5,
    # those of 80 by up to 1.3 (resnet8, three draws). Other networks have more layers,
    # or layers that use Winograd for more images.
    shape = (8 if name == "resnet8" else 2, side, side, 3)
    images = np.random.default_rng(0).normal(size=shape)
    images = images.astype(np.float32)  # the same numbers in both precisions
    exact = twins.stages_of(twins.double(twin), twins.nchw(images, torch.float64))
    theirs = twins.stages_of(twin, twins.nchw(images, torch.float32))

    with jax.enable_x64(True):
        model = make(jnp.float64)
        variables = twins.variables_of(twins.double(twin), model, side)
        found = ours(model, variables, images.astype(np.float64))
    assert found.keys() == exact.keys() and len(found) > 3
    for stage, expected in exact.items():
        assert found[stage].shape == expected.shape
        error = np.abs(found[stage] - expected).max() / np.abs(expected).max()
        assert error <= 1e-10, stage

    # Its layers are large enough for Winograd, which rounds three times as much.
    most = 4 if name == "wrn28_10" else 2
    model = make(jnp.float32)
    found = ours(model, twins.variables_of(twin, model, side), images)
    for stage, expected in exact.items():
        norm = partial(np.linalg.norm, axis=None)
        error, own = norm(found[stage] - expected), norm(theirs[stage] - expected)
        assert error <= most * own, stage


def test_the_momentum_and_epsilon_of_a_network():
    twin, _ = twins.make_pair("basic", "cifar")
    for module in twin.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum, module.eps = 0.03, 0.01
    twin.double().train()
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3))
    with jax.enable_x64(True):
        model = resnet_jax.ResNet(
            resnet_jax.BasicBlock,
            (1,) * 4,
            widths=twins.WIDTHS,
            stem="cifar",
            num_classes=10,
            bn_momentum=0.03,
            bn_eps=0.01,
            dtype=jnp.float64,
        )
        variables = twins.variables_of(twin, model, 32)
        logits, moved = model.apply(
            variables, jnp.asarray(images), train=True, mutable=["batch_stats"]
        )
        expected = twin(twins.nchw(images, torch.float64)).detach().numpy()
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-10)
        after = twins.variables_of(twin, model, 32)["batch_stats"]
        for found, own in zip(
            jax.tree.leaves(moved["batch_stats"]), jax.tree.leaves(after), strict=True
        ):
            np.testing.assert_allclose(found, own, rtol=0, atol=1e-10)
