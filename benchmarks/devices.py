"""One run on 1, 2, 4 and 8 CPU devices, and on two processes of two: the same numbers?

    python -m benchmarks.devices --model hresnet --steps 20

Each layout is train.py in processes of its own, from one seed. Prints how far loss,
parameters and BatchNorm statistics part from one device's: the largest difference over
the largest value of the same kind.
"""

import json
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from resnet_jax.errors import ConfigError, command_line

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Devices:
    """What is compared."""

    model: str = "hresnet"
    """Recipe."""
    steps: int = 20
    """Of training."""
    batch_size: int = 128
    """Of all devices together."""
    num_test: int = 1003
    """Test pictures, which need not divide."""
    layouts: tuple[str, ...] = ("1", "2", "4", "8", "2x2")
    """Devices, or processes x devices of each; the first is compared with."""


def main(cfg: Devices) -> None:
    print("| layout | loss | parameters | statistics | test pictures |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for layout in cfg.layouts:
            runs.append(train(cfg, layout, Path(folder, layout)))
            shown = [f"{part(runs[-1][k], runs[0][k]):.1e}" for k in runs[0]]
            print(f"| {layout} | {' | '.join(shown)} | {cfg.num_test} |", flush=True)


def train(cfg: Devices, layout: str, run_dir: Path) -> dict[str, list[np.ndarray]]:
    """Loss, parameters and statistics after cfg.steps on `layout`."""
    processes, devices = map(int, ("1x" + layout).split("x")[-2:])
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
    started = [
        subprocess.Popen(command + o, cwd=ROOT, text=True, **log) for o in options
    ]
    said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise ConfigError(f"layout {layout} failed: {said[0][-300:]} {said[-1][-300:]}")
    return read(run_dir)


def read(run_dir: Path) -> dict[str, list[np.ndarray]]:
    """What the run in `run_dir` came to, by kind."""
    import jax

    from resnet_jax import checkpoint, data, models, training
    from resnet_jax.rundir import read_run

    cfg = read_run(run_dir)
    model = models.create_model(cfg.model, num_classes=10, **cfg.architecture)
    shapes = training.variable_shapes(model, data.image_shape(cfg.dataset))
    variables, _ = checkpoint.load_variables(run_dir, "last", shapes)
    line = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    return {
        "loss": [np.array([line["train_loss"], line["test_loss"]])],
        "params": [np.asarray(leaf) for leaf in jax.tree.leaves(variables["params"])],
        "batch_stats": [
            np.asarray(leaf) for leaf in jax.tree.leaves(variables["batch_stats"])
        ],
    }


def part(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """The largest difference over the largest value."""
    largest = max(np.abs(leaf).max() for leaf in theirs)
    differences = (np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True))
    return float(max(differences) / largest)


if __name__ == "__main__":
    with command_line("benchmarks.devices"):
        main(tyro.cli(Devices, description=__doc__))
