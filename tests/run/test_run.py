import json
import os
import shutil
import signal
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from configs import make_config
from safetensors.numpy import save_file
from tiers import by_tier

from resnet_jax import fields, models
from resnet_jax.commands import train
from resnet_jax.config import Config
from resnet_jax.data import sources
from resnet_jax.data.dataset import Dataset
from resnet_jax.data.loader import Loader
from resnet_jax.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    NonFiniteLossError,
    StoppedError,
)
from resnet_jax.recipes import RECIPES
from resnet_jax.run import restore, run, session
from resnet_jax.run.checkpoints import Checkpoints
from resnet_jax.run.directory import read_run
from resnet_jax.run.session import open_run
from resnet_jax.training import evaluation, metrics, state
from resnet_jax.training import step as step_module
from resnet_jax.weights import convert

TIMES = {"seconds", "images_per_second", "compile_seconds", "startup_seconds"}


@pytest.fixture
def small(monkeypatch):
    """Replaces the digits with (train, test) of three classes and 8x8 pixels."""

    def replace(train_split, test_split):
        parts = (train_split, test_split)
        source = sources.Source((8, 8, 3), lambda cfg: (3, lambda: parts))
        monkeypatch.setitem(sources.SOURCES, "digits", source)
        return parts

    return replace


@pytest.fixture
def parts(small):
    """36 training and 10 test images."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (46, 8, 8, 3), np.uint8)
    labels = (np.arange(46) % 3).astype(np.int32)
    whole = Dataset(images, labels, ("a", "b", "c"))
    return small(whole.take(slice(36)), whole.take(slice(36, None)))


@pytest.fixture
def cfg(one_block, parts, tmp_path) -> Config:
    """Three epochs of five steps, the last of each on a partial batch."""
    return make_config(
        model=one_block,
        dataset="digits",
        epochs=3,
        batch_size=8,
        eval_batch_size=4,
        optimizer="sgd",
        schedule="cosine",
        lr=0.05,
        crop_padding=1,
        flip="random",
        workdir=str(tmp_path / "run"),
    )


change = fields.replace


def fetch_raises(error, monkeypatch):
    """Makes the digits unavailable."""

    def load():
        raise error

    source = sources.Source((8, 8, 3), lambda cfg: (3, load))
    monkeypatch.setitem(sources.SOURCES, "digits", source)


def records(cfg):
    with open(f"{cfg.run.workdir}/metrics.jsonl", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def variables(cfg, which="last"):
    model = models.create_model(cfg.model.model, num_classes=3)
    template = state.init_variables(model, (8, 8, 3), key=jax.random.key(0))
    return restore.load_variables(read_run_dir(cfg), which, template)[:2]


def read_run_dir(cfg):
    return Path(cfg.run.workdir)


def assert_same_end(one, two):
    assert records(one) == records(two)
    (a, step_a), (b, step_b) = variables(one), variables(two)
    assert step_a == step_b
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_run_leaves_config_metrics_and_checkpoints(cfg, capsys):
    train.main(cfg)
    assert read_run(read_run_dir(cfg)) == change(cfg, normalize="cifar10")
    lines = records(cfg)
    assert [line["step"] for line in lines] == [5, 10, 15]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert lines[0].keys() == {
        "epoch",
        "step",
        "lr",
        "train_loss",
        "train_accuracy",
        "test_loss",
        "test_accuracy",
    }
    assert lines[-1]["lr"] < lines[0]["lr"] < 0.05
    assert capsys.readouterr().out.count("\n") == 3
    assert variables(cfg)[1] == 15


def test_a_finished_run_says_so(cfg, capsys):
    train.main(cfg)
    before = records(cfg)
    capsys.readouterr()
    train.main(cfg)
    assert "is finished: 15 of 15 steps done" in capsys.readouterr().out
    assert records(cfg) == before


class Killed(BaseException):
    """Simulates the end of a process, which no handler catches."""


@pytest.mark.process
def test_a_line_without_its_checkpoint_is_written_again(cfg, tmp_path):
    cfg = change(cfg, schedule="constant")
    alone = change(cfg, workdir=str(tmp_path / "alone"))
    train.main(alone)
    train.main(change(cfg, max_steps=5))
    # Killed between the line of the second epoch and its checkpoint, and in the middle
    # of another line.
    with open(f"{cfg.run.workdir}/metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"epoch": 2, "step": 10}\n{"epoch": 3, "st')
    train.main(change(cfg, max_steps=15, override=True))
    assert_same_end(cfg, alone)


@pytest.mark.process
@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.process)],
)
def test_a_signal_in_the_middle_of_an_epoch_saves_and_the_run_ends_the_same(
    cfg, monkeypatch, tmp_path, number
):
    alone = change(cfg, workdir=str(tmp_path / "alone"))
    train.main(alone)
    batches, seen = Loader.train, []

    def signalling(*args, **options):
        for batch in batches(*args, **options):
            seen.append(batch)
            if len(seen) == 8:
                os.kill(os.getpid(), number)
            yield batch

    monkeypatch.setattr(Loader, "train", signalling)
    with pytest.raises(StoppedError, match=f"{number.name}, saved at step 8 of 15"):
        train.main(cfg)
    assert [line["step"] for line in records(cfg)] == [5]
    train.main(cfg)
    assert len(seen) == 15
    assert_same_end(cfg, alone)


def test_a_signal_during_evaluation_stops_after_the_epoch(cfg, monkeypatch):
    evaluate = evaluation.evaluate

    def signalling(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args)

    monkeypatch.setattr(evaluation, "evaluate", signalling)
    with pytest.raises(StoppedError, match="saved at step 5 of 15"):
        train.main(cfg)
    assert variables(cfg)[1] == 5


@pytest.mark.process
def test_max_steps_ends_in_the_middle_of_an_epoch(cfg):
    train.main(change(cfg, max_steps=7))
    lines = records(cfg)
    assert [(line["epoch"], line["step"]) for line in lines] == [(1, 5), (2, 7)]


@pytest.mark.process
def test_a_part_of_the_pictures(cfg, monkeypatch):
    scored = []
    evaluate = evaluation.evaluate

    def count(eval_step, make_batches, state, dataset):
        scored.append(len(dataset))
        return evaluate(eval_step, make_batches, state, dataset)

    monkeypatch.setattr(evaluation, "evaluate", count)
    train.main(change(cfg, max_train_samples=16, max_test_samples=6))
    assert [line["step"] for line in records(cfg)] == [2, 4, 6]  # batches of 8
    assert scored == [6, 6, 6]


@pytest.mark.process
def test_validation_joins_the_metrics_and_chooses_the_best(cfg):
    cfg = change(cfg, validation_split=0.25, keep_checkpoints=1, epochs=4, lr=0.3)
    train.main(cfg)
    lines = records(cfg)
    assert all("val_loss" in line for line in lines)
    best = max(lines, key=lambda line: line["val_accuracy"])
    score = best["val_accuracy"]
    ties = {line["step"] for line in lines if line["val_accuracy"] == score}
    assert variables(cfg, "best")[1] in ties
    assert variables(cfg, "last")[1] == lines[-1]["step"]


def test_old_checkpoints_go(cfg):
    train.main(change(cfg, keep_checkpoints=2))
    steps = {int(name) for name in os.listdir(f"{cfg.run.workdir}/checkpoints")}
    assert steps == {10, 15}


@pytest.mark.process
def test_another_configuration_is_refused_by_its_fields(cfg):
    train.main(change(cfg, max_steps=5))
    with pytest.raises(ConfigError) as caught:
        train.main(change(cfg, max_steps=5, lr=0.1, batch_size=9))
    message = str(caught.value)
    assert "batch_size 8 -> 9, lr 0.05 -> 0.1" in message
    assert "another --workdir" in message and "--override" not in message
    with pytest.raises(ConfigError, match="lr 0.05 -> 0.1"):
        train.main(change(cfg, max_steps=5, lr=0.1, override=True))


@pytest.mark.process
def test_override_lets_epochs_and_logging_through(cfg, capsys):
    train.main(change(cfg, epochs=1))
    longer = change(cfg, epochs=2, log_every_steps=3)
    with pytest.raises(ConfigError, match="use --override to resume it"):
        train.main(longer)
    train.main(change(longer, override=True))
    assert (
        "overridden: epochs 1 -> 2, log_every_steps 20 -> 3" in capsys.readouterr().out
    )
    assert [line["step"] for line in records(cfg)] == [5, 10]
    train.main(longer)


def test_a_failure_before_the_first_step_leaves_nothing(cfg):
    with pytest.raises(ConfigError, match="unknown model"):
        train.main(change(cfg, model="resnet19"))
    assert not os.path.exists(cfg.run.workdir)
    with pytest.raises(ConfigError, match="normalize 'sepia'"):
        train.main(change(cfg, normalize="sepia"))
    assert not os.path.exists(cfg.run.workdir)


def test_a_run_directory_that_cannot_be_written(cfg, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written to .Not a directory"):
        train.main(change(cfg, workdir=str(tmp_path / "file" / "run")))


def test_metrics_without_checkpoints_are_not_overwritten(cfg):
    train.main(change(cfg, max_steps=2))
    before = records(cfg)
    shutil.rmtree(f"{cfg.run.workdir}/checkpoints")
    with pytest.raises(ConfigError, match="but none of its checkpoints"):
        train.main(change(cfg, max_steps=2))
    assert records(cfg) == before


def test_a_run_killed_before_its_first_step_begins_afresh(cfg):
    os.makedirs(f"{cfg.run.workdir}/checkpoints")
    train.main(change(cfg, max_steps=2))
    assert [line["step"] for line in records(cfg)] == [2]


def test_what_lay_in_the_directory_stays_where_a_run_fails(cfg, monkeypatch):
    os.makedirs(cfg.run.workdir)
    with open(f"{cfg.run.workdir}/config.json", "w", encoding="utf-8") as file:
        file.write("mine")

    def fail(*args, **options):
        raise ConfigError("no")

    monkeypatch.setattr("resnet_jax.training.init_state", fail)
    with pytest.raises(ConfigError, match="no"):
        train.main(cfg)
    with open(f"{cfg.run.workdir}/config.json", encoding="utf-8") as file:
        assert file.read() == "mine"


@pytest.mark.process
def test_a_signal_at_the_very_last_step_leaves_the_evaluation_to_the_next_call(
    cfg, monkeypatch
):
    batches = Loader.train

    def signalling(self, epoch, start):
        for number, batch in enumerate(batches(self, epoch, start)):
            if epoch == 1 and number == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(Loader, "train", signalling)
    alone = change(cfg, max_steps=7, workdir=cfg.run.workdir + "-alone")
    with pytest.raises(StoppedError, match="saved at step 7 of 7"):
        train.main(change(cfg, max_steps=7))
    assert [line["step"] for line in records(cfg)] == [5]
    monkeypatch.setattr(Loader, "train", batches)
    train.main(alone)
    train.main(change(cfg, max_steps=7))
    assert [line["step"] for line in records(cfg)] == [5, 7]
    assert_same_end(change(cfg, max_steps=7), alone)


def test_an_evaluation_that_is_not_finite_is_not_saved(cfg, monkeypatch):
    evaluate = evaluation.evaluate

    def spoil(eval_step, make_batches, state, dataset):
        sums = evaluate(eval_step, make_batches, state, dataset)
        return {**sums, "loss": np.float64("nan")} if int(state.step) == 10 else sums

    monkeypatch.setattr(evaluation, "evaluate", spoil)
    with pytest.raises(NonFiniteLossError, match="test_loss is nan at step 10"):
        train.main(cfg)
    assert [line["step"] for line in records(cfg)] == [5]
    assert variables(cfg)[1] == 5


def test_half_a_run_is_refused(cfg):
    train.main(change(cfg, max_steps=2))
    os.remove(f"{cfg.run.workdir}/config.json")
    with pytest.raises(ConfigError, match="config.json cannot be read"):
        train.main(cfg)


@pytest.mark.parametrize("bad_step", by_tier([1, 8], [8]))
def test_a_loss_that_is_not_finite_stops_the_run(cfg, monkeypatch, bad_step):
    cfg = change(cfg, log_every_steps=1)
    batches, seen = Loader.train, []

    def poisoned(*args, **options):
        for batch in batches(*args, **options):
            seen.append(batch)
            yield batch

    before = step_module.train_step

    def spoil(model, tx, augment, state, batch, key, **options):
        state, sums = before(model, tx, augment, state, batch, key, **options)
        loss = jax.numpy.where(state.step == bad_step, jax.numpy.nan, sums["loss"])
        return state, {**sums, "loss": loss}

    monkeypatch.setattr(Loader, "train", poisoned)
    monkeypatch.setattr(step_module, "train_step", spoil)
    lr = {1: 0.05, 8: 0.0276132}[bad_step]  # of the cosine schedule
    with pytest.raises(
        NonFiniteLossError, match=f"is nan at step {bad_step}, lr {lr}: try"
    ):
        train.main(cfg)
    assert len(seen) == bad_step  # not a step further
    if bad_step == 1:  # nothing was saved, and nothing is left
        assert not os.path.exists(cfg.run.workdir)
    else:
        assert [line["step"] for line in records(cfg)] == [5]
        assert variables(cfg)[1] == 5


def test_a_checkpoint_of_another_model_is_refused(cfg):
    train.main(change(cfg, max_steps=2))
    path = f"{cfg.run.workdir}/config.json"
    with open(path, encoding="utf-8") as file:
        text = file.read()
    with open(path, "w", encoding="utf-8") as file:
        file.write(text.replace('"one_block"', '"resnet8"'))
    with pytest.raises(CheckpointError, match="checkpoint 2 of .* another model"):
        train.main(change(cfg, model="resnet8", max_steps=2))


def test_a_checkpoint_with_more_layers_than_the_model_is_refused(cfg):
    train.main(change(cfg, max_steps=2))
    model = models.create_model(cfg.model.model, num_classes=3)
    template = state.init_variables(model, (8, 8, 3), key=jax.random.key(0))
    del template["params"]["layer1.0"]
    with pytest.raises(CheckpointError, match="params.layer1.0.*, missing in the mo"):
        restore.load_variables(read_run_dir(cfg), "last", template)


def test_checkpoints_that_are_not_there(cfg, tmp_path):
    train.main(change(cfg, max_steps=2))
    with pytest.raises(CheckpointError, match="no checkpoint of step 3, only of 2"):
        variables(cfg, "3")
    with pytest.raises(CheckpointError, match="no best checkpoint.*validation-split"):
        variables(cfg, "best")
    with pytest.raises(ConfigError, match="checkpoint 'first' must be last, best or a"):
        variables(cfg, "first")
    assert variables(cfg, "2")[1] == 2
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        restore.load_variables(tmp_path, "last", {})


def test_no_run_and_half_a_run_to_read(tmp_path):
    with pytest.raises(ConfigError, match="there is no such directory"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="is not a run: it has no config.json"):
        read_run(tmp_path)


def test_tensorboard_events(cfg):
    pytest.importorskip("tensorboardX")
    train.main(change(cfg, max_steps=5, tensorboard=True))
    (events,) = read_run_dir(cfg).glob("tensorboard/events.*")
    assert b"test_accuracy" in events.read_bytes()


def test_tensorboard_without_its_package(cfg, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ConfigError, match="pip install -e"):
        train.main(change(cfg, max_steps=5, tensorboard=True))
    assert not os.path.exists(cfg.run.workdir)


@pytest.mark.process
@pytest.mark.parametrize("max_steps", [7, 15])  # within the traced steps, and after
def test_profile_leaves_a_trace(cfg, max_steps):
    train.main(change(cfg, profile=True, max_steps=max_steps))
    assert list(read_run_dir(cfg).glob("profile/plugins/profile/*/*"))


def test_summary_trains_nothing(cfg, capsys):
    train.main(change(cfg, summary=True))
    assert "multiply-adds" in capsys.readouterr().out
    assert not os.path.exists(cfg.run.workdir)


def test_names_and_directories_are_looked_at_before_data_are_fetched(
    cfg, monkeypatch, tmp_path, capsys
):
    train.main(change(cfg, max_steps=2))

    fetch_raises(AssertionError("the data were fetched"), monkeypatch)
    (tmp_path / "file").touch()
    for wrong, part in (
        ({"summary": True}, None),
        ({"model": "resnet19"}, "unknown model"),
        ({"normalize": "sepia"}, "normalize"),
        ({"lr": 0.1}, "another configuration"),
        ({"workdir": str(tmp_path / "file" / "run")}, "cannot be written"),
    ):
        wrong = change(cfg, **{"max_steps": 2, **wrong})
        if part is None:
            train.main(wrong)
        else:
            with pytest.raises(ConfigError, match=part):
                train.main(wrong)


@pytest.mark.process
def test_a_batch_that_cannot_be_trained_on_is_refused_before_the_first_step(cfg):
    # Five batches of seven images and one of a single image, on 1x1 feature maps.
    with pytest.raises(ConfigError, match="cannot train on one value per channel"):
        train.main(change(cfg, batch_size=7, stem="imagenet", model="resnet18"))
    assert not os.path.exists(cfg.run.workdir)


def test_open_run_probes_without_a_trace(cfg):
    with open_run(cfg):
        assert os.path.isdir(cfg.run.workdir)
    assert not os.path.exists(cfg.run.workdir)


@pytest.mark.parametrize(
    "module, name", [(session, "check_resumable"), (run, "Checkpoints")]
)
def test_a_signal_while_a_run_is_being_opened(module, name, cfg, monkeypatch):
    before = getattr(module, name)

    def signalling(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return before(*args)

    monkeypatch.setattr(module, name, signalling)
    with pytest.raises(StoppedError, match="by SIGTERM before its first step"):
        train.main(cfg)
    assert not os.path.exists(cfg.run.workdir)


def test_other_classes_are_refused(cfg, parts, small):
    train.main(change(cfg, max_steps=2))
    small(*(Dataset(p.images, p.labels, ("a", "b", "d")) for p in parts))
    with pytest.raises(ConfigError, match="started with different classes"):
        train.main(change(cfg, max_steps=4, override=True))


@pytest.fixture
def weights(cfg, tmp_path):
    """A file of random weights of the network, with a different number of classes."""
    model = models.create_model(cfg.model.model, num_classes=7)
    variables = state.init_variables(model, (8, 8, 3), key=jax.random.key(9))
    path = tmp_path / "weights.safetensors"
    save_file(convert.to_torch(variables), path)
    return str(path)


@pytest.mark.process
def test_a_command_that_failed_does_not_spoil_what_a_killed_one_left(cfg, monkeypatch):
    """The run is killed between a record and its checkpoint; then data are missing."""

    def die(*args, **options):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", die)
        with pytest.raises(Killed):
            train.main(cfg)
    os.makedirs(f"{cfg.run.workdir}/checkpoints")  # a process that is killed leaves it
    with open(f"{cfg.run.workdir}/metrics.jsonl", "w", encoding="utf-8") as file:
        file.write('{"epoch": 1, "step": 5}\n')
    with monkeypatch.context() as patch:
        fetch_raises(DataError("no data"), patch)
        with pytest.raises(DataError):
            train.main(cfg)
    train.main(cfg)
    assert [line["step"] for line in records(cfg)] == [5, 10, 15]


@pytest.mark.process
def test_the_best_stays_although_a_better_one_could_not_be_saved(cfg, monkeypatch):
    cfg = change(
        cfg, validation_split=0.25, keep_checkpoints=1, epochs=4
    )  # of 4 steps each
    accuracies = iter([0.8, 0.9, 0.1, 0.1])
    means, save = metrics.means, Checkpoints.save

    def given(sums, part):
        found = means(sums, part)
        if part == "val":
            found["val_accuracy"] = next(accuracies)
        return found

    def full(self, step, *args):
        if step != 8:  # the save of the better one fails
            return save(self, step, *args)
        return None

    monkeypatch.setattr(metrics, "means", given)
    monkeypatch.setattr(Checkpoints, "save", full)
    train.main(cfg)
    assert sorted(map(int, os.listdir(f"{cfg.run.workdir}/checkpoints"))) == [4, 16]
    assert variables(cfg, "best")[1] == 4


def test_fewer_epochs_than_are_done(cfg, monkeypatch):
    """Stops in the evaluation of the second of three epochs, then resumes with one."""
    evaluate = evaluation.evaluate

    def signalling(eval_step, make_batches, state, dataset):
        if int(state.step) == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(eval_step, make_batches, state, dataset)

    monkeypatch.setattr(evaluation, "evaluate", signalling)
    with pytest.raises(StoppedError, match="saved at step 10 of 15"):
        train.main(cfg)
    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    train.main(change(cfg, epochs=1, override=True))
    assert [line["step"] for line in records(cfg)] == [5]


@pytest.mark.parametrize(
    "name",
    by_tier(
        RECIPES,
        set(RECIPES) - {"digits"},
        slow=("resnet20", "resnet18", "hresnet-plus", "imagenet"),
    ),
)
def test_a_resume_is_exact_for_every_recipe(name, cfg, weights, monkeypatch):
    """Parameters, statistics, optimizer, order, augmentation and sums are equal."""
    recipe = RECIPES[name][1]
    recipe = change(
        recipe,
        dataset="digits",
        epochs=2,
        max_steps=None,
        batch_size=8,
        eval_batch_size=4,
        normalize="half",
        image_size=None,
        resize=None,
        train_size=6 if recipe.data.train_size else None,
        pretrained=recipe.transfer.pretrained and weights,
        crop_padding=min(recipe.augment.crop_padding, 1),
        log_gradients=name == "resnet20",
        validation_split=0.1 if name == "resnet18" else 0.0,
        workdir=cfg.run.workdir,
    )
    if name == "resnet20":
        recipe = change(recipe, schedule="step", lr_milestones=(3, 7))
    if recipe.model.model == "resnet9":
        recipe = change(recipe, width=4)
    else:  # one_block's own stem
        recipe = change(recipe, model=cfg.model.model, stem=None)
    alone = change(recipe, workdir=cfg.run.workdir + "-alone")
    train.main(alone)
    batches, seen = Loader.train, []

    def signalling(*args, **options):
        for batch in batches(*args, **options):
            seen.append(batch)
            if len(seen) in stops:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    stops = (1, 5, 8)  # of ten; the fifth is an epoch's last
    monkeypatch.setattr(Loader, "train", signalling)
    for step in stops:
        # The number of workers does not affect the images.
        workers = step % 2 if recipe.augment.random_resized_crop else 4
        with pytest.raises(StoppedError, match=f"saved at step {step} of"):
            train.main(change(recipe, workers=workers))
    train.main(change(recipe, workers=0))
    assert len(seen) == manifest(alone)["step"]  # none twice
    assert records(recipe) == records(alone)
    for key in ("step", "digests", "train_sums"):
        assert manifest(recipe)[key] == manifest(alone)[key]
    if recipe.run.log_gradients:
        one, two = (read_run_dir(c) / "layers.jsonl" for c in (recipe, alone))
        assert one.read_text() == two.read_text() != ""


def manifest(cfg):
    """Returns the manifest of the newest checkpoint."""
    steps = (read_run_dir(cfg) / "checkpoints").iterdir()
    newest = max(steps, key=lambda path: int(path.name))
    return json.loads((newest / "manifest" / "metadata").read_text())


@pytest.mark.process
def test_calls_of_many_steps_stop_and_go_on_to_the_bit(cfg, monkeypatch, tmp_path):
    """An epoch has five steps: two calls of two, and the partial batch."""
    cfg = change(
        cfg, steps_per_call=2, grad_accum_steps=2, remat=True, save_every_steps=3
    )
    alone = change(cfg, workdir=str(tmp_path / "alone"))
    train.main(alone)
    batches, seen = Loader.train, []

    def signalling(*args, **options):
        for batch in batches(*args, **options):
            seen.append(batch["indices"].shape)
            if len(seen) == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(Loader, "train", signalling)
    with pytest.raises(StoppedError, match="saved at step 9 of 15"):
        train.main(cfg)
    assert seen == [(2, 8), (2, 8), (4,), (2, 8), (2, 8)]
    train.main(cfg)
    assert len(seen) == 9
    assert_same_end(cfg, alone)


def test_a_last_save_that_is_refused_is_an_error(cfg, monkeypatch, capsys):
    save = ocp.CheckpointManager.save

    def full(self, step, *args, **options):
        if step == 15:
            raise OSError("no room")
        return save(self, step, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", full)
        message = r"checkpoint of step 15 could not be saved \(no room\)"
        with pytest.raises(CheckpointError, match=message):
            train.main(cfg)
    assert "epoch   3  step 15" in capsys.readouterr().out  # its line is in the file
    train.main(cfg)
    assert sorted(map(int, os.listdir(f"{cfg.run.workdir}/checkpoints"))) == [5, 10, 15]
