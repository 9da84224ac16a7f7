"""On GPUs, a block keeps one feature map per convolution, with the same gradient."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.layers import keep
from resnet_jax.models import create_model
from resnet_jax.training import init_variables


def gradient(dtype, platform, **options):
    model = create_model("resnet8", num_classes=3, dtype=dtype, **options)
    images = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype(np.float32)
    variables = init_variables(model, (8, 8, 3), key=jax.random.key(0))

    def loss(params):
        collections = {**variables, "params": params}
        apply = partial(model.apply, train=True, mutable=["batch_stats"])
        return jnp.square(apply(collections, images)[0]).mean()

    with keep.compiling_for(platform):
        traced = jax.jit(jax.grad(loss)).trace(variables["params"])
    return traced.lower().compile()(variables["params"]), str(traced.jaxpr)


@pytest.mark.process
def test_the_gradient_is_the_same_up_to_the_rounding_of_bfloat16():
    (plain, text), (saving, other), (exact, _) = (
        gradient(dtype, platform)
        for dtype, platform in (
            ("bfloat16", "tpu"),
            ("bfloat16", "cuda"),
            ("float32", "cpu"),
        )
    )
    assert "remat" not in text and "remat" in other
    usual, saved, expected = (
        np.concatenate([np.ravel(leaf).astype(np.float32) for leaf in leaves])
        for leaves in map(jax.tree.leaves, (plain, saving, exact))
    )
    # Recomputed values are rounded at different points.
    away = np.linalg.norm(usual - expected)
    assert 0 < away < 0.1 * np.linalg.norm(expected)
    assert np.linalg.norm(saved - expected) < 1.5 * away


@pytest.mark.process
@pytest.mark.parametrize(
    ("dtype", "platform"), [("float32", "cuda"), ("bfloat16", "cpu")]
)
def test_elsewhere_all_is_kept(dtype, platform):
    assert "remat" not in gradient(dtype, platform)[1]


def test_of_a_block_the_convolutions_outputs_are_kept():
    """No other feature map is kept."""

    def block(x, kernel):
        y = keep.keep(jnp.tanh(x @ keep.keep(kernel.astype(x.dtype))))
        return jnp.where(y > 0, nn.relu(jnp.cos(y)), 0).sum()

    kept = jax.checkpoint(block, policy=keep.policy)
    x, kernel = jnp.ones((4, 5, 6, 3)), jnp.ones((3, 2))
    _, pull = jax.vjp(kept, x, kernel)
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(pull) if leaf.ndim > 1)
    assert shapes == [(3, 2), (4, 5, 6, 2), (4, 5, 6, 3)]
