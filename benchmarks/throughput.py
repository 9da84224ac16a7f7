"""Compares our training and inference speed with PyTorch's on the same machine.

    python -m benchmarks.throughput --models hresnet resnet20     # steps on one batch
    python -m benchmarks.throughput --epoch --max-train-samples 12800
    python -m benchmarks.throughput --scaling resnet20 --plot scaling.png

Each program runs in its own process. The programs take turns: each runs a step that is
not timed, and then a block of timed steps. The order is reversed in every round, so
that other load on the machine affects all programs alike. Both frameworks start from
uint8 images on the device, normalize them, and use the same number of threads. PyTorch
uses its fused optimizers, and torch.autocast for bfloat16.

PyTorch's modes are eager (NCHW), channels_last, compile (torch.compile and
channels_last) and, if requested, reduce-overhead (compile with CUDA graphs). The best
mode is the one with the highest median rate. Each ratio compares a block of our program
with the block of the best PyTorch mode in the same round.

The time to the first step is measured from the start of the process and includes
imports. The first step is "cold" with an empty cache of compiled programs, and "warm"
with a filled one. On a CPU, peak memory covers the whole process, including its imports
and, for a cold step, the compilers. On a GPU, peak memory covers only the arrays.

--epoch measures whole epochs of CIFAR-10, with each program's own data loading and the
recipe's augmentation. --scaling measures how the cost of our training step grows with
the batch size, and with the depth of the CIFAR networks.
"""

import contextlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from benchmarks.contestants import AT_224, OURS, Task, recipe
from resnet_jax.commands import hugepages
from resnet_jax.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parent.parent
BATCH_SIZES = {  # batch sizes (on a CPU, on a GPU)
    "hresnet": (128, 512),
    "resnet20": (128, 1024),
    "resnet18": (128, 512),
    "resnet50": (16, 128),
}
OTHER_BATCH_SIZES = (128, 512)
CLIFF = 1.5  # a larger ratio of successive costs counts as a cliff

Ask = Callable[..., dict[str, Any]]  # sends a command and returns the answer
Row = dict[str, Any]
TorchMode = Literal["eager", "channels_last", "compile", "reduce-overhead"]


