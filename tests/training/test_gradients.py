import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from parts import init_variables
from tiers import by_tier

from resnet_jax import models
from resnet_jax.devices.mesh import make_mesh
from resnet_jax.training.step import loss_and_gradient


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def network(name, **options):
    model = models.create_model(name, num_classes=3, dtype="float64", **options)
    variables = init_variables(model, (8, 8, 3), key=jax.random.key(1))
    rng = np.random.default_rng(0)
    images = jnp.array(rng.normal(size=(7, 8, 8, 3)))
    targets = jax.nn.one_hot(jnp.arange(7) % 3, 3, dtype=jnp.float64)
    return model, variables, images, targets


@functools.cache
def compiled(model, **options):
    return jax.jit(partial(loss_and_gradient, model, **options))


def compute(model, variables, images, targets, **options):
    """Returns (loss, logits, new statistics, gradient)."""
    (loss, (logits, moved)), gradient = compiled(model, **options)(
        *(variables["params"], variables["batch_stats"], images, targets),
        jax.random.key(2),
    )
    return loss, logits, moved, gradient


def assert_trees_close(one, other):
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-10, atol=1e-13), one, other)


@pytest.mark.parametrize(
    "num_rows, num_parts", by_tier([(6, 3), (7, 3), (2, 9)], [(7, 3)])
)
def test_micro_batches_sum_to_the_batch_without_batch_norm(
    one_block, x64, num_rows, num_parts
):
    model, variables, images, targets = network(one_block, norm="none")
    rows = (images[:num_rows], targets[:num_rows])
    whole = compute(model, variables, *rows)
    parts = compute(model, variables, *rows, grad_accum_steps=num_parts)
    assert_trees_close(parts, whole)


@pytest.mark.parametrize("num_rows", by_tier([6, 7], [7]))
def test_batch_norm_sees_a_micro_batch_at_a_time(one_block, x64, num_rows):
    model, variables, images, targets = network(one_block)
    images, targets = images[:num_rows], targets[:num_rows]
    _, _, moved, gradient = compute(
        model, variables, images, targets, grad_accum_steps=2
    )
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


@pytest.mark.process
def test_micro_batches_have_dropout_of_their_own(one_block):
    model = models.create_model(one_block, num_classes=3, dropout=0.5, norm="none")
    variables = init_variables(model, (8, 8, 3), key=jax.random.key(1))
    image = jnp.ones((1, 8, 8, 3))
    images, targets = jnp.repeat(image, 4, 0), jnp.full((4, 3), 1 / 3)
    _, logits, _, _ = compute(model, variables, images, targets, grad_accum_steps=4)
    assert len({tuple(row.tolist()) for row in logits}) > 1


def test_on_one_device_its_own_statistics_are_the_batch_s(one_block, x64):
    model, variables, images, targets = network(one_block)
    local = compute(model, variables, images, targets, local_bn=make_mesh(1))
    assert_trees_close(local, compute(model, variables, images, targets))


@pytest.mark.process
def test_rematerialisation_changes_no_gradient(one_block, x64):
    model, variables, images, targets = network(one_block)
    again, *_ = network(one_block, remat=True)
    one, other = (
        compute(m, variables, images, targets, grad_accum_steps=2)
        for m in (model, again)
    )
    assert_trees_close(other, one)


def test_each_block_is_rematerialised(tiny, x64):
    again, variables, images, targets = network(tiny, remat=True)
    jaxpr = str(
        jax.make_jaxpr(lambda v: compute(again, v, images, targets)[3])(variables)
    )
    assert jaxpr.count("remat") >= 2  # one block each
