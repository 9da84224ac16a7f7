import contextlib
import functools
import io
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from configs import make_config
from parts import make_augment, make_loader, make_optimizer

from resnet_jax import data, fields, models, training
from resnet_jax.commands import evaluate, train
from resnet_jax.commands.evaluate import EvaluateConfig
from resnet_jax.data import stream
from resnet_jax.data.loader import Loader
from resnet_jax.errors import ConfigError, StoppedError
from resnet_jax.report import curves
from resnet_jax.run import restore
from resnet_jax.training import evaluation, metrics, seeds
from resnet_jax.training.state import make_keys
from resnet_jax.weights.pretrained import load_pretrained


# Whole runs below also compare seeds that are computed one after another.
@pytest.mark.process
@pytest.mark.parametrize(
    "each", [pytest.param(seeds.unrolled, marks=pytest.mark.process), jax.vmap]
)
def test_each_seed_s_step_is_its_own(one_block, each):
    """Compares each seed with a step of its own, as on CPUs and on accelerators."""
    model = models.create_model(one_block, num_classes=3)
    shape, init = (8, 8, 3), training.init_state
    tx = make_optimizer(optimizer="muon", lr=0.05, weight_decay=0.01)
    prepare = make_augment(shape, 3, crop_padding=2, flip="random", mixup=1.0)
    step = training.make_train_step(model, tx, prepare, ema_decay=0.9)
    keys = training.make_keys(7, 3)
    state = init(model, tx, shape, key=keys.init, has_ema=True, each=each)
    images = np.random.default_rng(0).integers(0, 256, (3, 6, *shape), np.uint8)
    labels = (np.arange(18, dtype=np.int32) % 3).reshape(3, 6)
    batch = {"images": images, "labels": labels}
    together, losses, of_all = state, [], jax.jit(each(step))
    for _ in range(3):
        together, sums = of_all(together, batch, keys.augment)
        losses.append(sums["loss"])
    for index, seed in enumerate(range(7, 10)):
        own = make_keys(seed)
        alone = init(model, tx, shape, key=own.init, has_ema=True)
        for number in range(3):
            mine = seeds.take(batch, index)
            alone, sums = jax.jit(step)(alone, mine, own.augment)
            np.testing.assert_allclose(losses[number][index], sums["loss"], rtol=1e-4)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
            seeds.take(together, index),
            alone,
        )
    assert len(set(np.asarray(losses[0]).tolist())) == 3


