"""Injects faults into small training runs and compares them with undisturbed runs.

    python -m benchmarks.chaos                        # 200 faults, about half an hour
    python -m benchmarks.chaos --faults 20 --seed 1

The faults are:

- SIGKILL, SIGTERM, SIGINT, or two signals in a row, at a random moment; half of these
  moments are chosen to fall shortly after a checkpoint, during training steps or a save
- a full disk (a small tmpfs, which only root can mount), where space is freed either
  after a while or only after the run has given up
- storage that reports a save as complete but does not keep the checkpoint, or keeps it
  without its index
- standard streams that are full or closed, or whose reader goes away at a random moment
- a file of the newest checkpoint that, between two processes, is truncated, is removed,
  or has one bit flipped

After each fault, the same command resumes the run. At the end, the metrics and arrays
of the run must be bit-identical to those of an undisturbed run; otherwise, the run
counts as lost. A run also counts as lost if one of its processes fails to report a save
that was not kept, removes the checkpoint before that save, or ends with an exit code
that docs/reliability.md does not list for the fault.
"""

import contextlib
import json
import logging
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

ROOT = Path(__file__).resolve().parent.parent
DISK = 24  # size of the tmpfs in MB, ten times what a run needs
FILLER = "filler"  # the file that fills the disk
TIMES = {"seconds", "images_per_second", "compile_seconds", "startup_seconds"}
# Each variant trains for 2 epochs of 12 steps, saves every second step, and has its own
# options.
COMMON = (
    *("digits", "--model", "resnet8", "--epochs", "2", "--batch-size", "32"),
    *("--max-train-samples", "380", "--max-test-samples", "60"),
    *("--save-every-steps", "2", "--keep-checkpoints", "2"),
)
VARIANTS = (
    ("--crop-padding", "1", "--flip", "random"),
    ("--optimizer", "adam", "--lr", "0.001", "--validation-split", "0.1"),
    ("--dropout", "0.2", "--label-smoothing", "0.1", "--log-gradients"),
)
SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT", "two signals")
DAMAGES = ("truncated", "bit flipped", "removed")
DISKS = ("disk full temporarily", "disk full until the end")
READERS = ("reader of stdout gone", "readers of stdout and stderr gone")
STORES = ("store keeps nothing", "store keeps no index")
STREAMS = {  # shell redirections for the standard streams of a process
    "stdout full": ">/dev/full",
    "stdout and stderr full": ">/dev/full 2>&1",
    "stdout closed": ">&-",
    "stdout and stderr closed": ">&- 2>&-",
}
SAVES = 8  # the lost save is one of a process's first 8; a whole run has 12 saves


@dataclass(frozen=True)
class Chaos:
    """Options of the benchmark."""

    faults: int = 200
    """Total number of faults of all types."""
    seed: int = 0
    """Random seed for the faults; their exact timing also depends on the machine."""
    out: Path = Path("runs/chaos")
    """Folder for the runs, which is emptied first."""


@dataclass
class Life:
    """A run trained to completion, with the faults and problems that occurred."""

    run_dir: Path
    variant: int
    faults: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def main(cfg: Chaos) -> None:
    rng = random.Random(cfg.seed)
    shutil.rmtree(cfg.out, ignore_errors=True)
    cfg.out.mkdir(parents=True)
    alone, seconds = [], []
    for variant in range(len(VARIANTS)):
        run_dir = cfg.out / f"alone{variant}"
        for _ in range(2):  # the second run uses the compilation cache of the first
            shutil.rmtree(run_dir, ignore_errors=True)
            begun = time.monotonic()
            code, errors = finish(start(cfg, run_dir, variant))
            if code:
                raise SystemExit(
                    f"an undisturbed run ended with exit code {code}: {errors}"
                )
        seconds.append(time.monotonic() - begun)
        alone.append(outcome(run_dir))
    counts: Counter[str] = Counter()
    lost = survived = 0
    with small_disk(cfg.out / "disk") as disk:
        kinds = [*SIGNALS, *READERS, *(DISKS if disk else ())]
        if not disk:
            print("cannot mount a tmpfs: full disks are not tested")
        while sum(counts.values()) < cfg.faults:
            variant = rng.randrange(len(VARIANTS))
            number = lost + survived
            home = disk if disk and rng.random() < 0.5 else cfg.out
            life = Life(home / f"run{number}", variant)
            own = kinds if home == disk else [k for k in kinds if k not in DISKS]
            live(cfg, life, own, rng, seconds[variant])
            if not life.problems and outcome(life.run_dir) != alone[variant]:
                life.problems.append("the results differ from an undisturbed run's")
            counts.update(life.faults)
            lost, survived = lost + bool(life.problems), survived + (not life.problems)
            end = f"LOST, {'; '.join(life.problems)}" if life.problems else "survived"
            faults = ", ".join(life.faults) or "nothing"
            print(f"{life.run_dir.name}: {faults}: {end}", flush=True)
            if life.problems:
                shutil.copytree(life.run_dir, cfg.out / f"lost{number}")
            shutil.rmtree(life.run_dir)
    for kind, count in sorted(counts.items()):
        print(f"{count:4d}  {kind}")
    print(
        f"{sum(counts.values())} faults (seed {cfg.seed}) in {lost + survived} runs: "
        f"{survived} survived bit-identically, {lost} lost"
    )
    if lost:
        raise SystemExit(1)


