import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from parts import make_augment, make_optimizer

from resnet_jax import fields, models, training
from resnet_jax.commands import train
from resnet_jax.training import diagnostics

LAYERS = ["conv1", "bn1", "layer1.0.conv1", "layer1.0.bn1", "layer1.0.conv2"]


@pytest.fixture
def parts(tiny, key):
    model = models.create_model(tiny, num_classes=3)
    tx = make_optimizer(lr=0.1, momentum=0.0)
    augment = make_augment((8, 8, 3), 3)
    state = training.init_state(model, tx, (8, 8, 3), key=key)
    rng = np.random.default_rng(0)
    batch = {
        "images": rng.integers(0, 256, (4, 8, 8, 3), np.uint8),
        "labels": np.array([0, 1, 2, 0], np.int32),
    }
    return model, tx, augment, state, batch


def moved_by_a_step(model, tx, augment, *args):
    return jax.jit(partial(training.train_step, model, tx, augment))(*args)[0]


@pytest.mark.process
def test_the_figures_are_those_of_the_step(parts, key):
    model, tx, augment, state, batch = parts
    measure = diagnostics.make_layer_statistics(model, tx, augment, lambda: batch, key)
    found = measure(state)
    assert list(found)[:5] == LAYERS and list(found)[-1] == "fc"

    moved = moved_by_a_step(model, tx, augment, state, batch, key)
    name, layer = "layer1.0.conv2", ("layer1.0", "conv2")
    before, after = (
        np.asarray(s.params[layer[0]][layer[1]]["kernel"]) for s in (state, moved)
    )
    change = np.linalg.norm(after - before)
    own = found[name]
    assert own["update_ratio"] == pytest.approx(
        change / np.linalg.norm(before), rel=1e-4
    )
    assert own["gradient"] == pytest.approx(change / 0.1, rel=1e-4)  # SGD, lr .1

    x = np.asarray(augment(key, batch["images"], batch["labels"])[0])
    assert found["conv1"]["input_mean"] == pytest.approx(x.mean(), rel=1e-5)
    assert found["conv1"]["input_std"] == pytest.approx(x.std(), rel=1e-5)
    y = jax.lax.conv(
        x.transpose(0, 3, 1, 2),
        np.asarray(state.params["conv1"]["kernel"]).transpose(3, 2, 0, 1),
        (1, 1),
        "SAME",
    )
    rms = np.sqrt(np.square(y).mean())
    assert found["conv1"]["activation"] == pytest.approx(float(rms), rel=1e-5)
    # BatchNorm in training: outputs have mean square 1 for any input
    assert found["bn1"]["activation"] == pytest.approx(1.0, rel=1e-3)


@pytest.mark.process
def test_augmentation_is_that_of_step_0_at_every_step(parts, key):
    model, tx, _, state, batch = parts
    augment = make_augment((8, 8, 3), 3, crop_padding=4, flip="random")
    measure = diagnostics.make_layer_statistics(model, tx, augment, lambda: batch, key)
    assert measure(state) == measure(state.replace(step=state.step + 7))
    moved = moved_by_a_step(model, tx, augment, state, batch, key)
    change = moved.params["fc"]["bias"] - state.params["fc"]["bias"]
    weights = moved.params["fc"]["kernel"] - state.params["fc"]["kernel"]
    norm = float(jnp.sqrt(jnp.square(change).sum() + jnp.square(weights).sum()))
    assert measure(state)["fc"]["gradient"] == pytest.approx(norm / 0.1, rel=1e-4)


def test_nothing_moves_and_what_is_frozen_has_no_update(parts, key):
    model, _, augment, state, batch = parts

    def only_head(name):
        return name.startswith("fc.")

    tx = make_optimizer(lr=0.1, trainable=only_head)
    state = state.replace(opt_state=tx.init(state.params))
    measure = diagnostics.make_layer_statistics(
        model, tx, augment, lambda: batch, key, trainable=only_head
    )
    found = measure(state)
    assert found["conv1"]["update_ratio"] == 0.0
    assert found["fc"]["update_ratio"] > 0.0


@pytest.mark.process
def test_a_run_logs_step_0_and_every_epoch_and_resumes(digits_run):
    cfg, run_dir = digits_run(epochs=2, log_gradients=True)
    whole = (run_dir / "layers.jsonl").read_text().splitlines()
    places = [(r["epoch"], r["step"]) for r in map(json.loads, whole)]
    assert places == [(0, 0), (1, 4), (2, 8)]
    cfg, parted = digits_run(epochs=1, log_gradients=True)
    with (parted / "layers.jsonl").open("a") as file:  # from a step that was lost
        file.write(json.dumps({"epoch": 2, "step": 8, "layers": {}}) + "\n")
    train.main(fields.replace(cfg, epochs=2, override=True))
    assert (parted / "layers.jsonl").read_text().splitlines() == whole


def test_no_layer_is_logged_without_the_option(digits_run):
    _, run_dir = digits_run(epochs=1)
    assert not (run_dir / "layers.jsonl").exists()


@pytest.mark.process
def test_dropout_and_a_network_without_norm_are_measured(tiny, key):
    model = models.create_model(tiny, num_classes=3, norm="none", dropout=0.5)
    tx = optax.sgd(0.1)
    augment = make_augment((8, 8, 3), 3)
    state = training.init_state(model, tx, (8, 8, 3), key=key)
    batch = {"images": jnp.ones((2, 8, 8, 3), jnp.uint8), "labels": jnp.zeros(2, int)}
    find = jax.jit(partial(diagnostics.layer_statistics, model, tx, augment))
    found = find(state, batch, key)
    assert not any("bn" in name for name in found) and "layer2.0.conv2" in found
    moved = moved_by_a_step(model, tx, augment, state, batch, key)
    step = jax.tree.map(jnp.subtract, state.params["fc"], moved.params["fc"])
    norm = float(optax.global_norm(step)) / 0.1  # of what dropout kept in the step
    assert float(found["fc"]["gradient"]) == pytest.approx(norm, rel=1e-4)
