import functools
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parts import make_augment, make_loader, make_optimizer, make_preprocess

from resnet_jax import data, models, training
from resnet_jax.data import augment, erasing
from resnet_jax.training import evaluation
from resnet_jax.training import step as step_module
from resnet_jax.training.state import make_keys

GOLDEN = (
    "The golden {name} step gives other numbers. Either the arithmetic, the order of "
    "random draws or the initialisation changed, and then every recorded result and "
    "every old checkpoint's continuation changed with it: say so in the commit and in "
    "RESULTS.md; or it was not meant to, and this is the bug."
)

SHAPE = (16, 16, 3)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, *SHAPE), np.uint8)
    return {"images": images, "labels": np.arange(8, dtype=np.int32) % 4}


@functools.cache
def make(tiny, optimizer="sgd", lr=0.1, **augmentation):
    model = models.create_model(tiny, num_classes=4)
    tx = make_optimizer(optimizer=optimizer, lr=lr, weight_decay=1e-3)
    prepare = make_augment(SHAPE, 4, **augmentation)
    keys = make_keys(0)
    state = training.init_state(model, tx, SHAPE, key=keys.init)
    step = jax.jit(partial(training.train_step, model, tx, prepare))
    return model, state, partial(step, key=keys.augment)


def flat(tree):
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_keys_have_one_purpose_each():
    keys = make_keys(0)
    data_ = {tuple(jax.random.key_data(key).tolist()) for key in keys}
    assert len(data_) == len(keys)
    again = make_keys(0)
    assert all((a == b).all() for a, b in zip(keys, again, strict=True))


@pytest.mark.process
def test_nothing_in_a_step_is_drawn_from_another_s_key(tiny, batch, monkeypatch):
    drawn = {}

    class ReachedError(Exception):
        pass

    def watch(module, name, at, is_last=False):
        function = getattr(module, name)

        def watched(*args, **options):
            drawn[name] = args[at]
            if is_last:  # the network is slow operation by operation
                raise ReachedError
            return function(*args, **options)

        monkeypatch.setattr(module, name, watched)

    for name in ("random_crop", "random_flip", "mix"):
        watch(augment, name, 0)
    watch(erasing, "cutout", 0)
    watch(erasing, "random_erasing", 0)
    watch(step_module, "loss_and_gradient", 5, is_last=True)
    options = {"crop_padding": 1, "flip": "random", "cutout": 2, "mixup": 1.0}
    options["random_erasing"] = 0.5
    _, state, step = make(tiny, **options)
    with jax.disable_jit(), pytest.raises(ReachedError):
        step(state, batch)
    found = {}
    for name, key in drawn.items():  # each key, and those derived from it
        children = [jax.random.fold_in(key, number) for number in range(8)]
        found[name] = {tuple(jax.random.key_data(k).tolist()) for k in [key, *children]}
    assert len(found) == 6
    for one, other in itertools.combinations(found, 2):
        assert not found[one] & found[other], (one, other)


@pytest.mark.parametrize(
    ("name", "lr", "losses", "moved"),
    [
        ("sgd", 0.1, (1.428386, 1.414860), 0.0322574),
        ("adam", 1e-3, (1.428386, 1.417938), 0.0374155),
        ("muon", 1e-3, (1.428386, 1.417562), 0.0124126),
    ],
)
def test_golden_step(tiny, batch, name, lr, losses, moved):
    _, state, step = make(tiny, name, lr, crop_padding=2, flip="random")
    after, sums = step(state, batch)
    _, second = step(after, batch)
    distance = sum(
        np.square(a - b).sum()
        for a, b in zip(
            jax.tree.leaves(after.params), jax.tree.leaves(state.params), strict=True
        )
    )
    found = [float(sums["loss"]) / 8, float(second["loss"]) / 8, float(distance) ** 0.5]
    np.testing.assert_allclose(
        found, [*losses, moved], rtol=2e-5, err_msg=GOLDEN.format(name=name)
    )


