"""The cost model's bytes are those of the compiled program; its times add up."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import jax
import pytest
from spawn import ROOT, compute

from benchmarks import scaling
from resnet_jax.errors import ConfigError
from resnet_jax.models.blocks import BasicBlock, Bottleneck
from resnet_jax.models.factory import create_model
from resnet_jax.models.resnet import ResNet
from resnet_jax.training import variable_shapes

# The program of train.py's step for 16 images on four devices, as XLA divided it.
SCRIPT = """
import json, sys
from functools import partial

import jax, numpy as np
from resnet_jax import data, devices, training
from resnet_jax.config import AugmentConfig, DataConfig, OptimConfig
from resnet_jax.models import BasicBlock, Bottleneck, ResNet, create_model

rng = np.random.default_rng(0)
images = rng.integers(0, 256, (32, 8, 8, 3), np.uint8)
train = data.Dataset(images, np.zeros(32, np.int32), ("a", "b", "c"))
cfg = OptimConfig(optimizer="sgd", lr=.1)
tx = training.make_optimizer(cfg, training.make_schedule(cfg, 9))
made = AugmentConfig(normalize="half", crop_padding=1, flip="random")
num_classes = 3
keys = training.make_keys(0, 1)
mesh = devices.make_mesh()
assert mesh.size == 4
# The compiled program is what compile_step keeps for the form of a batch.
lower = jax.stages.Lowered.compile


def compile(lowered, *args, **options):
    compiled = lower(lowered, *args, **options)
    texts.append(compiled.as_text())
    return compiled


jax.stages.Lowered.compile = compile
texts = []


def program(model, held, rows, local_bn=None):
    shape = train.images.shape[1:]
    augment = data.make_augment(made, data.make_preprocess(made, shape), num_classes)
    loader = data.Loader(
        mesh, data.Splits(train, train, train, {}),
        DataConfig(batch_size=rows, drop_last=True),
        order=training.make_order(0, 1), held=held,
    )
    state = training.init_state(model, tx, shape, key=keys.init)
    state, key = devices.replicate(mesh, (state, keys.augment))
    texts.clear()
    step = training.make_train_step(model, tx, augment, local_bn=local_bn)
    training.compile_step(step, state, loader, key)
    (text,) = texts
    return text


"""
SMALL = """
small = partial(ResNet, num_classes=3, widths=(4, 8), stem="cifar")
json.dump({
    "basic": program(small(BasicBlock, (1, 1)), True, 16),
    "bottleneck": program(small(Bottleneck, (1, 1)), False, 16),
    "odd": program(small(BasicBlock, (1, 1)), True, 18),
    "local": program(small(BasicBlock, (1, 1)), True, 16, mesh),
}, sys.stdout)
"""
LARGE = """
train = data.Dataset(np.zeros((32, 64, 64, 3), np.uint8), train.labels, ("a",))
made, num_classes = AugmentConfig(normalize="half"), 1000
json.dump(program(create_model("resnet50", num_classes=1000), True, 16), sys.stdout)
"""
COLLECTIVES = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
# A result is one array, or a tuple where XLA has combined several into one collective;
# what an asynchronous one gives at its end (-done) is counted at its start.
OPERATION = re.compile(rf" = (\(.*?\)|\S+) ({COLLECTIVES})(?:-start)?\(")
ARRAY = re.compile(r"\b([a-z]+\d+|pred)\[([\d,]*)\]")
BYTES = {"f32": 4, "s32": 4, "u32": 4, "pred": 1}


@pytest.fixture(scope="module")
def programs():
    return json.loads(compute(SCRIPT + SMALL, 4))


def collectives(program):
    """Returns (name, bytes) of each collective in a program's text."""
    found = []
    for line in program.splitlines():
        if operation := OPERATION.search(line):
            total = 0
            for dtype, sizes in ARRAY.findall(operation[1]):
                size = BYTES[dtype]
                for length in filter(None, sizes.split(",")):
                    size *= int(length)
                total += size
            found.append((operation[2], total))
    return found


