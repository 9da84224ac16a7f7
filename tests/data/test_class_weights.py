import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from configs import make_config
from parts import make_augment, make_loader, make_optimizer
from sklearn.utils.class_weight import compute_class_weight

from resnet_jax import data, fields, models, training
from resnet_jax.commands import train as command
from resnet_jax.data import class_weights
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.training import seeds
from resnet_jax.training import step as step_module
from resnet_jax.training.state import make_keys

NAMES = ("ant", "bee", "cat")
WEIGHTS = np.array([0.5, 3.0, 1.25], np.float32)
SHAPE = (8, 8, 3)


def skewed(counts=(9, 4, 3), seed=0):
    """Makes a data set with `counts` examples of each class."""
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (len(labels), *SHAPE), np.uint8)
    return data.Dataset(images, rng.permutation(labels), NAMES)


def splits_of(train):
    return data.Splits(train, train.take(slice(0)), train, {"classes": list(NAMES)})


def test_balanced_is_scikit_learns():
    train = skewed()
    found, splits = class_weights.load_class_weights("balanced", splits_of(train))
    expected = compute_class_weight(
        "balanced", classes=np.arange(3), y=np.asarray(train.labels)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert splits.identity["class weights"] == found.tolist()
    json.dumps(splits.identity)


def test_without_weights_nothing_is_known_of_them():
    splits = splits_of(skewed())
    assert class_weights.load_class_weights(None, splits) == (None, splits)


def test_a_class_without_examples_has_no_balanced_weight():
    with pytest.raises(ConfigError, match="^class_weights balanced: cat has no train"):
        class_weights.load_class_weights("balanced", splits_of(skewed((3, 4, 0))))


@pytest.mark.parametrize(
    "text",
    [
        '{"cat": 1.25, "ant": 0.5, "bee": 3}',
        "0.5\n3\n1.25\n",
        "\ufeff0.5\r\n\r\n 3.0 \r\n1.25",
    ],
)
def test_a_file_has_a_weight_for_each_class(tmp_path, text):
    path = tmp_path / "weights"
    path.write_bytes(text.encode())
    np.testing.assert_array_equal(class_weights.read(path, NAMES), WEIGHTS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"cannot be read \(No such file or directory\): set class_weights to"),
        (b"\xff\xfe\xff", "cannot be read .*codec can't decode"),
        ("{", "is not valid JSON .Expecting property name"),
        ("[" * 100_000, "is not valid JSON"),
        ("[1, 2, 3]", "is a JSON list: use {class name: weight}, or one number"),
        ('{"ant": 1, "bee": 1}', "has no weight for cat: list each class once .ant, b"),
        ('{"ant": 1, "bee": 1, "cat": 1, "dog": 1}', "has dog, which is not a class"),
        ('{"ant": 1, "bee": 1, "cat": 1, "ant": 2}', "has ant twice"),
        ('{"ant": {"bee": 1}}', "has no weight for bee"),
        ("1\n2\n", "has 2 lines for 3 classes: give one number per line"),
        ("", "has 0 lines for 3 classes"),
        (
            "1\ntwo\n3",
            "the weight of bee is 'two', but it must be finite and at least 0",
        ),
        ("1\n-1\n3", "the weight of bee is '-1', but it must be finite"),
        ("1\n1e39\n3", "the weight of bee is '1e39', but it must be finite"),
        ("1\nnan\n3", "the weight of bee is 'nan', but it must be finite"),
        ('{"ant": 1, "bee": true, "cat": 1}', "the weight of bee is 'True'"),
        ('{"ant": 1, "bee": null, "cat": 1}', "the weight of bee is 'None'"),
        ('{"ant": 1, "bee": 1' + "0" * 400 + ', "cat": 1}', "the weight of bee is '10"),
        ("0\n0\n0", "all class weights are 0"),
    ],
)
def test_a_fault_of_a_file_is_one_line(tmp_path, text, message):
    path = tmp_path / "weights"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message) as raised:
        class_weights.read(path, NAMES)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_a_folder_is_no_file_of_weights(tmp_path):
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\)"):
        class_weights.read(tmp_path, NAMES)