def start(
    cfg: Chaos, run_dir: Path, variant: int, fault: str = "", save: int = 0
) -> subprocess.Popen[str]:
    """Starts train.py, optionally with a fault from STREAMS or STORES.

    Args:
      save: for a fault from STORES, the number of saves before the one that is lost.
    """
    program = ["train.py"]
    if fault in STORES:
        code = "from benchmarks import chaos; chaos.train_forgetting()"
        program = ["-c", code, fault, str(save)]
    command = [sys.executable, *program, *COMMON, *VARIANTS[variant]]
    command += ["--workdir", str(run_dir.absolute())]
    if fault in STREAMS:
        command = ["sh", "-c", f'exec "$@" {STREAMS[fault]}', "sh", *command]
    caching = {
        "JAX_COMPILATION_CACHE_DIR": str((cfg.out / "compiled").absolute()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **caching},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def train_forgetting() -> None:
    """Runs train.py in this process, on storage that loses one save.

    The command-line arguments are the type of fault, the number of saves before the
    fault, and the arguments of train.py. The lost save is never the first save of a
    run, and is reported on stderr.
    """
    from resnet_jax.commands.hugepages import start_with_huge_pages

    start_with_huge_pages()  # otherwise, train.py would restart itself
    import orbax.checkpoint as ocp

    kind, left, sys.argv = sys.argv[1], int(sys.argv[2]), ["train.py", *sys.argv[3:]]
    keep, before = ocp.CheckpointManager.save, None

    def save(manager: ocp.CheckpointManager, step: int, **options: Any) -> bool:
        nonlocal left, before
        known = steps(Path(manager.directory).parent)
        if before and before not in known:
            print(f"chaos: checkpoint {before} is gone", file=sys.stderr, flush=True)
        before = before and 0  # later saves may remove the preceding checkpoint
        is_kept: bool = keep(manager, step, **options)
        left -= 1
        if left < 0 and known and before is None:
            manager.wait_until_finished()
            before, folder = max(known), Path(manager.directory) / str(step)
            if kind == STORES[0]:
                shutil.rmtree(folder)
            else:
                (folder / "state" / "manifest.ocdbt").unlink()
            print(f"chaos: step {step}, {kind}", file=sys.stderr, flush=True)
        return is_kept

    ocp.CheckpointManager.save = save
    # Make train.py believe that this process was started as train.py.
    sys.orig_argv = [sys.executable, *sys.argv]
    runpy.run_path("train.py", run_name="__main__")


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Waits for a process to end; returns its exit code and stderr."""
    try:
        _, errors = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.kill()
        _, errors = process.communicate()
        return 1, f"it hung: {errors}"
    return process.returncode, errors


def live(
    cfg: Chaos, life: Life, kinds: list[str], rng: random.Random, seconds: float
) -> None:
    """Disturbs a run one to five times, and then lets it finish.

    Args:
      kinds: the types of faults that may be injected into a running process.
      seconds: the approximate duration of an undisturbed run.
    """
    left = rng.randint(1, 5)
    while not life.problems:
        damage = rng.choice(DAMAGES)
        if left and rng.random() < 0.4 and damage_newest(life.run_dir, damage, rng):
            life.faults.append(damage)
            left -= 1
        kind, inborn = rng.choice(kinds), ""
        if left and kind not in READERS and rng.random() < 0.4:
            inborn = rng.choice([rng.choice(STORES), rng.choice([*STREAMS])])
            left -= 1
        process = start(cfg, life.run_dir, life.variant, inborn, rng.randrange(SAVES))
        allowed = {0}
        if left and wait(process, life.run_dir, rng, seconds):
            left -= 1
            life.faults.append(kind)
            allowed |= disturb(process, life.run_dir, kind, rng)
        code, errors = finish(process)
        (life.run_dir.parent / FILLER).unlink(missing_ok=True)
        if inborn in STREAMS or f", {inborn}\n" in errors:
            life.faults.append(inborn)
            life.problems += unheeded(code, errors)
        if code not in allowed or ("Traceback" in errors and code not in (130, -2)):
            life.problems.append(f"exit {code}: {errors[-2000:]}")
        if code == 0 and not left:
            return
        if code == 0:  # the run finished before all planned faults had occurred
            left = 0


def disturb(
    process: subprocess.Popen[str], run_dir: Path, kind: str, rng: random.Random
) -> set[int]:
    """Injects a fault into a process; returns the exit codes allowed besides 0."""
    if kind in DISKS:
        filler = fill(run_dir.parent)
        if kind == DISKS[0]:
            time.sleep(rng.uniform(0.1, 1))
            filler.unlink()
        # The disk may be full at the last save, or before the run directory exists.
        return {2, 4}
    if kind in READERS:
        for stream in (process.stdout, process.stderr)[: 1 + READERS.index(kind)]:
            if stream is not None:
                stream.close()
        return set()
    if kind == "two signals":
        first, second = (rng.choice(SIGNALS[1:3]) for _ in range(2))
        process.send_signal(signal.Signals[first])
        time.sleep(rng.uniform(0, 1))  # signals within half a second count as one
        process.send_signal(signal.Signals[second])
        # A signal that arrives before train.py installs its handlers, or after
        # training, kills the process.
        return {75, 130, -signal.SIGTERM, -signal.SIGINT}
    process.send_signal(signal.Signals[kind])
    saved = set() if kind == "SIGKILL" else {75, 130}
    return {-signal.Signals[kind], *saved}


def unheeded(code: int, errors: str) -> list[str]:
    """Returns what a process did wrong after its storage lost a save."""
    _, _, after = errors.partition("chaos: ")
    silent = code in (0, 75) and after and "could not be saved" not in after
    return [
        *(["the process did not report the lost save"] if silent else ()),
        *(
            ["the checkpoint before the lost save is gone"]
            if " is gone\n" in after
            else ()
        ),
    ]


def wait(
    process: subprocess.Popen[str], run_dir: Path, rng: random.Random, seconds: float
) -> bool:
    """Waits until a random moment, in half of the calls shortly after a checkpoint.

    Returns whether the process is still running.
    """
    if rng.random() < 0.5:
        pause = rng.uniform(0, seconds)
    else:
        known = steps(run_dir)
        while process.poll() is None and steps(run_dir) == known:
            time.sleep(0.01)
        pause = rng.uniform(0, seconds / 3)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=pause)
    return process.poll() is None


def steps(run_dir: Path) -> list[int]:
    """Returns the step numbers of the complete checkpoints in a run directory."""
    names = [path.name for path in run_dir.glob("checkpoints/*")]
    return sorted(int(name) for name in names if name.isdecimal())


def damage_newest(run_dir: Path, how: str, rng: random.Random) -> bool:
    """Damages a file of the newest checkpoint, if an older checkpoint exists."""
    if len(steps(run_dir)) < 2:
        return False
    newest = run_dir / "checkpoints" / str(steps(run_dir)[-1])
    path = rng.choice(sorted(path for path in newest.rglob("*") if path.is_file()))
    content = bytearray(path.read_bytes())
    if how == "removed" or not content:
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[: rng.randrange(len(content))])
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    return True


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """Mounts a tmpfs of DISK megabytes; yields `folder`, or None if mounting fails."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Writes a file that fills the disk, and returns its path."""
    path = disk / FILLER
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (2**20, 2**12):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass
    return path


def outcome(run_dir: Path) -> dict[str, Any]:
    """Returns what all runs must agree on: logs without times, and array digests."""
    from resnet_jax import models, training
    from resnet_jax.run import restore

    logging.getLogger("absl").setLevel(logging.CRITICAL)
    last = steps(run_dir)[-1]
    path = run_dir / "checkpoints" / str(last) / "manifest" / "metadata"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    model = models.create_model("resnet8", num_classes=10)
    shapes = training.variable_shapes(model, (32, 32, 3))
    restore.load_variables(run_dir, str(last), shapes)  # fails on a damaged checkpoint
    logs = {}
    for name in ("metrics.jsonl", "layers.jsonl"):
        if (run_dir / name).exists():
            text = (run_dir / name).read_text(encoding="utf-8")
            lines = [json.loads(line) for line in text.splitlines()]
            logs[name] = [
                {k: v for k, v in line.items() if k not in TIMES} for line in lines
            ]
    return {
        "step": last,
        "digests": manifest["digests"],
        "sums": manifest["train_sums"],
        "logs": logs,
    }


if __name__ == "__main__":
    main(tyro.cli(Chaos, description=__doc__))