def shapes(block):
    model = ResNet(block, (1, 1), num_classes=3, widths=(4, 8), stem="cifar")
    return variable_shapes(model, (8, 8, 3))


def test_collectives_are_read_from_a_program():
    program = """
  %a = f32[4]{0} all-reduce(%x), channel_id=1
  %b = (f32[8,2]{1,0}, /*index=1*/f32[]) all-reduce(%y, %z), channel_id=2
  %c = f32[3]{0} all-reduce-start(%v), channel_id=3
  %d = f32[3]{0} all-reduce-done(%c)
  %e = s32[8]{0} all-gather(%w), dimensions={0}
  %f = f32[4]{0} add(%a, %all-reduce.1)
"""
    assert collectives(program) == [
        ("all-reduce", 16),
        ("all-reduce", 68),
        ("all-reduce", 12),
        ("all-gather", 32),
    ]


@pytest.mark.process
@pytest.mark.parametrize(
    "name, block", [("basic", BasicBlock), ("bottleneck", Bottleneck)]
)
def test_bytes_are_those_of_the_compiled_program(programs, name, block):
    found, variables = collectives(programs[name]), shapes(block)
    assert {operation for operation, _ in found} == {"all-reduce"}
    assert sum(size for _, size in found) == scaling.all_reduce_bytes(variables)
    # Three for a layer, some of them combined, and one of all that nothing waits for.
    batch_norms = scaling.num_batch_norms(variables)
    assert 2 * batch_norms < len(found) <= 3 * batch_norms + 1
    parts = scaling.reduced(variables)
    assert found[-1][1] == parts.gradients + parts.metrics


# torchvision's ResNet-50 has 25,557,032 parameters and 53 BatchNorm layers of 26,560
# channels in all.
RESNET50, IN_BFLOAT16 = 102_440_616, 51_432_792


def test_bytes_of_the_table_s_network_are_those_that_are_documented():
    model = create_model("resnet50", num_classes=1000)
    variables = variable_shapes(model, (224, 224, 3))
    found = scaling.all_reduce_bytes(variables)
    assert found == RESNET50 == 4 * (25_557_032 + 53_120 + 2)
    found = scaling.all_reduce_bytes(variables, "bfloat16")
    assert found == IN_BFLOAT16 == RESNET50 - 2 * (25_557_032 - 53_120)
    assert f"{IN_BFLOAT16:,} bytes" in (ROOT / "docs" / "scaling.md").read_text()


@pytest.mark.slow
def test_so_are_those_of_its_compiled_program():
    """Uses images of 64 pixels; with smaller ones parts of kernels have no gradient."""
    found = collectives(json.loads(compute(SCRIPT + LARGE, 4)))
    assert {operation for operation, _ in found} == {"all-reduce"}
    assert sum(size for _, size in found) == RESNET50


@pytest.mark.process
def test_a_batch_that_does_not_divide_needs_no_other_device(programs):
    assert collectives(programs["odd"]) == []


@pytest.mark.process
def test_local_statistics_make_nobody_wait(programs):
    """All sums are at the end, equal ones of two layers only once."""
    found = collectives(programs["local"])
    total = scaling.all_reduce_bytes(shapes(BasicBlock))
    assert {operation for operation, _ in found} == {"all-reduce"}
    assert len(found) < scaling.num_batch_norms(shapes(BasicBlock))
    assert total - 4 * 8 <= sum(size for _, size in found) <= total


def test_parts_by_hand():
    parts = scaling.reduced(shapes(BasicBlock))
    kernels = 9 * 3 * 4 + 2 * 9 * 4 * 4 + 9 * 4 * 8 + 9 * 8 * 8 + 4 * 8 + 8 * 3 + 3
    channels = 3 * 4 + 3 * 8  # of six BatchNorm layers
    assert parts == (4 * kernels, 4 * 4 * channels, 8)
    assert scaling.num_batch_norms(shapes(BasicBlock)) == 6
    plain = {"params": {"fc": {"bias": jax.ShapeDtypeStruct((7,), "float32")}}}
    assert scaling.reduced(plain) == (28, 0, 8)
    assert scaling.num_batch_norms(plain) == 0