def lines_of(run_dir):
    text = (Path(run_dir) / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def state_of(run_dir, step):
    with restore.reading(run_dir) as manager:
        return manager.restore(step)["state"]


_TRAINED = []


@pytest.fixture
def three(digits_run):
    """A run of seeds 5 to 7, trained only once; tests add nothing but a report."""
    options = {
        "num_train": 120,
        "epochs": 2,
        "crop_padding": 1,
        "validation_split": 0.2,
    }
    options |= {"schedule": "cosine", "ema_decay": 0.5}
    # Programs for batches of a single size are compiled only once.
    options |= {"max_train_samples": 75, "batch_size": 20, "eval_batch_size": 15}
    digits_run.use(options["num_train"])
    if not _TRAINED:
        _TRAINED[:] = digits_run(**options, seed=5, num_seeds=3)
    return *_TRAINED, options


@pytest.mark.process  # whole runs of three networks
def test_a_run_of_seeds_is_the_runs_of_each(three, digits_run):
    cfg, run_dir, options = three
    lines, together = lines_of(run_dir), state_of(run_dir, 6)
    assert together["step"].tolist() == [6, 6, 6]
    for index in range(3):
        _, alone = digits_run(**options, seed=5 + index)
        jax.tree.map(
            lambda a, b, i=index: np.testing.assert_allclose(a[i], b, atol=2e-4),
            together,
            state_of(alone, 6),
        )
        for line, own in zip(lines, lines_of(alone), strict=True):
            for name in ("train", "val", "test"):
                there = line[f"{name}_loss_seeds"][index]
                assert there == pytest.approx(own[f"{name}_loss"], rel=1e-3)
    values = lines[-1]["test_accuracy_seeds"]
    assert lines[-1]["test_accuracy"] == pytest.approx(np.mean(values))
    assert lines[-1]["test_accuracy_std"] == pytest.approx(np.std(values, ddof=1))


@pytest.mark.process
def test_a_run_of_seeds_resumes_to_the_bit(three, monkeypatch):
    cfg, run_dir, _ = three
    workdir = f"{cfg.run.workdir}-cut"
    whole, served = Loader.train, []

    def cut(*args):
        for batch in whole(*args):
            served.append(batch)
            if len(served) == 5:
                raise StoppedError("cut")
            yield batch

    again = fields.replace(cfg, workdir=workdir, save_every_steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(Loader, "train", cut)
        with pytest.raises(StoppedError):
            train.main(again)
    assert len(lines_of(workdir)) == 1
    train.main(again)
    jax.tree.map(
        np.testing.assert_array_equal,
        state_of(run_dir, 6),
        state_of(Path(workdir), 6),
    )
    for a, b in zip(lines_of(run_dir), lines_of(workdir), strict=True):
        assert a["train_loss_seeds"] == b["train_loss_seeds"]


@pytest.mark.process
def test_several_steps_a_call_are_the_same(three, digits_run):
    """An epoch has three steps: two run together, then a single one."""
    _, run_dir, options = three
    _, called = digits_run(**options, seed=5, num_seeds=3, steps_per_call=2)
    states = state_of(run_dir, 6), state_of(called, 6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), *states)


def test_each_seed_has_an_order_of_its_own():
    whole = data.Dataset(np.zeros((11, 8, 8, 3), np.uint8), np.arange(11), ("a",))
    order = seeds.make_order(5, 3)
    loader = make_loader(whole, order=order, epochs=2, held=True, batch_size=4)
    for epoch in (0, 1):
        batches = [np.asarray(batch["indices"]) for batch in loader.train(epoch)]
        assert [rows.shape for rows in batches] == [(3, 4), (3, 4), (3, 3)]
        for index, rows in enumerate(np.concatenate(batches, 1)):
            expected = data.epoch_order(11, seed=5 + index, epoch=epoch)
            np.testing.assert_array_equal(rows, expected)


@functools.cache
def scored(run_dir):
    """Returns (figures, printed text) of an evaluation with test-time augmentation."""
    output, text = run_dir / "found.json", io.StringIO()
    with contextlib.redirect_stdout(text):
        evaluate.main(EvaluateConfig(str(run_dir), output=str(output), tta=True))
    return json.loads(output.read_text()), text.getvalue()


@pytest.mark.process  # other tests compare the step and the scores
def test_a_run_as_on_accelerators_is_the_same(three, digits_run, monkeypatch):
    _, unrolled, options = three
    expected, _ = scored(unrolled)
    used = []

    def vmapped(num_seeds, mesh):
        used.append(num_seeds)
        return jax.vmap

    monkeypatch.setattr(training, "make_each", vmapped)
    _, run_dir = digits_run(**options, seed=5, num_seeds=3)
    jax.tree.map(  # the seeds differ by .1 or more
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3),
        *(state_of(path, 6) for path in (unrolled, run_dir)),
    )
    for line, other in zip(lines_of(unrolled), lines_of(run_dir), strict=True):
        assert line["val_loss_seeds"] == pytest.approx(other["val_loss_seeds"], 1e-3)
    found, _ = scored(run_dir)
    assert used == [3, 3]
    for name in ("tta", "ensemble"):
        assert found[name]["loss"] == pytest.approx(expected[name]["loss"], 1e-3)


@pytest.mark.process
def test_seeds_share_pretrained_weights_and_draw_heads_of_their_own(
    three, digits_run, tmp_path
):
    folder = tmp_path / "exported"
    evaluate.main(EvaluateConfig(str(three[1]), seed=6, export=str(folder)))
    given = load_pretrained(folder).variables["params"]
    _, run_dir = digits_run(
        pretrained=str(folder), reset_head=True, freeze="backbone",
        backbone_bn="frozen", num_seeds=2, max_steps=1, clip_grad=1e-6,
    )  # fmt: skip
    params = state_of(run_dir, 1)["params"]
    heads = params.pop("fc")["kernel"]
    assert not np.allclose(heads[0], heads[1], atol=1e-3)  # a step is far smaller
    given = {name: values for name, values in given.items() if name != "fc"}
    for index in (0, 1):
        kept = jax.tree.map(lambda x, i=index: x[i], params)
        jax.tree.map(np.testing.assert_array_equal, kept, given)


def test_seeds_want_images_in_memory():
    unread = stream.Images(np.zeros, np.arange(4), (8, 8, 3))
    dataset = data.Dataset(unread, np.zeros(4, np.int32), ("a",))
    loader = make_loader(dataset, order=seeds.make_order(0, 2))
    with pytest.raises(ConfigError, match="num_seeds needs images that fit"):
        next(loader.train(0))


