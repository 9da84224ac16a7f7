"""Starts training processes, forked from one that has already imported JAX."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from resnet_jax.run import signals

ROOT = Path(__file__).parent.parent
# Two epochs of five steps, with a save at every second step.
ARGUMENTS = (
    *("digits", "--model", "small", "--epochs", "2", "--batch-size", "32"),
    *("--max-train-samples", "160", "--max-test-samples", "40"),
    *("--crop-padding", "1", "--save-every-steps", "2", "--keep-checkpoints", "2"),
)
TIMES = {"seconds", "images_per_second", "compile_seconds", "startup_seconds"}
_server = multiprocessing.get_context("forkserver")
# None of these computes or starts a thread on import.
_PRELOADED = ["spawn", "faults", "resnet_jax.commands.train", "resnet_jax.run.session"]


_OPENING = ("network: ", "images: ", "steps: ", "devices: ", "output: ", "compiling ")


def said(stderr):
    """Returns the lines on stderr, except for those that every run prints."""
    lines = stderr.splitlines()
    return [line for line in lines if not line.startswith((*_OPENING, "done: "))]


def make_small() -> None:
    """Registers the network `small`, with one block, because each process traces it.

    Also replaces the digits, because importing scikit-learn takes as long as the rest.
    """
    import numpy as np

    from resnet_jax import models
    from resnet_jax.data import sources
    from resnet_jax.data.dataset import Dataset
    from resnet_jax.models.blocks import BasicBlock
    from resnet_jax.models.resnet import ResNet

    def images(count):
        rng = np.random.default_rng(count)
        pixels = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
        labels = np.arange(count, dtype=np.int32) % 10
        return Dataset(pixels, labels, tuple("0123456789"))

    models.MODELS["small"] = partial(
        ResNet, block=BasicBlock, stage_sizes=(1,), widths=(4,), stem="cifar"
    )
    sources.SOURCES["digits"] = sources.Source(
        (32, 32, 3), lambda cfg: (10, lambda: (images(200), images(50)))
    )


class Started:
    """A process, with subprocess.Popen's interface.

    Its output comes through pipes, because limits on file sizes apply to files.

    Args:
      function: the function to run.
      args: its arguments.
      environ: variables to add to its environment.
    """

    def __init__(self, function: Callable[..., None], *args, environ=None) -> None:
        pipes = [_server.Pipe(duplex=False) for _ in ("out", "err")]
        writers = [writer for _, writer in pipes]
        given = {**os.environ, **(environ or {})}
        self._process = _server.Process(
            target=_run, args=(writers, given, function, args)
        )
        self._process.start()
        self.pid = self._process.pid
        self._written = [bytearray(), bytearray()]
        self._threads = []
        for (reader, writer), buffer in zip(pipes, self._written, strict=True):
            writer.close()
            thread = threading.Thread(target=_read, args=(reader, buffer), daemon=True)
            thread.start()
            self._threads.append(thread)

    @property
    def stdout(self) -> str:
        return self._written[0].decode()

    @property
    def stderr(self) -> str:
        return self._written[1].decode()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float = 300) -> int | None:
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.kill()
            raise TimeoutError(self.stderr)
        for thread in self._threads:
            thread.join(10)
        return self._process.exitcode


def _read(reader, buffer: bytearray) -> None:
    while part := os.read(reader.fileno(), 2**16):
        buffer += part
    reader.close()


def _run(writers, environ, function, args) -> None:
    for number, writer in enumerate(writers, start=1):
        os.dup2(writer.fileno(), number)
        writer.close()
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1) for n in (1, 2))
    os.environ.clear()
    os.environ.update(environ)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signals.owns_process = lambda: True
    code = 1
    try:
        function(*args)
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # skips multiprocessing's cleanup


def train(run_dir, arguments: Sequence[str], faults=()) -> None:
    """Starts `train.py` with the small network, after calling `faults`."""
    from resnet_jax.commands import train as command
    from resnet_jax.commands.command_line import command_line, parse_recipe

    make_small()
    for fault in faults:
        fault()
    args = [*ARGUMENTS, "--workdir", str(run_dir), *arguments]
    with command_line("train.py"):
        command.main(parse_recipe(None, args))


def evaluate(run_dir, *arguments) -> None:
    """Starts `evaluate.py` on a run of the small network."""
    from resnet_jax import commands

    make_small()
    sys.argv = ["evaluate.py", str(run_dir), *arguments]
    commands.run("evaluate", "evaluate.py")


def describe_server() -> None:
    """Prints what a process inherits from its server, and the server's threads.

    The threads of a JAX backend or of orbax would be missing after a fork.
    """
    threads = os.listdir(f"/proc/{os.getppid()}/task")
    print(json.dumps({"has_jax": "jax" in sys.modules, "threads": len(threads)}))


def start(run_dir, *arguments, faults=()) -> Started:
    return Started(train, run_dir, [*map(str, arguments)], list(faults))


def run(run_dir, *arguments, faults=()) -> Started:
    process = start(run_dir, *arguments, faults=faults)
    process.wait()
    return process


def finish(*started: Started):
    """Waits for processes; returns their exit codes and standard errors."""
    try:
        for process in started:
            process.wait()
    finally:
        for process in started:
            process.kill()
    return [process.returncode for process in started], [p.stderr for p in started]


def compute(code, num_devices):
    """Returns what `code` prints in a process with a number of CPU devices."""
    environ = {**os.environ, "JAX_NUM_CPU_DEVICES": str(num_devices)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


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
    """Returns the manifest of the newest checkpoint."""
    manifest = manifest_of(run_dir, steps(run_dir)[-1])
    return manifest["step"], manifest["digests"], manifest["train_sums"]


_server.set_forkserver_preload(_PRELOADED)
