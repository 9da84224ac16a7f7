from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parts import init_variables, make_augment, make_optimizer

from resnet_jax import models, training
from resnet_jax.errors import ConfigError
from resnet_jax.models import torch_names
from resnet_jax.training import freezing

SHAPE = (8, 8, 3)


@pytest.fixture
def model(tiny):
    return models.create_model(tiny, num_classes=3)


def train(model, freeze, backbone_bn, steps=3, compiles=True, **options):
    """Returns the leaves before and after some steps, by PyTorch name."""
    trainable = freezing.make_trainable(freeze, model, SHAPE)
    tx = make_optimizer(lr=0.1, weight_decay=0.1, trainable=trainable, **options)
    state = before = training.init_state(model, tx, SHAPE, key=jax.random.key(0))
    # A parameter of -0., whose sign would not survive the addition of 0.
    bias = before.params["layer1.0"]["bn1"]["bias"]
    before.params["layer1.0"]["bn1"]["bias"] = jnp.full_like(bias, -0.0)
    augment = make_augment(SHAPE, 3)
    step = jax.jit(
        training.make_train_step(model, tx, augment, trainable, backbone_bn=backbone_bn)
    )
    rng = np.random.default_rng(0)
    for _ in range(steps):
        images = rng.integers(0, 256, (6, *SHAPE), np.uint8)
        batch = {"images": images, "labels": np.arange(6, dtype=np.int32) % 3}
        with jax.disable_jit(not compiles):
            state, _ = step(state, batch, jax.random.key(0))

    def flat(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {torch_names.torch_name(path): np.asarray(leaf) for path, leaf in leaves}

    return tuple({**flat(s.params), **flat(s.batch_stats)} for s in (before, state))


def changed(before, after):
    return {k for k in before if before[k].tobytes() != after[k].tobytes()}


def running(names_):
    return {name for name in names_ if "running_" in name}


def test_without_freezing_everything_moves(model):
    before, after = train(model, "none", "update")
    assert changed(before, after) == before.keys()


def test_a_frozen_backbone_moves_its_statistics_alone(model):
    before, after = train(model, "backbone", "update")
    assert changed(before, after) == {"fc.weight", "fc.bias"} | running(before)


def test_with_frozen_batch_norm_not_one_bit_of_the_backbone_moves(model):
    before, after = train(model, "backbone", "frozen")
    assert changed(before, after) == {"fc.weight", "fc.bias"}


def test_a_frozen_parameter_has_no_moments_and_no_update(model):
    trainable = freezing.make_trainable("backbone", model, SHAPE)
    tx = make_optimizer(optimizer="adam", lr=0.1, weight_decay=0.1, trainable=trainable)
    params = init_variables(model, SHAPE, key=jax.random.key(0))["params"]
    state = tx.init(params)
    head = sum(leaf.size for leaf in jax.tree.leaves(params["fc"]))
    moments = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim)
    assert moments == 2 * head
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
    moved = {
        name
        for name, part in updates.items()
        if any(bool(leaf.any()) for leaf in jax.tree.leaves(part))
    }
    assert moved == {"fc"}


@pytest.mark.process
def test_a_frozen_negative_zero_keeps_its_sign_without_a_compiler_too(one_block):
    """-0. + 0. is 0.; compilers happen to remove the addition of 0."""
    model = models.create_model(one_block, num_classes=3)
    before, after = train(model, "backbone", "frozen", steps=1, compiles=False)
    assert changed(before, after) == {"fc.weight", "fc.bias"}


@pytest.mark.process
def test_a_regular_expression_freezes_what_it_finds(model):
    before, after = train(model, r"^(conv1|bn1|layer1)\.", "frozen")
    frozen = {n for n in before if n.startswith(("conv1", "bn1", "layer1"))}
    assert changed(before, after) == before.keys() - frozen
    before, after = train(model, r"^(conv1|bn1|layer1)\.", "update")
    assert changed(before, after) == before.keys() - (frozen - running(frozen))


def test_frozen_layers_normalize_by_their_running_statistics(model):
    """Compares training with inference, and with the statistics of the batch."""
    variables = init_variables(model, SHAPE, key=jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (6, *SHAPE))
    apply = partial(model.apply, variables, images, mutable=["batch_stats"])
    expected, _ = apply(train=False)
    with freezing.inference_batch_norm(lambda name: name.startswith("fc")):
        found, moved = apply(train=True)
    np.testing.assert_array_equal(found, expected)
    jax.tree.map(
        np.testing.assert_array_equal, moved["batch_stats"], variables["batch_stats"]
    )
    with freezing.inference_batch_norm(None):
        trained, _ = apply(train=True)
    assert not np.allclose(trained, expected)


@pytest.mark.process
def test_a_backbone_learns_at_a_rate_of_its_own(model):
    lr_scale = freezing.make_lr_scale(0.1, model)
    assert lr_scale("fc.bias") == 1.0 and lr_scale("layer1.0.bn1.weight") == 0.1
    assert freezing.make_lr_scale(1.0, model) is None
    before, slow = train(model, "none", "update", steps=1, lr_scale=lr_scale)
    _, fast = train(model, "none", "update", steps=1)
    for name, start in before.items():
        if name in running(before):
            continue
        factor = 1.0 if name.startswith("fc.") else 0.1
        np.testing.assert_allclose(
            slow[name] - start, factor * (fast[name] - start), atol=1e-7
        )


@pytest.mark.parametrize(
    ("freeze", "part"),
    [
        ("layer9", "matches no parameter: names include bn1.bias"),
        (".", "matches every parameter"),
        ("layer1(", "is not a regular expression"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(model, freeze, part):
    with pytest.raises(ConfigError, match=part):
        freezing.make_trainable(freeze, model, SHAPE)