def test_a_ring_by_hand():
    """Four devices send six quarters of 1,000 bytes at 100 a second, and wait."""
    link = {"bandwidth": 100.0, "latency": 0.25}
    assert scaling.collective_seconds(1000, 4, **link) == 15.0 + 2 * 0.25
    assert scaling.collective_seconds(1000, 4, count=3, **link) == 15.0 + 3 * 2 * 0.25
    assert scaling.collective_seconds(1000, 2, **link) == 10.0 + 0.25
    assert scaling.collective_seconds(1000, 1, **link) == 0.0


CFG = scaling.Scaling(
    dtype="float32",
    image_size=2,
    batch_per_device=10,
    flops=100.0,
    bandwidth=100.0,
    latency=0.5,
    host_bandwidth=60.0,
)
MODEL = {"num_macs": 5, "parts": scaling.Reduced(900, 90, 10), "batch_norms": 2}


def test_a_step_by_hand():
    found = scaling.predict(CFG, num_devices=2, **MODEL)
    assert found.compute == 5 * 6 * 10 / 100  # 3 s, 2 of them backward
    assert found.input == 12 * 10 / 60
    assert found.gradients == 910 / 100 + 0.5
    assert found.batch_norm == 90 / 100 + 6 * 0.5
    assert found.step[0] == pytest.approx(3 + 2 + 9.6 + 3.9)
    assert found.step[1] == pytest.approx(3 + 3.9 + (9.6 - 2))
    assert found.efficiency == pytest.approx((5 / 18.5, 3 / 14.5))


def test_what_makes_a_step_shorter():
    held = scaling.predict(replace(CFG, held=True), num_devices=2, **MODEL)
    assert held.input == 0.0
    local = scaling.predict(replace(CFG, sync_bn=False), num_devices=2, **MODEL)
    assert local.batch_norm == 0.0
    assert local.gradients == 1000 / 100 + 0.5
    # In bfloat16 BatchNorm waits twice a layer, not three times.
    short = scaling.predict(replace(CFG, dtype="bfloat16"), num_devices=2, **MODEL)
    assert short.batch_norm == 90 / 100 + 4 * 0.5
    alone = scaling.predict(CFG, num_devices=1, **MODEL)
    assert alone.step == (5.0, 3.0) and alone.efficiency == (1.0, 1.0)


def test_the_table_says_that_it_is_modeled():
    text = scaling.table(scaling.Scaling())
    assert "modeled, not measured" in text
    header, _, *rows = [line for line in text.splitlines() if line.startswith("|")]
    assert header.count("modeled") == 4
    numbers = [int(row.split("|")[1].replace(",", "")) for row in rows]
    assert numbers == [1, 8, 16, 32, 64, 128, 256, 512, 1024]
    assert f"{IN_BFLOAT16:,} bytes" in text
    assert "53 BatchNorm layers" in text
    page = (ROOT / "docs" / "scaling.md").read_text()
    assert text in page, "docs/scaling.md has the table of another model"


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"flops": 0.0}, "flops 0 is not a finite number greater than 0"),
        ({"bandwidth": float("nan")}, "bandwidth nan is not a finite"),
        ({"host_bandwidth": float("inf")}, "host_bandwidth inf is not a finite"),
        ({"latency": -1e-6}, "latency -1e-06 is not a finite number of at least 0"),
        ({"devices": (8, 0)}, r"devices \(8, 0\) is too small: it must be at least 1"),
        ({"devices": ()}, r"devices \(\) is too small"),
        ({"image_size": 0}, "image_size 0 is too small"),
        ({"num_classes": 0}, "num_classes 0 is too small"),
        ({"batch_per_device": -1}, "batch_per_device -1 is too small"),
    ],
)
def test_assumptions_that_cannot_be(fields, message):
    with pytest.raises(ConfigError, match=message):
        scaling.Scaling(**fields)


@pytest.mark.process
def test_an_unknown_network_is_one_line():
    command = [sys.executable, "-m", "benchmarks.scaling", "--model", "resnet21"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("benchmarks.scaling: ") and "resnet21" in done.stderr
    assert done.stderr.count("\n") == 1
