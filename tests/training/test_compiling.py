import contextlib
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from resnet_jax.training.compiling import compile_step

from resnet_jax import data, models, training
from resnet_jax.data import augment, stream
from resnet_jax.data.loader import Feed
from resnet_jax.devices import mesh as parallel
from resnet_jax.recipes import RECIPES
from resnet_jax.training import compiling, freezing, optim


def traced_program(cfg):
    """The recipe's program as accelerators run it, of arguments that are but shapes.

    Twenty steps one after the other, their pictures taken from those that are held.
    """
    shape = data.describe("cifar10", image_size=cfg.image_size)
    model = models.create_model(cfg.model, num_classes=10, **cfg.architecture)
    normalized = {**cfg.preprocessing, "normalization": cfg.normalize or "imagenet"}
    prepare = augment.make_augment(num_classes=10, **normalized, **cfg.augmentation)
    trainable = freezing.make_trainable(cfg.freeze, model, shape.image_shape)
    schedule = optim.make_schedule(total_steps=1000, **cfg.scheduling)
    tx = optim.make_optimizer(
        schedule=schedule,
        trainable=trainable,
        lr_scale=freezing.make_lr_scale(cfg.backbone_lr_scale, model),
        **cfg.optimization,
    )
    mesh = AbstractMesh((4,), (parallel.AXIS,), axis_types=(AxisType.Auto,))
    step = training.make_train_step(
        *(model, tx, prepare, trainable),
        backbone_bn=cfg.backbone_bn,
        accumulate=cfg.accumulate,
        local_bn=mesh if cfg.bn_scope == "local" else None,
    )
    state = jax.eval_shape(
        lambda key: training.init_state(model, tx, shape.image_shape, key=key),
        jax.random.key(0),
    )
    source = {
        "images": jax.ShapeDtypeStruct((50_000, 32, 32, 3), np.uint8),
        "labels": jax.ShapeDtypeStruct((50_000,), np.int32),
    }
    batch = {"indices": jax.ShapeDtypeStruct((20, cfg.batch_size), np.int32)}
    program = jax.jit(partial(compiling._fed, step), donate_argnums=0)
    return program.trace(state, batch, source, jax.random.key(0))


def lowered(cfg):
    """The texts of the recipe's program for TPUs and for NVIDIA's GPUs."""
    traced = traced_program(cfg)
    for platform in ("tpu", "cuda"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        for name in ("convolution", "while", "gather"):
            assert f"stablehlo.{name}" in text
        assert "custom_call" not in text
        yield text


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_s_program_lowers_for_tpu_and_gpu(name):
    assert len(list(lowered(RECIPES[name][1]))) == 2


@pytest.mark.parametrize(
    "fields, sign",
    [
        ({"dtype": "bfloat16"}, "xbf16>"),
        ({"accumulate": 2}, "64x32x32x3xf32"),
        ({"bn_scope": "local"}, "sdy.manual_computation"),
        ({"remat": True}, "optimization_barrier"),
    ],
)
def test_so_does_what_an_option_makes_of_it(fields, sign):
    cfg = replace(RECIPES["resnet20"][1], model="resnet8", **fields)
    for text in lowered(cfg):
        assert sign in text


def test_bfloat16_is_of_the_arithmetic_alone(tiny):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 8, 8, 3), np.uint8)
    batch = {"images": images, "labels": np.arange(8, dtype=np.int32) % 3}
    model = models.create_model(tiny, num_classes=3, dtype="bfloat16")
    schedule = optim.make_schedule("constant", lr=0.05, total_steps=9)
    tx = optim.make_optimizer("sgd", schedule)
    prepare = augment.make_augment(num_classes=3, normalization="half")
    keys = training.make_keys(0)
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


def compiled_run(tiny, feed, together, *, streamed=False):
    """(losses, the last state) of six steps of the tiny network."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (43, 8, 8, 3), np.uint8)
    labels = rng.integers(0, 3, 43).astype(np.int32)
    unread = stream.Pictures(images.__getitem__, np.arange(43), (8, 8, 3))
    train = data.Dataset(unread if streamed else images, labels, ("a", "b", "c"))
    model = models.create_model(tiny, num_classes=3)
    schedule = optim.make_schedule("constant", lr=0.05, total_steps=9)
    tx = optim.make_optimizer("sgd", schedule)
    prepare = augment.make_augment(num_classes=3, normalization="half", flip=True)
    keys = training.make_keys(0)
    state = training.init_state(model, tx, (8, 8, 3), key=keys.init)
    state, key = parallel.replicate(feed.mesh, (state, keys.augment))
    sizes = data.batch_sizes(len(train), 8)  # five of 8 and one of 3
    examples = list(feed.examples(train, sizes))
    assert len(examples) == (3 if together > 1 else 2)
    step, seconds = compile_step(
        training.make_train_step(model, tx, prepare),
        *(state, examples, feed.source(train), key),
    )
    assert seconds > 0
    losses, calls = [], []
    with compiles_nothing():
        for batch in feed.train(train, sizes, seed=1, epoch=0, steps=range(6)):
            state, sums = step(state, batch)
            calls.append(sums["loss"].shape)
            losses += np.asarray(sums["loss"]).reshape(-1).tolist()
    feed.close()
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


@pytest.mark.parametrize("held", [True, False])
def test_steps_of_one_call_are_steps(tiny, held):
    mesh = parallel.make_mesh(1)
    calls, losses, state = compiled_run(tiny, Feed(mesh, held=held), 1)
    assert calls == [()] * 6
    two = Feed(mesh, held=held, steps_per_call=2)
    calls, same_losses, same_state = compiled_run(tiny, two, 2)
    assert calls == [(2,), (2,), (), ()]
    np.testing.assert_allclose(same_losses, losses, rtol=1e-5)
    assert int(state.step) == int(same_state.step) == 6


def test_streamed_steps_are_those_of_pictures_in_memory(tiny):
    pytest.importorskip("grain")
    mesh = parallel.make_mesh(1)
    _, losses, state = compiled_run(tiny, Feed(mesh, held=True), 1)
    feed = Feed(mesh, held=False, steps_per_call=2)
    calls, same_losses, same_state = compiled_run(tiny, feed, 1, streamed=True)
    assert calls == [()] * 6
    assert same_losses == losses
    for one, other in zip(*map(jax.tree.leaves, (state, same_state)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_calls_begin_at_multiples_wherever_an_epoch_is_entered():
    feed = Feed(parallel.make_mesh(1), held=True, steps_per_call=3)
    sizes = [8] * 7 + [5]

    def calls(start, stop):
        return list(feed._calls(sizes, range(start, stop)))

    assert calls(0, 8) == [[0, 1, 2], [3, 4, 5], [6], [7]]
    assert calls(3, 8) == [[3, 4, 5], [6], [7]]
    assert calls(1, 6) == [[1], [2], [3, 4, 5]]
    assert calls(0, 5) == [[0, 1, 2], [3], [4]]
