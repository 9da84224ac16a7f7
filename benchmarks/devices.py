"""Compares runs on 1, 2, 4 and 8 CPU devices and in 2 processes with 2 devices each.

    python -m benchmarks.devices --model hresnet --steps 20

Runs train.py on each of these layouts in separate processes, always with the same seed.
Prints how much the loss, the parameters and the running statistics differ from their
values on the first layout. Each figure is the largest difference divided by the first
layout's largest value. Also prints the number of test images that evaluate.py scores on
the same devices. Exits with code 1 if a difference exceeds --tolerance or the numbers
of images differ.

--control adds a second run on the first layout, with different rounding in
convolutions. This run shows how much float32 runs differ because of rounding alone.
"""

import json
import math
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

from resnet_jax.commands.command_line import command_line
from resnet_jax.errors import ConfigError

ROOT = Path(__file__).parents[1]
EXACT = {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}


@dataclass(frozen=True)
class Devices:
    """Options of the benchmark."""

    model: str = "hresnet"
    """Recipe to train."""
    steps: int = 20
    """Training steps."""
    batch_size: int = 128
    """Number of images per step, summed over all devices."""
    num_test: int = 1003
    """Number of test images; it need not be divisible by the number of devices."""
    layouts: tuple[str, ...] = ("1", "2", "4", "8", "2x2")
    """Layouts to compare: DEVICES, or PROCESSESxDEVICES with DEVICES per process; the
    first one is the reference."""
    tolerance: float = 1e-5
    """The largest allowed difference, relative to the largest value."""
    control: bool = False
    """Also run with JAX_DEFAULT_MATMUL_PRECISION=highest; differences in this run are
    not treated as failures."""

    def __post_init__(self) -> None:
        for layout in self.layouts:
            if not re.fullmatch(r"([1-9]\d*x)?[1-9]\d*", layout):
                raise ConfigError(
                    f"layout {layout!r} is invalid: use DEVICES or PROCESSESxDEVICES, "
                    "for example 8 or 2x4"
                )


class Outcome(NamedTuple):
    """The results of a run on one layout."""

    values: dict[str, list[np.ndarray]]  # loss, parameters, statistics
    count: int  # test images that evaluate.py scored


def main(cfg: Devices) -> None:
    print("| layout | loss | parameters | statistics | test images |")
    print("|---|---|---|---|---|")
    outcomes: list[Outcome] = []
    apart = []
    with tempfile.TemporaryDirectory() as folder:
        runs = [(layout, layout, {}) for layout in cfg.layouts]
        if cfg.control:
            alike = cfg.layouts[0]
            runs.append((f"{alike}, rounded differently", alike, EXACT))
        for name, layout, environ in runs:
            run_dir = Path(folder, name)
            train(cfg, layout, run_dir, environ)
            outcomes.append(Outcome(read(run_dir), count(layout, run_dir)))
            first, last = outcomes[0], outcomes[-1]
            parts = {k: part(last.values[k], first.values[k]) for k in first.values}
            shown = " | ".join(f"{value:.1e}" for value in parts.values())
            print(f"| {name} | {shown} | {last.count:,} |", flush=True)
            if environ:
                continue
            # Uses `not <=` instead of `>`, so that NaN also counts as a difference.
            apart += [
                f"{layout}: {kind} by {value:.1e}"
                for kind, value in parts.items()
                if not value <= cfg.tolerance
            ]
            if last.count != first.count:
                apart.append(f"{layout}: {last.count} test images, not {first.count}")
    if apart:
        reasons = "; ".join(apart)
        sys.exit(
            "benchmarks.devices: the results differ by more than "
            f"{cfg.tolerance:g}: {reasons}"
        )


def sizes(layout: str) -> tuple[int, int]:
    """Returns (number of processes, devices per process) for a layout."""
    processes, devices = map(int, ("1x" + layout).split("x")[-2:])
    return processes, devices


def train(cfg: Devices, layout: str, run_dir: Path, environ: Mapping[str, str]) -> None:
    """Trains for cfg.steps steps on `layout`, with the run directory `run_dir`."""
    processes, devices = sizes(layout)
    command = [sys.executable, "train.py", cfg.model, "--workdir", str(run_dir)]
    command += ["--max-steps", str(cfg.steps), "--batch-size", str(cfg.batch_size)]
    command += ["--max-test-samples", str(cfg.num_test), "--platform", "cpu"]
    command += ["--devices", str(devices)]
    if processes > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        command += ["--coordinator", address, "--num-processes", str(processes)]
    options = [
        ["--process-id", str(i)] if processes > 1 else [] for i in range(processes)
    ]
    log: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    log["env"] = {**os.environ, **environ}
    started = [
        subprocess.Popen(command + o, cwd=ROOT, text=True, **log) for o in options
    ]
    said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise ConfigError(
            f"training failed on layout {layout}: {said[0][-300:]} {said[-1][-300:]}"
        )


def count(layout: str, run_dir: Path) -> int:
    """Returns the number of test images that evaluate.py scores on `layout`."""
    figures = run_dir / "figures.json"
    command = [sys.executable, "evaluate.py", str(run_dir), "--output", str(figures)]
    command += ["--platform", "cpu", "--devices", str(math.prod(sizes(layout)))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"evaluation failed on layout {layout}: {done.stderr[-300:]}")
    return json.loads(figures.read_text())["count"]


def read(run_dir: Path) -> dict[str, list[np.ndarray]]:
    """Returns the loss, parameters and statistics of the run in `run_dir`."""
    import jax

    from resnet_jax import data, models, training
    from resnet_jax.run import restore
    from resnet_jax.run.directory import read_run

    cfg = read_run(run_dir)
    model = models.create(cfg.model, num_classes=10)
    shapes = training.variable_shapes(model, data.image_shape(cfg.data))
    variables = restore.load_variables(run_dir, "last", shapes).variables
    line = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    return {
        "loss": [np.array([line["train_loss"], line["test_loss"]])],
        "params": [np.asarray(leaf) for leaf in jax.tree.leaves(variables["params"])],
        "batch_stats": [
            np.asarray(leaf) for leaf in jax.tree.leaves(variables["batch_stats"])
        ],
    }


def part(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """Returns the largest difference divided by the largest value in `theirs`."""
    largest = max(np.abs(leaf).max() for leaf in theirs)
    differences = (np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True))
    return float(max(differences) / largest)


if __name__ == "__main__":
    with command_line("benchmarks.devices"):
        main(tyro.cli(Devices, description=__doc__))