@functools.cache
def parts(model_name):
    model = models.create_model(model_name, num_classes=3, norm="none")
    tx = make_optimizer(lr=0.1)
    state = training.init_state(model, tx, SHAPE, key=make_keys(0).init)
    return model, tx, state


def step_of(model_name, weights=None, augment=None, **options):
    """Returns a training step and its state; takes options of train_step."""
    model, tx, state = parts(model_name)
    augment = augment or make_augment(SHAPE, 3)
    if weights is not None:
        augment = class_weights.weigh(augment, weights, is_mixed=False)
    make = functools.partial(training.train_step, model, tx, augment, **options)
    return jax.jit(functools.partial(make, key=make_keys(0).augment)), state


def batch_of(dataset, rows):
    return {"images": dataset.images[rows], "labels": dataset.labels[rows]}


def assert_alike(one, other, **tolerance):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_divided_by_the_weights_of_the_labels(smoothing, key):
    logits = jax.random.normal(key, (5, 3))
    labels = jnp.array([0, 1, 1, 2, 0])
    plain = make_augment(SHAPE, 3, label_smoothing=smoothing)
    weighted = class_weights.weigh(plain, WEIGHTS, is_mixed=False)
    images = np.zeros((5, *SHAPE), np.uint8)
    _, targets = weighted(key, images, labels)
    found = -(targets * jax.nn.log_softmax(logits)).sum(-1).mean()
    nll = -np.asarray(jax.nn.log_softmax(logits), np.float64)
    own = nll[np.arange(5), labels] * WEIGHTS[labels]
    every = (nll * WEIGHTS).sum(-1) / 3
    expected = ((1 - smoothing) * own + smoothing * every).sum() / WEIGHTS[labels].sum()
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_of_blended_images_the_sum_is_divided_by_their_number(key):
    plain = make_augment(SHAPE, 3, mixup=1.0)
    weighted = class_weights.weigh(plain, WEIGHTS, is_mixed=True)
    images, labels = np.zeros((4, *SHAPE), np.uint8), jnp.array([0, 1, 2, 1])
    targets, mixed = (make(key, images, labels)[1] for make in (weighted, plain))
    np.testing.assert_allclose(targets, mixed * WEIGHTS[None, :], rtol=1e-6)


@pytest.mark.process
def test_equal_weights_change_nothing_but_rounding(one_block):
    batch = batch_of(skewed(), slice(8))
    step, state = step_of(one_block)
    plain, sums = step(state, batch)
    step, state = step_of(one_block, np.full(3, 7.0, np.float32))
    weighted, same = step(state, batch)
    np.testing.assert_allclose(sums["loss"], same["loss"], rtol=1e-6)
    assert_alike(plain.params, weighted.params, atol=1e-6)


def test_a_class_of_weight_0_teaches_nothing(one_block):
    train = skewed()
    step, state = step_of(one_block, np.array([0.0, 1.0, 1.0], np.float32))
    batch = batch_of(train, train.labels == 0)
    before = jax.tree.map(np.asarray, state.params)
    after, sums = step(state, batch)
    assert sums["loss"] == 0
    assert_alike(after.params, before, rtol=0)


@pytest.mark.process
@pytest.mark.parametrize("num_rows", [8, 7])
def test_micro_batches_sum_to_the_weighted_batch(one_block, num_rows):
    labels = np.array([0, 1, 2, 1, 0, 1, 2, 1], np.int32)
    batch = batch_of(skewed(), slice(8)) | {"labels": labels}
    batch = {name: rows[:num_rows] for name, rows in batch.items()}
    found = []
    for grad_accum_steps in (1, 4):
        options = {"grad_accum_steps": grad_accum_steps}
        step, state = step_of(one_block, WEIGHTS, **options)
        after, sums = step(state, batch)
        found.append((after.params, sums))
    assert_alike(*found, rtol=1e-4, atol=1e-6)
    # The mean of the weighted means of the parts would be different.
    share = (
        WEIGHTS[batch["labels"][rows]].mean() for rows in (slice(0, 8, 4), slice(8))
    )
    assert abs(next(share) / next(share) - 1) > 0.5