@dataclass(frozen=True)
class Throughput:
    """The programs to measure, and how long to measure them."""

    models: tuple[str, ...] = tuple(BATCH_SIZES)
    """Networks to measure; ImageNet networks except resnet18 use 224x224 images."""
    modes: tuple[Literal["train", "infer"], ...] = ("train", "infer")
    """What to measure: training steps, or forward passes in inference mode."""
    torch_modes: tuple[TorchMode, ...] = ("eager", "channels_last", "compile")
    """PyTorch's modes to measure; the best one is compared with our program."""
    batch_size: int | None = None
    """Number of images per step. The default depends on the model."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the arithmetic."""
    rounds: int = 5
    """Number of timed blocks per program after a warm-up, or of epochs with --epoch."""
    seconds: float = 5.0
    """Approximate length of a block, in seconds."""
    warm: bool = True
    """Start each program twice to also measure its first step with a filled cache."""
    epoch: bool = False
    """Measure whole epochs of CIFAR-10, with the images in memory, instead of steps."""
    max_train_samples: int | None = None
    """With --epoch: number of images, from the beginning of the training set."""
    scaling: str | None = None
    """Model for which to measure how the training cost grows with batch size and depth,
    instead of comparing with PyTorch."""
    batch_sizes: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    """Batch sizes for --scaling."""
    depths: tuple[int, ...] = (20, 32, 44, 56, 110)
    """Depths for --scaling with batches of 128 (20 means resnet20); can be empty."""
    plot: Path | None = None
    """With --scaling: PNG file for the plot."""
    json: Path | None = None
    """JSON file for all figures."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "rounds", "max_train_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} {value} is too small: it must be at least 1")
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ConfigError(
                f"batch_sizes {self.batch_sizes} must not be empty, and each "
                "must be at least 1"
            )
        if self.plot is not None and self.scaling is None:
            raise ConfigError(f"plot {self.plot} requires --scaling MODEL")
        if not self.seconds > 0:
            raise ConfigError(
                f"seconds {self.seconds} is too small: it must be greater than 0"
            )


class ProgramError(Exception):
    """Raised if a program cannot run; the message states the reason."""


def main(cfg: Throughput) -> None:
    from resnet_jax.models.factory import list_models

    depths = [f"resnet{depth}" for depth in cfg.depths]
    for name in [cfg.scaling, *depths] if cfg.scaling else cfg.models:
        if name not in list_models():
            raise ConfigError(
                f"unknown model {name!r}: use one of {', '.join(list_models())}"
            )
    for package in () if cfg.scaling else ("torch", "torchvision"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"{package} is required: run pip install -e '.[torch]'")
    for path in (cfg.json, cfg.plot):
        if path is not None:  # so that an error occurs now, not after the measurements
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            except OSError as error:
                reason = f"{path} cannot be written ({error.strerror})"
                raise ConfigError(reason) from None
    machine = describe([OURS] if cfg.scaling else [OURS, "eager"])
    note(machine["text"])
    record: Row = {"machine": machine, "settings": asdict(cfg)}
    if cfg.scaling:
        record["scaling"] = scaling(cfg, cfg.scaling, bool(machine["gpu"]))
        text = scaling_table(record["scaling"])
        if cfg.plot is not None:
            plot(record["scaling"], cfg.plot)
    else:
        with tempfile.TemporaryDirectory() as folder:
            source, file = "noise, on the device", Path(folder, "train.npz")
            if cfg.epoch:
                source = write_images(file, cfg.max_train_samples)
            tasks = make_tasks(cfg, gpu=bool(machine["gpu"]), data=str(file))
            record |= {"data": source, "rows": [measure(cfg, task) for task in tasks]}
        text = f"{table(record['rows'])}\n- Images: {source}."
        for model in set(cfg.models) & set(AT_224) if cfg.epoch else ():
            text += f"\n- {model} epoch: not measured, because its images are 224x224."
    if cfg.json is not None:
        cfg.json.write_text(json.dumps(record, indent=1, default=str), encoding="utf-8")
    print(f"{machine['text']}\n\n{text}")


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def started(task: Task, cache: Path | None = None) -> Iterator[tuple[Ask, Row]]:
    """Starts a process for `task`.

    Yields (ask, first): ask(command, ...) sends a command to the process and returns
    the answer; `first` is the first answer, whose `seconds` is the time until it came.

    Args:
      cache: the folder for compiled programs; None uses the one that the user's
        environment selects.

    Raises:
      ProgramError: if the process cannot run. `ask` raises the same error if the
        process has ended.
    """
    # The programs share a GPU, so no program may preallocate most of the memory.
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    # Our program uses huge pages, as train.py does. Whether PyTorch uses huge pages
    # depends on the user's environment.
    if task.program == OURS:
        environment = hugepages.with_huge_pages(environment)
    if not task.gpu and task.kind != "describe":
        environment["JAX_PLATFORMS"] = "cpu"
    if cache is not None:
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "TORCHINDUCTOR_CACHE_DIR": str(cache),
        }
    command = [sys.executable, "-m", "benchmarks.contestants", json.dumps(asdict(task))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with tempfile.TemporaryFile("w+") as log:
        begun = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stderr=log, **pipes
        )

        def answer() -> Row:
            line = process.stdout.readline()
            if not line:
                log.seek(0)
                last = (log.read().strip() or "no output").splitlines()[-1]
                raise ProgramError(f"exit code {process.wait()}: {last[:200]}")
            found = json.loads(line)
            if "error" in found:
                raise ProgramError(found["error"])
            return found

        def ask(*command: object) -> Row:
            with contextlib.suppress(BrokenPipeError):  # answer() raises ProgramError
                print(*command, file=process.stdin, flush=True)
            return answer()

        try:
            first = answer()
            yield ask, {**first, "seconds": time.perf_counter() - begun}
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


def describe(programs: Sequence[str]) -> Row:
    """Returns the processor, threads, versions, and the GPU if all programs can use it.

    Raises:
      ConfigError: if one of the programs cannot run.
    """
    said = []
    for program in programs:
        try:
            with started(Task(program, "describe")) as (_, first):
                said.append(first)
        except ProgramError as error:
            raise ConfigError(f"{program} cannot run: {error}") from None
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [x.split(":")[1].strip() for x in lines if x.startswith("model name")]
    machine = {
        "cpu": names[0] if names else platform.machine(),
        "threads": said[0]["threads"],
        "gpu": said[0]["gpu"] if all(x["gpu"] for x in said) else None,
        "versions": {k: v for x in said for k, v in x["versions"].items()},
    }
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    text = "{cpu}, threads: {threads}, GPU: {gpu}; ".format_map(machine) + versions
    return {**machine, "text": text}


def write_images(path: Path, count: int | None) -> str:
    """Writes CIFAR-10 training images, or noise if missing; returns a description."""
    from resnet_jax import data
    from resnet_jax.data import tfds

    try:
        if tfds.find("cifar10", tfds.default_data_dir()) is None:
            raise DataError("CIFAR-10 has not been prepared")
        train, _ = data.load_dataset("cifar10")
        source, images, labels = "CIFAR-10's", train.images, train.labels
    except (DataError, ImportError) as error:
        rng = np.random.default_rng(0)
        source = f"noise, because {error}"
        images = rng.integers(0, 256, (50_000, 32, 32, 3), np.uint8)
        labels = rng.integers(0, 10, 50_000, np.int32)
    images, labels = images[:count], labels[:count]
    np.savez(path, images=images, labels=labels)
    return f"{source} ({len(labels):,})"


def make_tasks(cfg: Throughput, *, gpu: bool, data: str) -> list[Task]:
    """Returns the task of our program for each row of the table."""
    tasks = []
    for model in cfg.models:
        options: Row = {"model": model, "dtype": cfg.dtype, "gpu": gpu}
        if not cfg.epoch:
            size = cfg.batch_size or BATCH_SIZES.get(model, OTHER_BATCH_SIZES)[gpu]
            options["batch_size"] = size
            tasks += [Task(OURS, kind, **options) for kind in cfg.modes]
        elif model not in AT_224:
            options["batch_size"] = cfg.batch_size or recipe(model).data.batch_size
            tasks.append(Task(OURS, "epoch", data=data, **options))
    return tasks


def measure(
    cfg: Throughput, ours: Task, seen: Callable[[Row], None] = lambda row: None
) -> Row:
    """Measures our program and each PyTorch mode in alternating blocks.

    Args:
      seen: a function that is called after each start and each round, with the
        unfinished row.
    """
    in_steps = ours.kind != "epoch"
    programs: dict[str, Row] = {}
    asks: dict[str, Ask] = {}
    row: Row = {**asdict(ours), "macs": None, "programs": programs}
    del row["program"], row["data"]
    with tempfile.TemporaryDirectory() as caches, contextlib.ExitStack() as stack:
        for name in (OURS, *cfg.torch_modes):
            task, cache = replace(ours, program=name), Path(caches, name)
            programs[name] = {"rates": [], "matmul": []}
            with left_out_if_failing(name, programs, asks):
                asks[name], cold = stack.enter_context(started(task, cache))
                if in_steps:
                    programs[name]["cold"] = cold["seconds"]
                if in_steps and cfg.warm:
                    with started(task, cache) as (ask, warm):
                        ask("block", cfg.seconds)  # a second step, with the same shapes
                        warm_bytes = ask("memory")["bytes"]
                    again = {"warm": warm["seconds"], "warm_bytes": warm_bytes}
                    programs[name] |= again
            seen(conclude(row))
        for number in range(0 if in_steps else 1, cfg.rounds + 1):
            for name in list(asks)[:: -1 if number % 2 else 1]:
                program, ask = programs[name], asks[name]
                with left_out_if_failing(name, programs, asks):
                    block = ask("block", cfg.seconds if in_steps else 0)
                    if number == 0:  # before the matrix product allocates memory
                        program |= ask("memory")
                    else:
                        program["rates"].append(block["images"] / block["seconds"])
                        program["matmul"].append(ask("matmul")["gflops"])
            last = {name: programs[name]["rates"][-1:] for name in asks}
            note(f"{ours.model} {ours.kind}, round {number}: {last}")
            seen(conclude(row))
        if OURS in asks:
            row |= asks[OURS]("macs")
    return conclude(row)


def conclude(row: Row) -> Row:
    """Adds the results so far to `row`: medians, PyTorch's best mode, and the ratio."""
    programs = row["programs"]
    work = 2 * (row["macs"] or 0) / 1e9 * (1 if row["kind"] == "infer" else 3)
    measured = [name for name in programs if programs[name].get("rates")]
    for name in measured:
        program = programs[name]
        program["rate"] = statistics.median(program["rates"])
        if work:
            program["gflops"] = program["rate"] * work
            pairs = zip(program["rates"], program["matmul"], strict=True)
            program["share"] = statistics.median(rate * work / x for rate, x in pairs)
    rates = {name: programs[name]["rate"] for name in measured if name != OURS}
    row.pop("ratio", None)  # the old ratio may refer to a program that has failed
    row["best"] = max(rates, key=lambda name: rates[name], default=None)
    if OURS in measured and row["best"]:
        row["ratio"] = spread(programs[OURS]["rates"], programs[row["best"]]["rates"])
    return row


