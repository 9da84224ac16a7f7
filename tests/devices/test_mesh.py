import json
import os

import jax
import numpy as np
import pytest
from spawn import compute

from resnet_jax.devices import mesh as devices
from resnet_jax.errors import ConfigError


@pytest.mark.parametrize(
    "batch_size, num_devices, micro_batches, nearest",
    [(10, 4, 1, 8), (3, 4, 1, 4), (11, 2, 3, 12), (129, 8, 1, 128)],
)
def test_a_batch_that_does_not_divide(batch_size, num_devices, micro_batches, nearest):
    with pytest.raises(
        ConfigError, match=f"the nearest size that is divisible is {nearest}$"
    ):
        devices.check_batch_size(batch_size, num_devices, micro_batches)
    devices.check_batch_size(nearest, num_devices, micro_batches)


def test_devices_that_are_not_there():
    with pytest.raises(ConfigError, match="devices 99 is too large: JAX has"):
        devices.make_mesh(99)
    for name, extra in (("tpu", "tpu"), ("cuda", "cuda"), ("gpu", "cuda")):
        told = rf"platform {name} cannot be used .*pip install -e '\.\[{extra}\]'"
        with pytest.raises(ConfigError, match=told):
            devices.make_mesh(platform=name)
    with pytest.raises(ConfigError, match="or install JAX for it$"):
        devices.make_mesh(platform="nothing")


_ADVICE = " (set JAX_PLATFORMS='' to automatically choose an available backend)"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            "Unable to initialize backend 'rocm': Backend 'rocm' is not in the list of "
            f"known backends: ['cpu', 'tpu'].{_ADVICE}",
            "JAX finds no such device here",
        ),
        (
            "Unable to initialize backend 'tpu': INTERNAL: Failed to open libtpu.so"
            f"{_ADVICE}",
            "Unable to initialize backend 'tpu': INTERNAL: Failed to open libtpu.so",
        ),
    ],
)
def test_only_the_reason_of_jax_s_error_is_shown(monkeypatch, error, reason):
    def fail(platform):
        raise RuntimeError(error)

    monkeypatch.setattr(jax, "devices", fail)
    with pytest.raises(ConfigError) as refused:
        devices.make_mesh(platform="gpu")
    told = str(refused.value)
    assert told.startswith(f"platform gpu cannot be used ({reason}): choose another")


def test_replicated_copies_are_of_their_own_and_keys_stay_keys(key):
    mesh = devices.make_mesh(1)
    host = np.arange(6.0, dtype=np.float32)
    placed, moved_key = devices.replicate(mesh, (host, key))
    host[0] = 99.0
    assert placed[0] == 0.0
    assert jax.random.bits(moved_key) == jax.random.bits(key)
    assert placed.sharding == devices.replicated(mesh)


def test_data_on_cpus_take_a_part_of_the_machine_s_memory(monkeypatch):
    pages = {"SC_PAGE_SIZE": 10, "SC_PHYS_PAGES": 100}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    mesh = devices.make_mesh(1)
    assert devices.fits(200, mesh) and not devices.fits(201, mesh)


