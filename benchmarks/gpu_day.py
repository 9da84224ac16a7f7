"""Measures everything of interest on a GPU within eight minutes, most important first.

    python -m benchmarks.gpu_day --data cifar --wheels wheels
    python -m benchmarks.gpu_day --parts fast seeds          # only these
    python -m benchmarks.gpu_day --platform cpu --tiny       # a rehearsal

The parts are:

- smoke: checks of the arithmetic, and a comparison of small networks' training steps
  with a CPU's
- resnet50, resnet18 and resnet20: training throughput compared with PyTorch's
- fast: the `fast` recipe, trained to 94 % on CIFAR-10
- seeds: the time to train four seeds at once compared with the time for one
- deterministic: training speed with --deterministic compared with the default

Each part runs in its own process. When a part's time is up, its process and all child
processes are killed; the measurements made so far are kept. After each part,
OUT/gpu_day.json and OUT/gpu_day.md are rewritten. OUT/gpu_day.log contains the
programs' output, and OUT/work contains the runs.

No network connection is needed. CIFAR-10 is read from train*.npz and test*.npz, which
contain `images` and `labels`; the files of a split are joined in the order of their
names. The following command writes a prepared CIFAR-10 data set to four files of at
most 51 MB each:

    python -c "import numpy as np; from resnet_jax import data; [np.savez(
      f'cifar/{name}{i}.npz', images=x, labels=y) for name, part, n in
      zip(('train', 'test'), data.load_dataset('cifar10'), (3, 1)) for i, (x, y) in
      enumerate(zip(np.array_split(part.images, n), np.array_split(part.labels, n)))]"
"""

import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

ROOT = Path(__file__).resolve().parent.parent
PARTS = {  # parts in order of importance, with the seconds that each may take
    "smoke": 75.0,
    "resnet50": 150.0,
    "resnet18": 75.0,
    "resnet20": 60.0,
    "fast": 120.0,
    "seeds": 75.0,
    "deterministic": 60.0,
}
TINY_PARTS = {  # resnet8 stands in for all three networks
    name.replace("resnet50", "resnet8"): seconds
    for name, seconds in PARTS.items()
    if name not in ("resnet18", "resnet20")
}
LEAST = 5.0  # seconds; no part starts if less time is left

Row = dict[str, Any]  # keys: part, what, figures (by name) and note


@dataclass(frozen=True)
class GpuDay:
    """The parts to measure, their time limits, and their data."""

    minutes: float = 8.0
    """Time limit for all parts together, in minutes."""
    out: Path = Path("gpu_day")
    """Folder for the results; its subfolder `work` is emptied first."""
    platform: Literal["cuda", "cpu"] = "cuda"
    """Platform to compute on."""
    tiny: bool = False
    """Rehearse with small networks, few steps, and scikit-learn's digits."""
    data: Path | None = None
    """Folder with CIFAR-10 as train*.npz and test*.npz; if None, a prepared data set is
    used, as in train.py."""
    wheels: Path | None = None
    """Folder with wheels that pip installs first, without a network connection."""
    parts: tuple[str, ...] = ()
    """Measure only these parts, in the usual order."""
    bound: tuple[str, ...] = ()
    """PART=SECONDS: the time limit for this part."""

    def __post_init__(self) -> None:
        if not 0 < self.minutes < math.inf:
            refuse(f"minutes {self.minutes} is not a finite number greater than 0")
        for name in self.parts:
            self._check_part(name)
        for one in self.bound:
            name, _, seconds = one.partition("=")
            self._check_part(name)
            try:
                is_time = 0 < float(seconds) < math.inf
            except ValueError:
                is_time = False
            if not is_time:
                refuse(f"bound {one!r} must be PART=SECONDS, such as smoke=60")
        needed = {"data": ("train*.npz", "test*.npz"), "wheels": ("*.whl",)}
        for option, patterns in needed.items():
            folder = getattr(self, option)
            for pattern in patterns if folder is not None else ():
                if not any(folder.glob(pattern)):
                    refuse(f"{option} {folder} contains no {pattern}")

    def _check_part(self, name: str) -> None:
        if name not in self._known:
            refuse(f"unknown part {name!r}: use one of {', '.join(self._known)}")

    @property
    def _known(self) -> dict[str, float]:
        return TINY_PARTS if self.tiny else PARTS

    def plan(self) -> dict[str, float]:
        """Returns the parts in order, with the seconds that each may take."""
        given = (one.partition("=") for one in self.bound)
        bounds = {name: float(seconds) for name, _, seconds in given}
        known = {**self._known, **bounds}
        return {name: known[name] for name in known if name in (self.parts or known)}


def refuse(reason: str) -> NoReturn:
    # Imported here because the package's dependencies may not be installed until
    # install() has run.
    from resnet_jax.errors import ConfigError

    raise ConfigError(reason)


