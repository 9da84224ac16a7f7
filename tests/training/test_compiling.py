import contextlib
import functools
from functools import partial

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from parts import make_augment, make_loader, make_optimizer
from tiers import by_tier

from resnet_jax import data, fields, models, training
from resnet_jax.data import stream
from resnet_jax.devices import mesh as devices
from resnet_jax.recipes import RECIPES
from resnet_jax.training import step as step_module
from resnet_jax.training.state import make_keys


def traced_program(cfg):
    """Traces the recipe's program for accelerators, with only shapes as arguments.

    It runs twenty steps one after another, on images that the device holds.
    """
    shape = data.image_shape(cfg.data)
    model = models.create(cfg.model, num_classes=10)
    preprocess = data.make_preprocess(cfg.augment, shape)
    augment = data.make_augment(cfg.augment, preprocess, num_classes=10)
    trainable = training.make_trainable(cfg.transfer.freeze, model, shape)
    tx = training.make_optimizer(
        cfg.optim,
        training.make_schedule(cfg.optim, total_steps=1000),
        trainable=trainable,
        lr_scale=training.make_lr_scale(cfg.transfer.backbone_lr_scale, model),
    )
    mesh = AbstractMesh((4,), (devices.AXIS,), axis_types=(AxisType.Auto,))
    step = training.make_train_step(
        *(model, tx, augment, trainable),
        backbone_bn=cfg.transfer.backbone_bn,
        grad_accum_steps=cfg.devices.grad_accum_steps,
        local_bn=None if cfg.devices.sync_bn else mesh,
    )
    state = jax.eval_shape(
        lambda key: training.init_state(model, tx, shape, key=key), jax.random.key(0)
    )
    source = {
        "images": jax.ShapeDtypeStruct((50_000, 32, 32, 3), np.uint8),
        "labels": jax.ShapeDtypeStruct((50_000,), np.int32),
    }
    batch = {"indices": jax.ShapeDtypeStruct((20, cfg.data.batch_size), np.int32)}
    program = jax.jit(partial(step_module._fed, step), donate_argnums=0)
    return program.trace(state, batch, source, jax.random.key(0))


def lowered(cfg):
    """Returns the texts of the recipe's program for TPUs and NVIDIA GPUs."""
    traced = traced_program(cfg)
    for platform in ("tpu", "cuda"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        for name in ("convolution", "while", "gather"):
            assert f"stablehlo.{name}" in text
        assert "custom_call" not in text
        yield text


@pytest.mark.parametrize(
    "name",
    by_tier(RECIPES, set(RECIPES) - {"fast", "digits"}, slow=["imagenet"]),
)
def test_every_recipe_s_program_lowers_for_tpu_and_gpu(name):
    assert len(list(lowered(RECIPES[name][1]))) == 2


@pytest.mark.parametrize(
    "options, sign",
    [
        ({"dtype": "bfloat16"}, "xbf16>"),
        ({"grad_accum_steps": 2}, "64x32x32x3xf32"),
        ({"sync_bn": False}, "sdy.manual_computation"),
        ({"remat": True}, "optimization_barrier"),
    ],
)
def test_so_does_what_an_option_makes_of_it(options, sign):
    cfg = fields.replace(RECIPES["resnet20"][1], model="resnet8", **options)
    for text in lowered(cfg):
        assert sign in text


@pytest.mark.process
def test_bfloat16_is_of_the_arithmetic_alone(tiny):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 8, 8, 3), np.uint8)
    batch = {"images": images, "labels": np.arange(8, dtype=np.int32) % 3}
    model = models.create_model(tiny, num_classes=3, dtype="bfloat16")
    tx, prepare = make_optimizer(lr=0.05), make_augment((8, 8, 3), 3)
    keys = make_keys(0)
    state = training.init_state(model, tx, (8, 8, 3), key=keys.init)
    step = jax.jit(training.make_train_step(model, tx, prepare))
    assert "bf16" in step.lower(state, batch, keys.augment).as_text()
    losses = []
    for _ in range(10):
        state, sums = step(state, batch, keys.augment)
        losses.append(float(sums["loss"]))
    kept = (state.params, state.batch_stats, state.opt_state, sums)
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(kept)}
    assert dtypes - {"int32"} == {"float32"}
    inputs = np.zeros((8, 8, 8, 3), np.float32)
    apply = partial(model.apply, train=True, mutable=["batch_stats"])
    logits, moved = jax.eval_shape(apply, state.variables, inputs)
    assert logits.dtype == np.float32
    assert {leaf.dtype.name for leaf in jax.tree.leaves(moved)} == {"float32"}
    assert losses[-1] < 0.9 * losses[0]


