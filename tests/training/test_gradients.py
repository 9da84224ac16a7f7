from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from resnet_jax import models, training
from resnet_jax.devices import mesh as parallel
from resnet_jax.training import gradients


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def network(tiny, **options):
    model = models.create_model(tiny, num_classes=3, dtype="float64", **options)
    variables = training.init_variables(model, (8, 8, 3), key=jax.random.key(1))
    rng = np.random.default_rng(0)
    images = jnp.array(rng.normal(size=(7, 8, 8, 3)))
    targets = jax.nn.one_hot(jnp.arange(7) % 3, 3, dtype=jnp.float64)
    return model, variables, images, targets


def compute(model, variables, images, targets, **options):
    """(loss, logits, moved statistics, gradient)."""
    call = jax.jit(partial(gradients.loss_and_gradient, model, **options))
    (loss, (logits, moved)), gradient = call(
        *(variables["params"], variables["batch_stats"], images, targets),
        jax.random.key(2),
    )
    return loss, logits, moved, gradient


def assert_trees_close(one, other):
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-10, atol=1e-13), one, other)


@pytest.mark.parametrize("num_rows, accumulate", [(6, 3), (6, 2), (7, 3), (2, 9)])
def test_micro_batches_sum_to_the_batch_without_batch_norm(
    tiny, x64, num_rows, accumulate
):
    model, variables, images, targets = network(tiny, norm="none")
    rows = (images[:num_rows], targets[:num_rows])
    whole = compute(model, variables, *rows)
    parts = compute(model, variables, *rows, accumulate=accumulate)
    assert_trees_close(parts, whole)


@pytest.mark.parametrize("num_rows", [6, 7])
def test_batch_norm_sees_a_micro_batch_at_a_time(tiny, x64, num_rows):
    model, variables, images, targets = network(tiny)
    images, targets = images[:num_rows], targets[:num_rows]
    _, _, moved, gradient = compute(model, variables, images, targets, accumulate=2)
    state, total = variables, None
    for i in (0, 1):  # a loop that calls backward() for each
        part = (images[i::2], targets[i::2])
        _, _, stats, found = compute(model, state, *part)
        state = {**state, "batch_stats": stats}
        share = len(part[0]) / num_rows
        found = jax.tree.map(lambda x, share=share: share * x, found)
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    assert_trees_close(gradient, total)
    assert_trees_close(moved, state["batch_stats"])


def test_micro_batches_have_dropout_of_their_own(tiny):
    model = models.create_model(tiny, num_classes=3, dropout=0.5, norm="none")
    variables = training.init_variables(model, (8, 8, 3), key=jax.random.key(1))
    image = jnp.ones((1, 8, 8, 3))
    images, targets = jnp.repeat(image, 4, 0), jnp.full((4, 3), 1 / 3)
    _, logits, _, _ = compute(model, variables, images, targets, accumulate=4)
    assert len({tuple(row.tolist()) for row in logits}) > 1


def test_on_one_device_its_own_statistics_are_the_batch_s(tiny, x64):
    model, variables, images, targets = network(tiny)
    mesh = parallel.make_mesh(1)
    local = compute(model, variables, images, targets, local_bn=mesh)
    assert_trees_close(local, compute(model, variables, images, targets))


def test_rematerialisation_changes_no_gradient(tiny, x64):
    model, variables, images, targets = network(tiny)
    again, *_ = network(tiny, remat=True)
    one, other = (
        compute(m, variables, images, targets, accumulate=2) for m in (model, again)
    )
    assert_trees_close(other, one)
    jaxpr = str(
        jax.make_jaxpr(lambda v: compute(again, v, images, targets)[3])(variables)
    )
    assert jaxpr.count("remat") >= 2  # a block each
