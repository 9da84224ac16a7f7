"""Compiles our steps with the accelerators' own compilers; no device is needed.

pip install -e '.[tpu,cuda]' && pytest -m accelerator
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from spawn import ROOT
from tiers import by_tier

from benchmarks import scaling
from resnet_jax.models import create_model
from resnet_jax.recipes import RECIPES
from resnet_jax.training import variable_shapes

pytestmark = pytest.mark.accelerator

# With all of XLA's optimizations, and no cached programs.
AS_USERS = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "JAX_ENABLE_COMPILATION_CACHE": "0"}
GPU = ("jax_cuda12_plugin", "jax_cuda13_plugin")
needs_cuda = pytest.mark.skipif(
    not any(map(importlib.util.find_spec, GPU)),
    reason="pip install -e '.[cuda]' brings the compiler for GPUs",
)
needs_tpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="pip install -e '.[tpu]' brings the compiler for TPUs",
)


def compiled(folder, *options):
    """Results of benchmarks.accelerators, by program and contestant."""
    path = folder / "programs.json"
    command = [sys.executable, "-m", "benchmarks.accelerators", "--json", path]
    done = subprocess.run(
        [*command, *options, "--kinds", "train"],
        cwd=ROOT,
        env={**os.environ, **AS_USERS},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    programs = json.loads(path.read_text())["programs"]
    return {(found["program"], found["contestant"]): found for found in programs}


def fits(found):
    used = found["temporaries_mib"] + found["arguments_mib"]
    return used < 0.9 * found["memory_mib"]


# By default, the recipes are compiled with a small network, which takes a third of the
# time.
@needs_cuda
@pytest.mark.parametrize(
    "network", [("--recipe-model", "resnet8"), pytest.param((), marks=pytest.mark.slow)]
)
def test_every_recipe_compiles_for_a_gpu(network, tmp_path):
    options = ("--targets", "h100", "--models", "--recipes", *RECIPES)
    found = compiled(tmp_path, *options, *network)
    assert {name for name, _ in found} == set(RECIPES)
    for reading in found.values():
        assert set(reading["convolutions"]) == {"bf16"}
        # The augmentation crops and flips images, which are not a layer's feature maps.
        assert reading["moved_maps"] <= 2
        assert reading["float32_maps"] <= 2
        assert fits(reading)


@needs_cuda
def test_resnet50_is_within_its_bounds_on_a_gpu(tmp_path):
    found = compiled(tmp_path, "--targets", "h100", "--contestants", "ours", "flax")
    ours, peer = (found["resnet50", name] for name in ("ours", "flax"))
    assert ours["convolutions"] == {"bf16": 158} == peer["convolutions"]
    assert ours["moved_maps"] == 0
    assert ours["float32_maps"] <= 1  # the images, normalized
    assert ours["kernels"] <= 850
    assert ours["kernels"] < 0.9 * peer["kernels"]
    assert ours["temporaries_mib"] < 0.85 * peer["temporaries_mib"]
    assert ours["memory_gigabytes"] < 1.01 * peer["memory_gigabytes"]
    assert fits(ours)


@needs_cuda
def test_with_remat_twice_the_batch_fits(tmp_path):
    options = ("--targets", "h100", "--contestants", "ours", "--batch-per-chip", "512")
    plain = compiled(tmp_path, *options)["resnet50", "ours"]
    saving = compiled(tmp_path, *options, "--remat")["resnet50", "ours"]
    assert saving["temporaries_mib"] < 0.6 * plain["temporaries_mib"]
    assert fits(saving)


@needs_cuda
def test_many_gpus_sum_what_the_cost_model_says(tmp_path):
    options = ("--targets", "h100:8", "--contestants", "ours")
    found = compiled(tmp_path, *options, "--models", "resnet50", "resnet20")
    sizes = {"resnet50": (224, 1000), "resnet20": (32, 10)}
    for (name, _), reading in found.items():
        side, num_classes = sizes[name]
        model = create_model(name, num_classes=num_classes)
        variables = variable_shapes(model, (side, side, 3))
        parts = scaling.reduced(variables, "bfloat16")
        assert reading["reduced_bytes"] == sum(parts)
        assert reading["collectives"] == reading["all_reduces"]
        # Two per layer, some of them combined, and a few for all gradients.
        assert reading["all_reduces"] <= 2 * scaling.num_batch_norms(variables) + 2


# The TPU compiler is slow, so only one recipe is compiled by default.
@needs_tpu
@pytest.mark.parametrize("name", by_tier(RECIPES, (), set(RECIPES) - {"digits"}))
def test_every_recipe_compiles_for_a_tpu(name, tmp_path):
    """Uses a small network, except for `fast`."""
    options = ("--targets", "v5e:2x2", "--models", "--recipes", name)
    small = () if name == "fast" else ("--recipe-model", "resnet8")
    (reading,) = compiled(tmp_path, *options, *small).values()
    assert reading["convolutions"]["bf16"] >= 1
    assert reading["float32_maps"] == 0
    assert fits(reading)
    trains_all = RECIPES[name][1].transfer.freeze != "backbone"
    # At most nine BatchNorm layers', forward and backward, and the gradients'.
    assert reading["all_reduces"] <= (20 if trains_all else 12)


@needs_tpu
def test_a_bottleneck_moves_fewer_bytes_than_flax_s_on_a_tpu(tmp_path):
    options = ("--targets", "v5e:2x2", "--stage-sizes", "2")
    found = compiled(tmp_path, *options, "--contestants", "ours", "flax")
    ours, peer = (found["resnet50", name] for name in ("ours", "flax"))
    assert ours["all_reduces"] <= peer["all_reduces"]
    assert ours["float32_maps"] == 0
    assert ours["memory_gigabytes"] < 0.9 * peer["memory_gigabytes"]
    # The stem's maps count too, and are as large as those of two blocks.
    assert ours["temporaries_mib"] < 0.95 * peer["temporaries_mib"]