def test_a_step_moves_parameters_statistics_and_count(tiny, batch):
    _, state, step = make(tiny)
    after, sums = step(state, batch)
    assert int(after.step) == 1 and float(sums["count"]) == 8
    for part in ("params", "batch_stats"):
        before, now = flat(getattr(state, part)), flat(getattr(after, part))
        assert before.keys() == now.keys()
        assert all((before[name] != now[name]).any() for name in before)


def test_a_step_is_pure(tiny, batch):
    _, state, step = make(tiny, crop_padding=2, flip="random")
    before = flat(state)
    one, two = flat(step(state, batch)), flat(step(state, batch))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert all(
        np.array_equal(before[name], value) for name, value in flat(state).items()
    )


@pytest.mark.process
def test_the_update_is_minus_lr_times_the_gradient(tiny, batch):
    model, state, step = make(tiny, lr=0.5)
    after, sums = step(state, batch)
    x = (batch["images"].astype(np.float32) / 255 - 0.5) / 0.25

    def loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, _ = model.apply(variables, x, train=True, mutable=["batch_stats"])
        return -jax.nn.log_softmax(logits)[jnp.arange(8), batch["labels"]].mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(state.params)
    np.testing.assert_allclose(sums["loss"] / 8, value, rtol=1e-5)
    expected = jax.tree.map(lambda p, g: p - 0.5 * (g + 1e-3 * p), state.params, grads)
    expected, found = flat(expected), flat(after.params)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-5)


@pytest.mark.process
def test_augmentation_differs_from_step_to_step(tiny, batch):
    _, state, step = make(tiny, lr=0.0, crop_padding=4)
    after, first = step(state, batch)
    _, second = step(after, batch)
    assert float(first["loss"]) != float(second["loss"])


def test_a_small_set_can_be_learnt_by_heart(tiny, batch):
    _, state, step = make(tiny, "adam", 1e-2)
    for _ in range(60):
        state, sums = step(state, batch)
    assert float(sums["correct"]) == 8
    assert float(sums["loss"]) / 8 < 0.05


def test_evaluation_leaves_the_state_and_counts_once(tiny, batch):
    model, state, _ = make(tiny)
    step = jax.jit(partial(evaluation.eval_step, model, make_preprocess(SHAPE)))
    dataset = data.Dataset(batch["images"], batch["labels"], ("a", "b", "c", "d"))
    loaders = [
        make_loader(dataset, held=False, eval_batch_size=n) for n in (1, 3, 8, 20)
    ]
    results = [
        evaluation.evaluate(step, loader.evaluation, state, dataset)
        for loader in loaders
    ]
    for sums in results:
        assert sums["count"] == 8
        assert sums["correct"] == results[0]["correct"]
        np.testing.assert_allclose(sums["loss"], results[0]["loss"], rtol=1e-6)
        np.testing.assert_array_equal(sums["class_count"], [2, 2, 2, 2])


def test_evaluation_that_loses_an_example_raises(tiny, batch):
    model, state, _ = make(tiny)
    step = jax.jit(partial(evaluation.eval_step, model, make_preprocess(SHAPE)))
    dataset = data.Dataset(batch["images"], batch["labels"], ("a", "b", "c", "d"))
    loader = make_loader(dataset, held=False, eval_batch_size=4)

    def lossy(dataset):
        return loader.evaluation(dataset.take(slice(7)))

    with pytest.raises(RuntimeError, match="scored 7 examples of 8"):
        evaluation.evaluate(step, lossy, state, dataset)


