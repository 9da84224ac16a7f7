"""benchmarks.gpu_day, rehearsed on the CPU, and its errors."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from spawn import ROOT

from benchmarks import gpu_day, gpu_day_parts
from benchmarks.contestants import OURS
from benchmarks.gpu_day import GpuDay
from benchmarks.gpu_day_parts import Day
from resnet_jax.errors import ConfigError, DataError


def day(*options):
    command = [sys.executable, "-m", "benchmarks.gpu_day", *map(str, options)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def rehearse(out, *options):
    """The record, whose table is as it was written and printed."""
    done = day("--platform", "cpu", "--tiny", "--out", out, *options)
    assert done.returncode == 0, done.stderr
    record = json.loads((out / "gpu_day.json").read_text(encoding="utf-8"))
    text = (out / "gpu_day.md").read_text(encoding="utf-8")
    assert done.stdout == text == gpu_day.table(record["rows"])
    return record


@pytest.mark.slow
def test_a_rehearsal_has_a_row_with_numbers_of_each_part(tmp_path):
    record = rehearse(tmp_path)
    log = (tmp_path / "gpu_day.log").read_text(encoding="utf-8")
    ends = {part["part"]: part["end"] for part in record["parts"]}
    assert ends == dict.fromkeys(gpu_day.TINY_PARTS, "done"), log
    measured = [row for row in record["rows"] if row["what"] != "whole"]
    assert {row["part"] for row in measured} == set(gpu_day.TINY_PARTS)
    for row in measured:
        assert row["figures"] and None not in row["figures"].values(), row
        assert "WRONG" not in row["note"]
    found = {(row["part"], row["what"]): row["figures"] for row in measured}
    steps = found["smoke", "3 steps of resnet8, SGD, compared with a CPU"]
    # Both are computed on a CPU.
    assert steps["loss difference"] == steps["parameters difference"] == 0
    scores = found["fast", "evaluate.py, all test images"]
    assert all(0 < scores[f"{name} %"] < 100 for name in ("accuracy", "with --tta"))
    for part in ("seeds", "deterministic"):
        (ratio,) = [f["ratio"] for (name, _), f in found.items() if name == part]
        assert ratio > 0


@pytest.mark.slow
def test_a_part_that_overruns_says_so_and_the_rest_goes_on(tmp_path):
    options = ("--parts", "deterministic", "smoke", "--bound", "smoke=1")
    record = rehearse(tmp_path, *options)
    first, second = record["parts"]
    assert (first["part"], first["end"]) == (
        "smoke",
        "killed after 1 s because it reached its maximum",
    )
    assert (second["part"], second["end"]) == ("deterministic", "done")
    assert 1 <= first["seconds"] < 10
    text = (tmp_path / "gpu_day.md").read_text(encoding="utf-8")
    assert "| smoke | whole | seconds 1" in text
    assert "| killed after 1 s because it reached its maximum |" in text


@pytest.mark.process
def test_no_part_outlasts_the_time_of_all(tmp_path):
    record = rehearse(tmp_path, "--minutes", ".09", "--parts", "fast", "seeds")
    assert [part["end"] for part in record["parts"]] == [
        "killed after 5 s because it reached the total time",
        "not started: the total time limit had been reached",
    ]


@pytest.mark.process
def test_a_bad_option_is_one_line(tmp_path):
    done = day("--parts", "smok", "--out", tmp_path)
    assert done.returncode == 2
    line = "benchmarks.gpu_day: unknown part 'smok': use one of smoke, resnet50"
    assert done.stderr.startswith(line) and done.stderr.count("\n") == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"minutes": 0.0}, "minutes 0.0 is not a finite"),
        ({"minutes": float("nan")}, "minutes nan"),
        ({"bound": ("fast",)}, "bound 'fast' must be PART=SECONDS"),
        ({"bound": ("fast=soon",)}, "bound 'fast=soon'"),
        ({"bound": ("fast=-1",)}, "bound 'fast=-1'"),
        ({"bound": ("quick=1",)}, "unknown part 'quick'"),
        ({"parts": ("resnet8",)}, "unknown part 'resnet8'"),
        ({"data": Path("nowhere")}, "data nowhere contains no train"),
        ({"wheels": Path("nowhere")}, "wheels nowhere contains no"),
    ],
)
def test_what_cannot_be_is_refused(options, said):
    with pytest.raises(ConfigError, match=said.replace("*", r"\*")):
        GpuDay(**options)


def test_parts_keep_the_order_of_their_worth():
    cfg = GpuDay(parts=("fast", "smoke"), bound=("smoke=5",))
    assert list(cfg.plan().items()) == [("smoke", 5.0), ("fast", 120.0)]


def make_day(folder, **options):
    told = {"platform": "cpu", "tiny": True, "work": str(folder), "data": None}
    return Day(folder / "rows.json", **{**told, **options})


def test_figures_that_are_not_finite_have_a_row(tmp_path):
    one = make_day(tmp_path)
    one.tell("a", {"x": 1.0})
    one.tell("b", {"x": float("nan")}, "half")
    one.tell("b", {"x": float("inf")}, "whole")
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert rows == [
        {"what": "a", "figures": {"x": 1.0}, "note": ""},
        {"what": "b", "figures": {"x": None}, "note": "whole"},
    ]
    assert "| p | b | x not finite | whole |" in gpu_day.table(
        [{"part": "p", **row} for row in rows]
    )


def test_without_pytorch_ours_is_measured_alone(tmp_path, monkeypatch):
    asked = []

    def measure(cfg, task, seen):
        asked.append(cfg.torch_modes)
        programs = {OURS: {"rate": 9.0, "bytes": 2e6, "cold": 3.0}}
        return {"programs": programs, "best": None}

    monkeypatch.setattr(gpu_day_parts.throughput, "measure", measure)
    monkeypatch.setattr(gpu_day_parts.util, "find_spec", lambda name: None)
    gpu_day_parts.speed(make_day(tmp_path), "resnet8")
    (row,) = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert asked == [()]
    assert row["note"] == (
        "PyTorch was skipped because these packages are missing: torch and torchvision"
    )
    assert row["figures"] == {"ours images/s": 9, "ours peak MB": 2, "ours first s": 3}


def test_images_are_joined_in_the_order_of_their_files(tmp_path, monkeypatch):
    for number, split in enumerate(("train0", "train1", "test")):
        images = np.full((2, 32, 32, 3), number, np.uint8)
        np.savez(tmp_path / f"{split}.npz", images=images, labels=[number, 9])
    images, labels = gpu_day_parts.read_npz(tmp_path, "train")
    assert images[:, 0, 0, 0].tolist() == [0, 0, 1, 1]
    assert labels.tolist() == [0, 9, 1, 9]
    monkeypatch.setenv("RESNET_JAX_CACHE", str(tmp_path / "cache"))
    one = make_day(tmp_path, tiny=False, data=str(tmp_path))
    with pytest.raises(DataError, match=r"train images are uint8 \[4, 32, 32, 3\]"):
        gpu_day_parts.images(one)
    (tmp_path / "train1.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match="train1.npz cannot be read"):
        gpu_day_parts.read_npz(tmp_path, "train")