@contextlib.contextmanager
def left_out_if_failing(
    name: str, programs: dict[str, Row], asks: dict[str, Ask]
) -> Iterator[None]:
    """If the body fails, replaces the figures of program `name` with the reason."""
    try:
        yield
    except ProgramError as error:
        programs[name] = {"error": str(error)}
        asks.pop(name, None)
        note(f"{name} is left out: {error}")


def spread(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Returns the median, minimum and maximum of the ratios over all rounds."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    median = statistics.median(ratios)
    return {"median": median, "min": min(ratios), "max": max(ratios)}


def table(rows: Sequence[Row]) -> str:
    """Returns a Markdown table of the rows, with notes on peaks and failed programs."""
    header = (
        *("model", "what", "batch", "dtype", "images/s ours / PyTorch"),
        *("PyTorch's best", "ratio (of rounds)", "GFLOP/s", "of the matmul peak"),
        *("peak memory cold, MB", "warm, MB", "first step cold, s", "warm, s"),
    )
    lines, notes = [header, ("---",) * len(header)], []
    for row in rows:
        programs = row["programs"]
        pair = (programs[OURS], programs.get(row["best"], {}))
        ratio = "{median:.2f} ({min:.2f} to {max:.2f})"
        cells = (
            *(row["model"], row["kind"], str(row["batch_size"]), row["dtype"]),
            *(both(pair, "rate", ",.0f"), row["best"] or "not measured"),
            ratio.format_map(row["ratio"]) if "ratio" in row else "not measured",
            *(both(pair, "gflops", ",.1f"), both(pair, "share", ".0%")),
            both(pair, "bytes", ",.0f", scale=1e-6),
            both(pair, "warm_bytes", ",.0f", scale=1e-6),
            *(both(pair, "cold", ".1f"), both(pair, "warm", ".1f")),
        )
        lines.append(cells)
        where = f"{row['model']} {row['kind']}"
        size = Task(OURS, row["kind"], gpu=row["gpu"]).matmul_size
        best = [{"peak": max(p["matmul"])} if p.get("matmul") else {} for p in pair]
        peaks = both(best, "peak", ",.0f")
        notes.append(
            f"- {where}: the product of {size}x{size} matrices reached {peaks} GFLOP/s."
        )
        notes += [
            f"- {where}: {name} not measured: {program['error']}."
            for name, program in programs.items()
            if "error" in program
        ]
    return "\n".join([*(f"| {' | '.join(cells)} |" for cells in lines), "", *notes])


def both(pair: Sequence[Row], key: str, form: str, *, scale: float = 1) -> str:
    """Returns both programs' figures as text, with "not measured" for missing ones."""
    values = [program.get(key) for program in pair]
    if all(value is None for value in values):
        return "not measured"
    texts = ("not measured" if x is None else format(x * scale, form) for x in values)
    return " / ".join(texts)


def scaling(cfg: Throughput, model: str, gpu: bool) -> dict[str, list[Row]]:
    """Times our training step for each batch size and depth, in separate processes.

    In the curve by batch size, the cost is in seconds per image; in the curve by depth,
    it is in seconds per image and multiply-add.
    """
    curves = {"batch": [(size, model, size) for size in sorted(cfg.batch_sizes)]}
    if cfg.depths:
        depths = sorted(cfg.depths)
        curves["depth"] = [(depth, f"resnet{depth}", 128) for depth in depths]
    found: dict[str, list[Row]] = {curve: [] for curve in curves}
    for curve, points in curves.items():
        for size, name, batch_size in points:
            point: Row = {"size": size, "model": name, "batch_size": batch_size}
            task = Task(OURS, "train", name, batch_size, cfg.dtype, gpu)
            try:
                with started(task) as (ask, _):
                    ask("block", cfg.seconds)  # to warm up
                    blocks = [ask("block", cfg.seconds) for _ in range(cfg.rounds)]
                    point |= {**ask("memory"), **ask("macs")}
                times = [block["seconds"] / block["images"] for block in blocks]
                work = point["macs"] if curve == "depth" else 1
                point |= {"times": times, "cost": statistics.median(times) / work}
            except ProgramError as error:
                point["error"] = str(error)
            note(f"{curve}: {point}")
            found[curve].append(point)
        measured = [point for point in found[curve] if "error" not in point]
        steep = cliffs([point["cost"] for point in measured])
        for point, is_cliff in zip(measured, steep, strict=True):
            point["cliff"] = is_cliff
    return found


def cliffs(costs: Sequence[float]) -> list[bool]:
    """Returns for each cost whether it is more than CLIFF times the previous one."""
    before = [float("inf"), *costs]
    return [b > CLIFF * a for a, b in zip(before, costs, strict=False)]


def scaling_table(curves: Mapping[str, Sequence[Row]]) -> str:
    lines = [
        "| model | batch | ms per step | images/s (rounds) | peak memory, MB | cliff |",
        "|---|---|---|---|---|---|",
    ]
    for point in (point for points in curves.values() for point in points):
        cells = ["not measured"] * 4
        if "error" not in point:
            times, memory = point["times"], both([point], "bytes", ",.0f", scale=1e-6)
            low, rate, high = (
                f"{1 / f(times):,.0f}" for f in (max, statistics.median, min)
            )
            step = 1e3 * statistics.median(times) * point["batch_size"]
            cliff = "YES" if point["cliff"] else "no"
            cells = [f"{step:,.1f}", f"{rate} ({low} to {high})", memory, cliff]
        cells = [point["model"], str(point["batch_size"]), *cells]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(curves: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Saves a plot of step time and peak memory by batch size and depth to `path`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    grid = figure.subplots(2, len(curves), squeeze=False)
    for (curve, points), column in zip(curves.items(), grid.T, strict=True):
        first = points[0]
        fixed = f"batch {first['batch_size']}" if curve == "depth" else first["model"]
        points = [point for point in points if "error" not in point]
        sizes = [point["size"] for point in points]
        times = [1e3 * statistics.median(p["times"]) * p["batch_size"] for p in points]
        memory = [(point["bytes"] or float("nan")) / 1e6 for point in points]
        column[0].set(ylabel="training step, ms")
        column[1].set(ylabel="peak memory, MB")
        for axes, values in zip(column, (times, memory), strict=True):
            axes.loglog(sizes, values, marker="o", color="#0072B2")
            axes.set(title=fixed, xlabel=curve)
            axes.set_xticks(sizes, map(str, sizes))
            axes.set_xticks([], minor=True)
            axes.grid(which="both", alpha=0.3)
        for size, step, point in zip(sizes, times, points, strict=True):
            if point["cliff"]:
                column[0].annotate("cliff", (size, step), color="#D55E00")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    from resnet_jax.commands.command_line import command_line

    with command_line("throughput"):
        main(tyro.cli(Throughput, description=__doc__))