def main(cfg: GpuDay) -> None:
    from resnet_jax import files

    begun = time.monotonic()
    files.check_writable(cfg.out, "folder", "--out")
    out = cfg.out.resolve()
    shutil.rmtree(out / "work", ignore_errors=True)
    (out / "work").mkdir()
    (out / "gpu_day.log").unlink(missing_ok=True)
    # The handler raises SystemExit, so that the running part is killed as well.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    parts: list[Row] = []
    rows: list[Row] = []
    for name, bound in cfg.plan().items():
        left = 60 * cfg.minutes - (time.monotonic() - begun)
        seconds, end = 0.0, "not started: the total time limit had been reached"
        if left >= LEAST:
            at = time.monotonic()
            found, end = carry_out(cfg, name, bound, left, out)
            seconds = time.monotonic() - at
            rows += [{"part": name, **row} for row in found]
        figures = {"seconds": seconds, "bound": bound}
        rows.append({"part": name, "what": "whole", "figures": figures, "note": end})
        parts.append({"part": name, **figures, "end": end})
        print(f"{name}: {seconds:.0f} s, {end}", file=sys.stderr, flush=True)
        settings = {
            k: str(v) if isinstance(v, Path) else v for k, v in vars(cfg).items()
        }
        record = {"settings": settings, "parts": parts, "rows": rows}
        files.write_json(out / "gpu_day.json", record)
        files.write_text(out / "gpu_day.md", table(rows))
    print(table(rows), end="")


def carry_out(
    cfg: GpuDay, name: str, bound: float, left: float, out: Path
) -> tuple[list[Row], str]:
    """Runs a part within its time limit; returns its rows and how it ended."""
    rows, work = out / "work" / f"{name}.json", out / "work"
    day = {
        **{"platform": cfg.platform, "tiny": cfg.tiny, "work": str(work)},
        "data": None if cfg.data is None else str(cfg.data.resolve()),
    }
    command = [sys.executable, "-m", "benchmarks.gpu_day_parts", name, json.dumps(day)]
    with (out / "gpu_day.log").open("a+b") as log:
        log.write(f"== {name}\n".encode())
        log.flush()
        process = subprocess.Popen(
            [*command, str(rows)],
            cwd=ROOT,
            env=environment(cfg, name, work),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,
        )
        try:
            code = process.wait(min(bound, left))
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)  # not reaped yet, so its ID is valid
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            whose = "its maximum" if bound <= left else "the total time"
            end = f"killed after {min(bound, left):.0f} s because it reached {whose}"
        else:
            log.seek(0)
            said = log.read().decode(errors="replace").strip().splitlines()
            end = "done" if code == 0 else f"failed (code {code}): {said[-1][:200]}"
    return json.loads(rows.read_text()) if rows.exists() else [], end


def environment(cfg: GpuDay, part: str, work: Path) -> dict[str, str]:
    """Returns the environment variables for a part, which has its own caches."""
    # Only the smoke part may also use the CPU. In all other parts, JAX must not fall
    # back to the CPU if the GPU fails.
    platforms = {cfg.platform: None, **({"cpu": None} if part == "smoke" else {})}
    found = {
        **os.environ,
        "JAX_PLATFORMS": ",".join(platforms),
        "RESNET_JAX_CACHE": str(work / "cache"),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "PYTHONUNBUFFERED": "1",
    }
    if cfg.tiny:
        found.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    else:  # no compilation cache, because compilation time is measured
        found.pop("JAX_COMPILATION_CACHE_DIR", None)
    return found


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as a Markdown table."""
    lines = ["| part | what | figures | note |", "|---|---|---|---|"]
    for row in rows:
        figures = ", ".join(f"{k} {shown(v)}" for k, v in row["figures"].items())
        cells = [row["part"], row["what"], figures, row["note"]]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def shown(value: float | None) -> str:
    """Returns a figure as text for the table; None stands for a non-finite figure."""
    if value is None:
        return "not finite"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def install(arguments: Sequence[str]) -> None:
    """Installs the wheels in --wheels, which may include packages imported below."""
    split = [part for one in arguments for part in one.split("=", 1)]
    named = [b for a, b in itertools.pairwise(split) if a == "--wheels"]
    wheels = [str(path) for one in named for path in Path(one).glob("*.whl")]
    if wheels:  # if pip fails, it prints why, and an import below fails
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index"]
        subprocess.run([*pip, "--find-links", named[0], *wheels])


if __name__ == "__main__":
    install(sys.argv[1:])
    import tyro

    from resnet_jax.commands.command_line import command_line

    with command_line("benchmarks.gpu_day"):
        main(tyro.cli(GpuDay, description=__doc__))
