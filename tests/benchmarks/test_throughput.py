"""The throughput benchmark: its arithmetic, and one small measurement."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import contestants, throughput
from benchmarks.contestants import OURS, Task
from benchmarks.throughput import Throughput
from resnet_jax import data, training
from resnet_jax.config import DataConfig
from resnet_jax.devices import make_mesh
from resnet_jax.errors import ConfigError


def test_the_ratio_is_of_blocks_of_one_round():
    found = throughput.spread([10.0, 30.0, 20.0], [20.0, 20.0, 20.0])
    assert found == {"median": 1.0, "min": 0.5, "max": 1.5}


def test_a_cliff_is_a_cost_over_one_and_a_half_times_the_one_before():
    assert throughput.cliffs([1.0, 1.4, 2.2, 1.0, 1.5]) == [
        *(False, False, True, False, False)
    ]
    assert throughput.cliffs([]) == []


def test_what_was_not_measured_says_so():
    failed = {"error": "InductorError: no C++ compiler"}
    ours = {"rate": 100.0, "matmul": [5.0, 7.0], "cold": 2.0, "warm": 1.0}
    ours |= {"bytes": 3e6, "warm_bytes": 2e6}
    row = {
        **{"model": "resnet20", "kind": "train", "batch_size": 4, "dtype": "float32"},
        **{"gpu": False, "best": None, "programs": {OURS: ours, "compile": failed}},
    }
    text = throughput.table([row])
    assert "| 100 / not measured | not measured | not measured |" in text
    assert "| 3 / not measured | 2 / not measured | 2.0 / not measured |" in text
    assert "resnet20 train: compile not measured: InductorError: no C++" in text
    assert "the product of 2048x2048 matrices reached 7 / not measured GFLOP/s" in text


def test_defaults_follow_the_device_and_epochs_the_recipe():
    cfg = Throughput(models=("resnet18", "resnet50"), modes=("train",))
    sizes = {
        gpu: [t.batch_size for t in throughput.make_tasks(cfg, gpu=gpu, data="")]
        for gpu in (False, True)
    }
    assert sizes == {False: [128, 16], True: [512, 128]}
    cfg = Throughput(models=("resnet18", "resnet50"), epoch=True)
    (task,) = throughput.make_tasks(cfg, gpu=True, data="train.npz")
    assert (task.model, task.batch_size, task.data) == ("resnet18", 128, "train.npz")


@pytest.mark.parametrize(
    "options",
    [{"rounds": 0}, {"seconds": 0.0}, {"batch_sizes": (0, 1)}, {"plot": Path("a.png")}],
)
def test_numbers_that_cannot_be_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        Throughput(**options)


@pytest.mark.process
def test_a_model_that_does_not_exist_is_one_line():
    command = [sys.executable, "-m", "benchmarks.throughput", "--models", "resnet21"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "throughput: unknown model 'resnet21': use one of hresnet"
    )
    assert done.stderr.count("\n") == 1


def test_torch_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(throughput.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="torch is required: run pip install"):
        throughput.main(Throughput(models=("resnet8",)))


@pytest.mark.process
def test_a_program_that_ends_gives_its_reason():
    with pytest.raises(throughput.ProgramError, match="unknown model 'resnet21'"):
        with throughput.started(Task(OURS, "infer", "resnet21", 4)):
            pass


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["infer", "train"])
def test_pytorchs_step_sees_its_images_once(kind):
    pytest.importorskip("torchvision", reason="needs torch and torchvision")
    task = Task("channels_last", kind, "resnet8", 4, "bfloat16")
    run = contestants.torch_program(task).run
    assert (run(1), run(3)) == (4, 12)


def test_our_epoch_sees_every_image_once(tmp_path):
    path = tmp_path / "train.npz"
    cfg = contestants.recipe("resnet8")
    images, labels = contestants.random_batch(cfg, 7)
    np.savez(path, images=images, labels=labels)
    seen = []

    def step(state, batch):
        seen.append(labels[batch["indices"]])
        return state, {"loss": np.zeros(())}

    whole = data.Dataset(images, labels, ())
    splits = data.Splits(whole, whole, whole, {})
    loader = data.Loader(
        *(make_mesh(1), splits, DataConfig(batch_size=4)),
        **{"order": training.make_order(0, 1), "epochs": 9, "held": True},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contestants, "compiled", lambda *args: (step, 0, loader))
        run = contestants.our_epochs(
            Task(OURS, "epoch", "resnet8", 4, data=str(path)), cfg, None
        )
        assert run(2) == 14
    assert [len(batch) for batch in seen] == [4, 3, 4, 3]
    for epoch in (seen[:2], seen[2:]):
        assert sorted(np.concatenate(epoch)) == sorted(labels)


@pytest.mark.slow
def test_a_small_measurement(tmp_path, capsys):
    pytest.importorskip("torchvision", reason="compares with torch and torchvision")
    path = tmp_path / "deep" / "throughput.json"
    cfg = Throughput(
        models=("resnet8",),
        modes=("infer",),
        torch_modes=("eager",),
        batch_size=4,
        rounds=2,
        seconds=0.01,
        json=path,
    )
    throughput.main(cfg)
    printed = capsys.readouterr().out
    record = json.loads(path.read_text(encoding="utf-8"))
    assert {"Python", "jax", "torch"} <= set(record["machine"]["versions"])
    (row,) = record["rows"]
    assert row["best"] == "eager"
    assert row["macs"] == 12_239_488
    ours, theirs = row["programs"][OURS], row["programs"]["eager"]
    ratios = [a / b for a, b in zip(ours["rates"], theirs["rates"], strict=True)]
    assert len(ratios) == 2
    assert row["ratio"]["min"] == min(ratios) <= row["ratio"]["median"] <= max(ratios)
    for program in (ours, theirs):
        assert program["gflops"] == pytest.approx(program["rate"] * 2 * 0.012239488)
        assert 0 < program["share"] and min(program["matmul"]) > 0
        assert 1e8 < program["warm_bytes"] < 1e10  # a process that imported a framework
        assert 1e8 < program["bytes"] < 1e10
        assert program["warm"] > 0
    assert ours["warm"] < ours["cold"]  # the cache was used
    assert printed.startswith(record["machine"]["text"])
    assert "| resnet8 | infer | 4 | float32 |" in printed