@pytest.mark.process  # three runs
def test_without_weights_a_step_is_the_same_program(one_block, tmp_path, monkeypatch):
    """Without weights, train.py compiles the same program as before."""
    texts = []
    compile_step = training.compile_step

    def noted(step, state, loader, key):
        batch = next(iter(loader.examples()))
        source = loader.source(loader.splits.train)
        fed = functools.partial(step_module._fed, step)
        texts.append(jax.jit(fed).lower(state, batch, source, key).as_text())
        return compile_step(step, state, loader, key)

    monkeypatch.setattr(training, "compile_step", noted)
    for weights in (None, "balanced"):
        cfg = make_config(
            **{"dataset": "digits", "model": one_block, "max_train_samples": 40},
            **{"max_test_samples": 10, "max_steps": 1, "batch_size": 8},
            **{"workdir": str(tmp_path / str(weights)), "class_weights": weights},
        )
        command.main(cfg)
    monkeypatch.setattr(
        data, "load_class_weights", lambda given, splits: (None, splits)
    )
    command.main(make_config(**{**_flat(cfg), "workdir": str(tmp_path / "again")}))
    plain, weighted, again = texts
    assert plain == again and plain != weighted


def _flat(cfg):
    return {one.name: value for one, value in fields.flat(cfg)}


@pytest.mark.process
def test_a_resumed_run_must_have_the_same_weights(digits_run, tmp_path):
    path = tmp_path / "weights.txt"
    path.write_text("1\n" * 9 + "2\n")
    cfg, run_dir = digits_run(epochs=1, class_weights=str(path))
    path.write_text("1\n" * 9 + "3\n")
    with pytest.raises(
        ConfigError, match="was started with different class weights: rest"
    ):
        command.main(cfg)


@pytest.mark.process
def test_each_seed_s_loss_is_weighted(one_block):
    """Three seeds in one step have the losses of three steps."""
    train = skewed()
    model, tx, _ = parts(one_block)
    augment = class_weights.weigh(make_augment(SHAPE, 3), WEIGHTS, is_mixed=False)
    keys = seeds.make_keys(0, 2)
    state = training.init_state(model, tx, SHAPE, keys.init, each=jax.vmap)
    step = functools.partial(training.train_step, model, tx, augment)
    rows = np.stack([np.arange(6), np.arange(6, 12)])
    batch = batch_of(train, rows)
    _, sums = jax.jit(jax.vmap(step))(state, batch, keys.augment)
    for index in range(2):
        own = (seeds.take(tree, index) for tree in (state, batch, keys.augment))
        _, expected = jax.jit(step)(*own)
        np.testing.assert_allclose(sums["loss"][index], expected["loss"], rtol=1e-5)


def test_a_held_batch_is_weighted_by_its_own_labels(one_block):
    """Indices from the loader are converted to labels before weighting."""
    train = skewed()
    loader = make_loader(train, batch_size=8, held=True)
    model, tx, state = parts(one_block)
    augment = class_weights.weigh(make_augment(SHAPE, 3), WEIGHTS, is_mixed=False)
    step = training.make_train_step(model, tx, augment)
    key = make_keys(0).augment
    state = jax.device_put(jax.tree.map(jnp.array, state))
    batches = list(loader.train(0))
    rows = np.asarray(batches[0]["indices"])
    _, expected = jax.jit(step)(state, batch_of(train, rows), key)
    run, _ = training.compile_step(step, state, loader, key)
    _, found = run(state, batches[0])
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-6)
