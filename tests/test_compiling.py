import jax
import numpy as np
import pytest

from resnet_jax import augment, data, freezing, models, optim, parallel, training
from resnet_jax.compiling import compile_step
from resnet_jax.feed import Feed
from resnet_jax.recipes import RECIPES


def recipe_step(cfg):
    """(the recipe's training step, shapes of its arguments), as train.py makes them."""
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
    step = training.make_train_step(
        model, tx, prepare, trainable, backbone_bn=cfg.backbone_bn
    )
    state = jax.eval_shape(
        lambda key: training.init_state(model, tx, shape.image_shape, key=key),
        jax.random.key(0),
    )
    batch = {
        "images": jax.ShapeDtypeStruct((cfg.batch_size, 32, 32, 3), np.uint8),
        "labels": jax.ShapeDtypeStruct((cfg.batch_size,), np.int32),
    }
    return step, (state, batch, jax.random.key(0))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_s_step_lowers_for_tpu_and_gpu(name):
    step, args = recipe_step(RECIPES[name][1])
    traced = jax.jit(step).trace(*args)
    for platform in ("tpu", "cuda"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "stablehlo.convolution" in text
        assert "custom_call" not in text


def compiled_run(tiny, feed, together):
    """(losses, the last state) of six steps of the tiny network."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (43, 8, 8, 3), np.uint8)
    labels = rng.integers(0, 3, 43).astype(np.int32)
    train = data.Dataset(images, labels, ("a", "b", "c"))
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
    for batch in feed.train(train, sizes, seed=1, epoch=0, steps=range(6)):
        state, sums = step(state, batch)
        calls.append(sums["loss"].shape)
        losses += np.asarray(sums["loss"]).reshape(-1).tolist()
    return calls, losses, state


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


def test_calls_begin_at_multiples_wherever_an_epoch_is_entered():
    feed = Feed(parallel.make_mesh(1), held=True, steps_per_call=3)
    sizes = [8] * 7 + [5]

    def calls(start, stop):
        return list(feed._calls(sizes, range(start, stop)))

    assert calls(0, 8) == [[0, 1, 2], [3, 4, 5], [6], [7]]
    assert calls(3, 8) == [[3, 4, 5], [6], [7]]
    assert calls(1, 6) == [[1], [2], [3, 4, 5]]
    assert calls(0, 5) == [[0, 1, 2], [3], [4]]