# One process with eight devices trains on 1, 2, 4 and 8 of them.
SCRIPT = """
import json, sys
import jax, numpy as np

sys.path.insert(0, "tests")
from parts import make_augment, make_loader, make_optimizer, make_preprocess
from resnet_jax import data, training
from resnet_jax.devices import mesh as devices
from resnet_jax.models import BasicBlock, ResNet
from resnet_jax.training import evaluation, freezing
from resnet_jax.training.state import make_keys
from resnet_jax.training.step import loss_and_gradient

jax.config.update("jax_enable_x64", True)
rng = np.random.default_rng(0)
images = rng.integers(0, 256, (43, 8, 8, 3), np.uint8)
labels = rng.integers(0, 3, 43).astype(np.int32)
train = data.Dataset(images, labels, ("a", "b", "c"))
model = ResNet(BasicBlock, (1,), num_classes=3, widths=(4,), stem="cifar",
               dtype=np.float64)
tx = make_optimizer(lr=.1)
augment = make_augment((8, 8, 3), 3, crop_padding=1, flip="random")
weighted = data.weigh(augment, np.array([1., 20., 3.]), is_mixed=False)
keys = make_keys(0)
found = {}


def run(name, num_devices, held=True, local=False, augment=augment, **options):
    mesh = devices.make_mesh(num_devices)
    # Batches of 16, 16 and 11 images; the last does not divide into parts.
    loader = make_loader(train, mesh=mesh, seed=1, epochs=2, held=held, batch_size=16,
                         eval_batch_size=10, drop_last=local, **options)
    state = training.init_state(model, tx, (8, 8, 3), key=keys.init)
    state, key = devices.replicate(mesh, (state, keys.augment))
    local_bn = mesh if local else None
    step = training.make_train_step(model, tx, augment, local_bn=local_bn)
    step, _ = training.compile_step(step, state, loader, key)
    losses = []
    for epoch in range(2):
        for batch in loader.train(epoch):
            state, sums = step(state, batch)
            losses += np.asarray(sums["loss"]).reshape(-1).tolist()
    evaluate = evaluation.make_evaluate(model, make_preprocess((8, 8, 3)), loader)
    sums = evaluate(state, train)
    leaves = [np.asarray(x).ravel() for x in jax.tree.leaves(state)]
    found[name] = {
        "losses": losses, "count": float(sums["count"]), "loss": float(sums["loss"]),
        "state": np.concatenate(leaves).tolist(),
    }


for num_devices in (1, 2, 4, 8):
    run(f"{num_devices}", num_devices)
run("fed", 4, held=False)
run("calls", 2, steps_per_call=2)
run("fed calls", 2, held=False, steps_per_call=2)
run("local 1", 1, local=True)
run("local 4", 4, local=True)
for num_devices in (1, 4):
    run(f"weighted {num_devices}", num_devices, augment=weighted)


def gradient(model, variables, rows, key, mesh=None):
    x, targets = rows
    found = loss_and_gradient(
        model, variables["params"], variables["batch_stats"], x, targets, key,
        local_bn=mesh,
    )
    return (found[0][0], found[1], found[0][1][1]), found[0][1][0]


key = jax.random.key(7)
model = ResNet(BasicBlock, (1,), num_classes=3, widths=(4,), stem="cifar",
               dtype=np.float64, dropout=.5)
variables = training.init_variables(model, (8, 8, 3), key=keys.init)
rows = rng.normal(size=(16, 8, 8, 3)), np.eye(3)[labels[:16]]
parts = [
    jax.jit(gradient, static_argnums=0)(
        model, variables, [x[i : i + 4] for x in rows], jax.random.fold_in(key, i // 4)
    )
    for i in range(0, 16, 4)
]
mesh = devices.make_mesh(4)
placed = [jax.device_put(x, devices.spread(mesh, 16)) for x in rows]
whole, logits = jax.jit(gradient, static_argnums=(0, 4))(
    model, *devices.replicate(mesh, (variables,)), placed, key, mesh
)


def flat(tree):
    return np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(tree)])


means = jax.tree.map(lambda *each: sum(each) / 4, *[part for part, _ in parts])
for name, mine, theirs in (
    ("loss", whole[0], means[0]),
    ("gradient", whole[1], means[1]),
    ("statistics", whole[2], means[2]),
    ("logits", logits, np.concatenate([of for _, of in parts])),
):
    found[f"local {name}"] = flat(mine).tolist(), flat(theirs).tolist()

# Statistics of a layer that is not trained; dividing by three is not always exact.
mesh = devices.make_mesh(3)
stats = variables["batch_stats"]
stats = jax.tree.map(lambda x: x + rng.uniform(size=x.shape), stats)
with freezing.inference_batch_norm(lambda name: False):
    (_, _, stayed), _ = jax.jit(gradient, static_argnums=(0, 4))(
        model, *devices.replicate(mesh, ({**variables, "batch_stats": stats},)),
        [x[:15] for x in rows], key, mesh
    )
found["frozen"] = flat(stats).tolist(), flat(stayed).tolist()
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def trained():
    return json.loads(compute(SCRIPT, 8))


@pytest.mark.process
@pytest.mark.parametrize("name", ["2", "4", "8", "fed", "calls", "fed calls"])
def test_any_devices_give_the_same_run(trained, name):
    one, other = trained["1"], trained[name]
    assert len(one["losses"]) == 6
    np.testing.assert_allclose(other["losses"], one["losses"], rtol=1e-12)
    np.testing.assert_allclose(other["state"], one["state"], rtol=1e-10, atol=1e-12)
    assert one["count"] == other["count"] == 43
    np.testing.assert_allclose(other["loss"], one["loss"], rtol=1e-12)


@pytest.mark.process
def test_class_weights_are_of_the_whole_batch_on_any_devices(trained):
    one, four = trained["weighted 1"], trained["weighted 4"]
    np.testing.assert_allclose(four["losses"], one["losses"], rtol=1e-6)
    np.testing.assert_allclose(four["state"], one["state"], rtol=1e-5, atol=1e-7)
    assert abs(one["losses"][0] / trained["1"]["losses"][0] - 1) > 1e-3


@pytest.mark.process
def test_feeding_batches_changes_no_bit(trained):
    assert trained["fed"]["state"] == trained["4"]["state"]
    assert trained["fed calls"]["state"] == trained["calls"]["state"]


@pytest.mark.process
def test_local_statistics_are_those_of_a_part(trained):
    """On one device a part is the whole batch; on four, BatchNorm sees four images."""
    one, four = trained["local 1"], trained["local 4"]
    np.testing.assert_allclose(
        one["losses"][:2], trained["1"]["losses"][:2], rtol=1e-12
    )
    assert abs(four["losses"][0] / one["losses"][0] - 1) > 1e-3


@pytest.mark.process
@pytest.mark.parametrize("name", ["loss", "gradient", "statistics", "logits"])
def test_local_is_the_mean_of_the_parts_by_hand(trained, name):
    """Computes each part on one device with its own key, in float64, with dropout."""
    ours, theirs = map(np.array, trained[f"local {name}"])
    assert ours.shape == theirs.shape and np.abs(theirs).max() > 1e-3
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.process
def test_frozen_statistics_stay_to_the_bit_under_local(trained):
    before, after = trained["frozen"]
    assert len(before) > 8 and before == after