@pytest.mark.process  # whole runs of three networks
def test_evaluation_scores_each_seed_and_their_ensemble(three, tmp_path):
    _, run_dir, _ = three
    output = tmp_path / "found.json"
    found, text = scored(run_dir)
    logged = lines_of(run_dir)[-1]
    each = [found["seeds"][str(seed)]["accuracy"] for seed in (5, 6, 7)]
    assert each == pytest.approx(logged["test_accuracy_seeds"])
    assert found["accuracy"] == pytest.approx(np.mean(each))
    assert found["accuracy_std"] == pytest.approx(np.std(each, ddof=1))
    for name in ("balanced_accuracy", "macro_f1"):
        own = [one[name] for one in found["seeds"].values()]
        assert found[name] == pytest.approx(np.mean(own))
    for line in ("seed 6: Acc@1", "mean of 3 seeds: Acc@1", "ensemble: Acc@1"):
        assert f"\n{line}" in text and f"augmentation: {line}" in text
    assert text.splitlines()[-1].endswith("n 120")
    for seed, one in found["seeds"].items():
        augmented = found["tta"]["seeds"][seed]["loss"]
        assert augmented != pytest.approx(one["loss"], rel=1e-4)
    for seed, accuracy in zip((5, 6, 7), each, strict=True):
        options = EvaluateConfig(str(run_dir), seed=seed, output=str(output))
        evaluate.main(options)
        one = json.loads(output.read_text())
        assert one["accuracy"] == pytest.approx(accuracy) and "seeds" not in one


@pytest.mark.process  # whole runs of three networks
def test_a_seed_s_report_shows_its_own_figures(three, monkeypatch):
    _, run_dir, _ = three
    drawn = []
    draw = curves.plot_history

    def watched(records, *paths):
        drawn.extend(records)
        return draw(records, *paths)

    monkeypatch.setattr(curves, "plot_history", watched)
    evaluate.main(EvaluateConfig(str(run_dir), seed=6, report=True))
    assert len(drawn) == 2
    for record, line in zip(drawn, lines_of(run_dir), strict=True):
        assert record["test_accuracy"] == line["test_accuracy_seeds"][1]
        assert record["train_loss"] == line["train_loss_seeds"][1]


def test_the_means_of_one_seed_are_its_own():
    sums = {"loss": np.float64(6.0), "correct": np.float64(3), "count": np.float64(4)}
    found = seeds.means(sums, "test")
    assert found == {"test_loss": 1.5, "test_accuracy": 0.75}
    assert found == metrics.means(sums, "test")


def test_the_means_of_several_seeds_come_with_their_spread_and_values():
    counts = {"correct": np.array([1.0, 2.0, 4.0]), "count": np.array([4.0, 4.0, 4.0])}
    found = seeds.means({"loss": np.array([2.0, 4.0, 12.0]), **counts}, "val")
    assert found == {
        "val_loss": 1.5,
        "val_loss_std": pytest.approx(1.75**0.5),  # of .5, 1 and 3: divided by n - 1
        "val_loss_seeds": [0.5, 1.0, 3.0],
        "val_accuracy": pytest.approx(7 / 12),
        "val_accuracy_std": pytest.approx((7 / 48) ** 0.5),
        "val_accuracy_seeds": [0.25, 0.5, 1.0],
    }
    json.dumps(found)


@pytest.mark.process
@pytest.mark.parametrize("each", [seeds.unrolled, jax.vmap])
def test_an_ensemble_is_the_mean_of_probabilities(key, each):
    class Given:
        def apply(self, variables, images, *, train):
            return variables

    logits = 5 * jax.random.normal(key, (3, 8, 4))
    labels = np.arange(8, dtype=np.int32) % 4
    batch = {"images": np.zeros(8), "labels": labels, "mask": np.ones(8, np.float32)}

    class State:
        scored = logits

    sums = evaluation.eval_step(
        *(Given(), lambda images: images, State, batch),
        each=each,
        combine=seeds.with_ensemble,
    )
    probabilities = np.asarray(jax.nn.softmax(logits)).mean(0)
    right = probabilities.argmax(1) == labels
    each = (np.asarray(logits).argmax(-1) == labels).sum(-1)
    np.testing.assert_array_equal(sums["correct"], [*each, right.sum()])
    assert 0 < right.sum() < 8
    own = probabilities[np.arange(8), labels]
    np.testing.assert_allclose(sums["loss"][-1], -np.log(own).sum(), rtol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"log_gradients": True}, "num_seeds cannot be combined with log_gradients"),
        ({"sync_bn": False}, "num_seeds needs --sync-bn"),
        ({"num_seeds": 0}, "num_seeds 0 is too small"),
        ({"seed": 2**32 - 1}, "seed 4294967296, the last of 2, is too large"),
    ],
)
def test_what_does_not_go_with_seeds_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make_config(**{"num_seeds": 2, **options})


@pytest.mark.process  # whole runs of three networks
@pytest.mark.parametrize(
    "options, message",
    [
        ({"seed": 8}, "has no seed 8, only seeds 5 to 7"),
        ({"report": True}, "--report needs one network, but .* has seeds 5 to 7"),
        ({"export": "x"}, "--export needs one network"),
    ],
)
def test_what_is_of_one_network_wants_its_seed(three, options, message):
    with pytest.raises(ConfigError, match=message):
        evaluate.main(EvaluateConfig(str(three[1]), **options))