@pytest.mark.parametrize("held", [True, False])
def test_what_is_predicted_is_the_model_s_own_in_order(tiny, batch, held):
    """Compares all logits, whether the last batch is padded or not."""
    model, state, _ = make(tiny)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (7, *SHAPE), np.uint8)
    dataset = data.Dataset(images, np.zeros(7, np.int32), ("a", "b", "c", "d"))
    preprocess = make_preprocess(SHAPE)
    logits = jax.jit(lambda x: model.apply(state.variables, preprocess(x), train=False))
    expected = np.asarray(logits(images))
    apart = np.abs(expected[:, None] - expected).max(-1) + np.eye(7)
    assert apart.min() > 1e-2  # so that none can be mistaken for another
    for size in (2, 3, 7, 20):  # 1, 2, 0 and 0 rows are padding
        loader = make_loader(dataset, held=held, eval_batch_size=size)
        whole = evaluation.predict(model, preprocess, loader, state.variables, dataset)
        assert whole.shape == (7, 4)
        np.testing.assert_allclose(whole, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.process
def test_the_average_is_of_parameters_and_statistics(tiny, batch):
    model, _, _ = make(tiny)
    tx, prepare = make_optimizer(lr=0.1), make_augment(SHAPE, 4)
    keys = make_keys(0)
    state = training.init_state(model, tx, SHAPE, key=keys.init, has_ema=True)
    step = jax.jit(
        partial(training.train_step, model, tx, prepare, ema_decay=0.3),
        donate_argnums=0,
    )
    average = jax.device_get(state.variables)
    for count in range(4):
        state, _ = step(state, batch, keys.augment)
        keep = min(0.3, (1 + count) / (10 + count))
        average = jax.tree.map(
            lambda a, v: keep * a + (1 - keep) * np.asarray(v),  # noqa: B023
            average,
            state.variables,
        )
        for one, other in zip(
            *map(jax.tree.leaves, (state.scored, average)), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert any(
        (a != b).any()
        for a, b in zip(
            *map(jax.tree.leaves, (state.scored, state.variables)), strict=True
        )
    )


def test_what_is_scored_is_the_average(tiny, batch):
    model, state, _ = make(tiny)
    masked = {**batch, "mask": np.ones(8, np.float32)}
    other = jax.tree.map(lambda x: x + 0.5, state.variables)
    score = partial(evaluation.eval_step, model, make_preprocess(SHAPE))
    plain = score(state, masked)["loss"]
    averaged = score(state.replace(ema=other), masked)["loss"]
    assert averaged == score(state.replace(**other), masked)["loss"] != plain


def test_views_are_shifts_by_a_pixel_and_mirrored_and_add_to_one(batch):
    x = jnp.asarray(batch["images"], jnp.float32)
    views = evaluation.flips_and_shifts(x)
    assert [share for share, _ in views] == [0.25, 0.125, 0.125] * 2
    (_, whole), (_, up), (_, down) = views[:3]
    np.testing.assert_array_equal(whole, x)
    np.testing.assert_array_equal(up[:, 1:, 1:], x[:, :-1, :-1])
    np.testing.assert_array_equal(up[:, 0], up[:, 1])
    np.testing.assert_array_equal(down[:, :-1, :-1], x[:, 1:, 1:])
    np.testing.assert_array_equal(down[:, -1], down[:, -2])
    for (_, view), (_, mirrored) in zip(views[:3], views[3:], strict=True):
        np.testing.assert_array_equal(mirrored, view[:, :, ::-1])


def test_logits_of_the_views_are_averaged(tiny, batch):
    model, state, _ = make(tiny)
    preprocess = make_preprocess(SHAPE)
    masked = {**batch, "mask": np.ones(8, np.float32)}

    def views(x):
        return [(0.75, x), (0.25, x[:, :, ::-1])]

    found = evaluation.eval_step(model, preprocess, state, masked, views=views)
    x, targets = preprocess(batch["images"]), jax.nn.one_hot(batch["labels"], 4)
    one, other = (
        model.apply(state.variables, v, train=False) for v in (x, x[:, :, ::-1])
    )
    logits = 0.75 * one + 0.25 * other
    loss = -(jax.nn.log_softmax(logits) * targets).sum()
    np.testing.assert_allclose(found["loss"], loss, rtol=1e-5)
    plain = evaluation.eval_step(model, preprocess, state, masked)
    assert abs(float(plain["loss"] - loss)) > 1e-4
