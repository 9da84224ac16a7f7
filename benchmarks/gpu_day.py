"""Measures everything of interest on a GPU in eight minutes, by importance.

    python -m benchmarks.gpu_day --data cifar --wheels wheels
    python -m benchmarks.gpu_day --parts fast seeds          # only these
    python -m benchmarks.gpu_day --platform cpu --tiny       # a rehearsal

Parts: smoke (checks of the arithmetic, small networks' steps against a CPU's),
throughput of three networks against PyTorch, the `fast` recipe to 94 % on CIFAR-10,
four seeds at once against one, and --deterministic against the default. Each is a
process, which is killed with its children when its time is over; what it measured
until then is kept. After each part OUT/gpu_day.json and OUT/gpu_day.md are rewritten;
OUT/gpu_day.log has the programs' output, and OUT/work the runs.

No network is needed. CIFAR-10 comes from .npz files with `images` and `labels`,
train*.npz and test*.npz, the parts of a split in the order of their names. From a
prepared CIFAR-10 this makes four of at most 51 MB:

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
PARTS = {  # in the order of their worth; seconds that each may take
    "smoke": 75.0,
    "resnet50": 150.0,
    "resnet18": 75.0,
    "resnet20": 60.0,
    "fast": 120.0,
    "seeds": 75.0,
    "deterministic": 60.0,
}
TINY_PARTS = {  # one network stands for three
    name.replace("resnet50", "resnet8"): seconds
    for name, seconds in PARTS.items()
    if name not in ("resnet18", "resnet20")
}
LEAST = 5.0  # seconds; with less left no part begins

Row = dict[str, Any]  # part, what, figures by name, note


@dataclass(frozen=True)
class GpuDay:
    """What is measured, for how long, and from what."""

    minutes: float = 8.0
    """Length of all parts together."""
    out: Path = Path("gpu_day")
    """The folder of the results; its folder `work` is emptied first."""
    platform: Literal["cuda", "cpu"] = "cuda"
    """Where to compute."""
    tiny: bool = False
    """Rehearse: small networks, few steps, and scikit-learn's digits."""
    data: Path | None = None
    """A folder with CIFAR-10 as train*.npz and test*.npz; else a prepared one is
    looked for, as train.py does."""
    wheels: Path | None = None
    """A folder of wheels that pip installs first, without a network."""
    parts: tuple[str, ...] = ()
    """Only these parts; they keep their order."""
    bound: tuple[str, ...] = ()
    """PART=SECONDS: the most that a part may take."""

    def __post_init__(self) -> None:
        if not 0 < self.minutes < math.inf:
            refuse(f"minutes {self.minutes} is no time: a finite number above 0")
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
                refuse(f"bound {one!r} is not PART=SECONDS, as smoke=60 is")
        needed = {"data": ("train*.npz", "test*.npz"), "wheels": ("*.whl",)}
        for option, patterns in needed.items():
            folder = getattr(self, option)
            for pattern in patterns if folder is not None else ():
                if not any(folder.glob(pattern)):
                    refuse(f"{option} {folder} has no {pattern}")

    def _check_part(self, name: str) -> None:
        if name not in self._known:
            refuse(f"no part {name!r}: one of {', '.join(self._known)}")

    @property
    def _known(self) -> dict[str, float]:
        return TINY_PARTS if self.tiny else PARTS

    def plan(self) -> dict[str, float]:
        """The parts in their order, and the seconds that each may take."""
        given = (one.partition("=") for one in self.bound)
        bounds = {name: float(seconds) for name, _, seconds in given}
        known = {**self._known, **bounds}
        return {name: known[name] for name in known if name in (self.parts or known)}


def refuse(reason: str) -> NoReturn:
    # Here, for what it imports may have to be installed first.
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
    # To end by it is to end the part as well.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    parts: list[Row] = []
    rows: list[Row] = []
    for name, bound in cfg.plan().items():
        left = 60 * cfg.minutes - (time.monotonic() - begun)
        seconds, end = 0.0, "not begun: the time of all was over"
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
    """What the part `name` told in its seconds, or what is left, and how it ended."""
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
            os.killpg(process.pid, signal.SIGKILL)  # no other's: it was not waited for
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            whose = "its time" if bound <= left else "the time of all"
            end = f"killed after {min(bound, left):.0f} s, {whose}"
        else:
            log.seek(0)
            said = log.read().decode(errors="replace").strip().splitlines()
            end = "done" if code == 0 else f"failed, exit code {code}: {said[-1][:200]}"
    return json.loads(rows.read_text()) if rows.exists() else [], end


def environment(cfg: GpuDay, part: str, work: Path) -> dict[str, str]:
    """Returns the environment of a part: its own caches, and room on the GPU."""
    # Only smoke may use the CPU as well: JAX would fall back to it if the GPU fails.
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
    else:  # the time of compiling is measured
        found.pop("JAX_COMPILATION_CACHE_DIR", None)
    return found


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = ["| part | what | figures | note |", "|---|---|---|---|"]
    for row in rows:
        figures = ", ".join(f"{k} {shown(v)}" for k, v in row["figures"].items())
        cells = [row["part"], row["what"], figures, row["note"]]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def shown(value: float | None) -> str:
    """A figure as the table has it; None stands for one that is not finite."""
    if value is None:
        return "not finite"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def install(arguments: Sequence[str]) -> None:
    """Has pip install the wheels that --wheels names; what it needs may be of them."""
    split = [part for one in arguments for part in one.split("=", 1)]
    named = [b for a, b in itertools.pairwise(split) if a == "--wheels"]
    wheels = [str(path) for one in named for path in Path(one).glob("*.whl")]
    if wheels:  # where pip fails it says why, and what is missing is missed
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index"]
        subprocess.run([*pip, "--find-links", named[0], *wheels])


if __name__ == "__main__":
    install(sys.argv[1:])
    import tyro

    from resnet_jax.commands.command_line import command_line

    with command_line("benchmarks.gpu_day"):
        main(tyro.cli(GpuDay, description=__doc__))
