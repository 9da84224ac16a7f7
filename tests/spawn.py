"""train.py in a process of its own, on few pictures, and what it left."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Two epochs of five steps, a save at every second.
ARGUMENTS = (
    *("digits", "--model", "small", "--epochs", "2", "--batch-size", "32"),
    *("--max-train-samples", "160", "--max-test-samples", "40"),
    *("--crop-padding", "1", "--save-every-steps", "2", "--keep", "2"),
)
# The network `small`, of one block: each process traces it anew. And pictures for the
# digits: to import scikit-learn takes as long as all the rest of such a run.
SMALL = (
    "import numpy as np\n"
    "from resnet_jax import data, models\n"
    "from resnet_jax.models import blocks, resnet\n"
    "def small(**options):\n"
    "    options = {'stem': 'cifar', **options}\n"
    "    return resnet.ResNet(blocks.BasicBlock, (1,), widths=(4,), **options)\n"
    "models.MODELS['small'] = small\n"
    "def pictures(count):\n"
    "    rng = np.random.default_rng(count)\n"
    "    images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)\n"
    "    labels = np.arange(count, dtype=np.int32) % 10\n"
    "    return data.Dataset(images, labels, tuple('0123456789'))\n"
    "data._load_digits = lambda: (pictures(200), pictures(50))\n"
)
TIMES = {"seconds", "images_per_second", "compile_seconds", "startup_seconds"}


def compute(code, num_devices):
    """What `code` prints in a process with so many CPU devices."""
    environ = {**os.environ, "JAX_NUM_CPU_DEVICES": str(num_devices)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def start(run_dir, *arguments, patch=""):
    """A process that trains in `run_dir`, after the Python of `patch`."""
    # As train.py's last lines; the patch is where a fault is to happen.
    code = (
        "import os, signal, sys, time, tyro\n"
        f"{SMALL}{patch}\n"
        "import train\n"
        "from resnet_jax.commands.command_line import command_line\n"
        "from resnet_jax.recipes import RECIPES\n"
        "with command_line('train.py'):\n"
        "    train.main(tyro.extras.overridable_config_cli(RECIPES))\n"
    )
    command = [sys.executable, "-c", code, *ARGUMENTS, "--workdir", str(run_dir)]
    return subprocess.Popen(
        [*command, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*started):
    """(exit codes, standard errors) of processes, none of which is left."""
    try:
        errors = [process.communicate(timeout=300)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return [process.returncode for process in started], errors


def run(run_dir, *arguments, patch=""):
    process = start(run_dir, *arguments, patch=patch)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def lines(run_dir):
    with open(run_dir / "metrics.jsonl", encoding="utf-8") as file:
        found = [json.loads(line) for line in file]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in found]


def steps(run_dir):
    names = [path.name for path in (run_dir / "checkpoints").iterdir()]
    return sorted(int(name) for name in names if name.isdecimal())


def manifest_of(run_dir, step):
    path = run_dir / "checkpoints" / str(step) / "manifest" / "metadata"
    return json.loads(path.read_text(encoding="utf-8"))


def digests(run_dir):
    """What the newest checkpoint says of itself."""
    manifest = manifest_of(run_dir, steps(run_dir)[-1])
    return manifest["step"], manifest["digests"], manifest["train_sums"]


def at_step(number, action):
    """A patch that does `action` when step `number` is done."""
    return (
        "from resnet_jax import run as module\n"
        "before = module.Run.step\n"
        "def step(self, state, sums):\n"
        f"    if self._progress.step + 1 == {number}:\n"
        f"        {action}\n"
        "    before(self, state, sums)\n"
        "module.Run.step = step\n"
    )


KILL = "os.kill(os.getpid(), signal.SIGKILL)"
TERM = "os.kill(os.getpid(), signal.SIGTERM)"