@functools.cache
def compiled_run(one_block, *, held, steps=1, streamed=False):
    """Returns (loss shapes, losses, last state) of six steps, with `steps` per call.

    The epoch has five batches of 8 and one of 3.
    """
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (43, 8, 8, 3), np.uint8)
    labels = rng.integers(0, 3, 43).astype(np.int32)
    unread = stream.Images(images.__getitem__, np.arange(43), (8, 8, 3))
    train = data.Dataset(unread if streamed else images, labels, ("a", "b", "c"))
    sizes = {"batch_size": 8, "steps_per_call": steps, "workers": 0}
    loader = make_loader(train, seed=1, held=held, **sizes)
    model = models.create_model(one_block, num_classes=3)
    tx = make_optimizer(lr=0.05)
    prepare = make_augment((8, 8, 3), 3, flip="random")
    keys = make_keys(0)
    state = training.init_state(model, tx, (8, 8, 3), key=keys.init)
    state, key = devices.replicate(loader.mesh, (state, keys.augment))
    assert len(list(loader.examples())) == (3 if steps > 1 and not streamed else 2)
    step = training.make_train_step(model, tx, prepare)
    step, seconds = training.compile_step(step, state, loader, key)
    assert seconds > 0
    losses, calls = [], []
    with compiles_nothing():
        for batch in loader.train(0):
            state, sums = step(state, batch)
            calls.append(sums["loss"].shape)
            losses += np.asarray(sums["loss"]).reshape(-1).tolist()
    loader.close()
    return calls, losses, state


@contextlib.contextmanager
def compiles_nothing():
    compiled = []

    def note(event, seconds, **more):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(more)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    assert compiled == []


def test_what_is_compiled_is_counted():
    with pytest.raises(AssertionError), compiles_nothing():
        jax.jit(lambda x: x * 3.25 - 1.5)(np.ones(7, np.float32))


@pytest.mark.process
@pytest.mark.parametrize("held", [True, False])
def test_steps_of_one_call_are_steps(one_block, held):
    calls, losses, state = compiled_run(one_block, held=held)
    assert calls == [()] * 6
    calls, same_losses, same_state = compiled_run(one_block, held=held, steps=2)
    assert calls == [(2,), (2,), (), ()]
    np.testing.assert_allclose(same_losses, losses, rtol=1e-5)
    assert int(state.step) == int(same_state.step) == 6


@pytest.mark.process
def test_streamed_steps_are_those_of_images_in_memory(one_block):
    pytest.importorskip("grain")
    _, losses, state = compiled_run(one_block, held=True)
    found = compiled_run(one_block, held=False, steps=2, streamed=True)
    calls, same_losses, same_state = found
    assert calls == [()] * 6
    assert same_losses == losses
    for one, other in zip(*map(jax.tree.leaves, (state, same_state)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_calls_begin_at_multiples_wherever_an_epoch_is_entered():
    num = 7 * 8 + 5
    whole = data.Dataset(np.zeros((num, 1, 1, 3), np.uint8), np.zeros(num), ("a",))
    loader = make_loader(whole, held=True, steps_per_call=3, batch_size=8)

    def calls(start, stop):
        return list(loader._calls(range(start, stop)))

    assert calls(0, 8) == [[0, 1, 2], [3, 4, 5], [6], [7]]
    assert calls(3, 8) == [[3, 4, 5], [6], [7]]
    assert calls(1, 6) == [[1], [2], [3, 4, 5]]
    assert calls(0, 5) == [[0, 1, 2], [3], [4]]
