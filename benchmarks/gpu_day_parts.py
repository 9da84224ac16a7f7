"""The parts of benchmarks.gpu_day, each in its own process.

The command line is `gpu_day_parts PART DAY FILE`, where DAY is a JSON object. Each row
is written to FILE as soon as it is known, so that it is kept if the process is killed.
"""

import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import contestants, throughput
from benchmarks.contestants import OURS, Task
from resnet_jax import fields, files
from resnet_jax.config import Config
from resnet_jax.errors import ConfigError, DataError, UserError, first_line
from resnet_jax.recipes import RECIPES

ROOT = Path(__file__).resolve().parent.parent
# These tolerances apply to float32 at the highest matmul precision. With other XLA
# kernels on a CPU, differences reached a seventh of the tolerances; the results of an
# incorrect kernel are off by several percent. Muon is excluded because it amplifies
# rounding errors (to a difference of 0.2 after three steps). The `fast` part shows
# whether Muon learns.
LOSS_TOLERANCE, PARAMETERS_TOLERANCE = 5e-4, 5e-3
BATCH_SIZES = {"resnet50": 256, "resnet18": 1024, "resnet20": 2048, "resnet8": 8}
GOAL = 0.94
FAST = ("fast", "--nesterov", "--whiten")
WIDE = ("--width", "64", "--dtype", "bfloat16")
# A rehearsal uses float32, because bfloat16 inference on CPUs returns NaNs with jax
# 0.12. The NaNs come from XLA's fusions for YNNPACK: the results are correct if
# XLA_FLAGS contains --xla_cpu_experimental_ynn_fusion_type= (an empty value).
TINY = (
    *("--width", "4", "--batch-size", "64"),
    *("--dataset", "digits", "--max-train-samples", "256"),
    *("--max-test-samples", "64"),
)

Record = dict[str, Any]  # a line of metrics.jsonl


@dataclass(frozen=True)
class Day:
    """The settings of a part. The part reports its figures with tell()."""

    file: Path
    platform: str
    tiny: bool
    work: str
    data: str | None
    _rows: dict[str, Record] = field(default_factory=dict)

    @property
    def is_gpu(self) -> bool:
        return self.platform != "cpu"

    def tell(self, what: str, figures: dict[str, float], note: str = "") -> None:
        """Writes the row for `what`, replacing any earlier row for it."""
        finite = {k: v if math.isfinite(v) else None for k, v in figures.items()}
        self._rows[what] = {"what": what, "figures": finite, "note": note}
        files.write_json(self.file, list(self._rows.values()))


def smoke(day: Day) -> None:
    """Runs the `resnet-jax doctor` checks, and compares training steps with a CPU's."""
    import jax

    from resnet_jax.commands import doctor

    device, cpu = (jax.devices(name)[0] for name in (day.platform, "cpu"))
    names = [name for name in ("jax", "flax", "torch") if util.find_spec(name)]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    note = f"{device.platform}: {device.device_kind}; {versions}"
    day.tell("device", {"devices": len(jax.devices(day.platform))}, note)
    for precision in ("highest", "default"):
        with jax.default_matmul_precision(precision):
            apart = {name: check() for name, check in doctor.CHECKS.items()}
        # By default, GPUs use TensorFloat-32 (a 10-bit mantissa) for float32 matrix
        # products.
        tolerance = 1e-4 if precision == "highest" else 1e-2
        what = f"doctor's checks, {precision} precision"
        day.tell(
            what, apart, verdict(max(apart.values()) < tolerance, f"{tolerance:g}")
        )
    networks = networks_of(day)
    for name, cfg in networks.items():
        losses, parameters = zip(
            *(few_steps(day, cfg, "float32", place) for place in (device, cpu)),
            strict=True,
        )
        loss = doctor.differs(losses[0], losses[1])
        moved = doctor.differs(parameters[0], parameters[1])
        is_right = loss < LOSS_TOLERANCE and moved < PARAMETERS_TOLERANCE
        figures = {
            "loss difference": loss,
            "parameters difference": moved,
            "loss": losses[0][-1],
        }
        limits = f"{LOSS_TOLERANCE:g} and {PARAMETERS_TOLERANCE:g}"
        day.tell(
            f"3 steps of {name}, compared with a CPU",
            figures,
            verdict(is_right, limits),
        )
    for name, cfg in networks.items():
        found, values = few_steps(day, cfg, "bfloat16", device)
        is_finite = bool(np.isfinite(found).all() and np.isfinite(values).all())
        note = "loss and parameters finite" if is_finite else "WRONG: not finite"
        day.tell(f"3 steps of {name}, bfloat16", {"loss": found[-1]}, note)


def networks_of(day: Day) -> dict[str, Config]:
    """Returns small networks whose optimizers do not amplify rounding errors."""
    sgd = {"optimizer": "sgd", "lr": 0.01, "weight_decay": 1e-4}
    first = {"resnet8, SGD": fields.replace(contestants.recipe("resnet8"), **sgd)}
    if day.tiny:
        return first
    return {
        **first,
        "hresnet, Adam": contestants.recipe("hresnet"),
        "resnet9, SGD": fields.replace(RECIPES["fast"][1], width=16, **sgd),
    }


def verdict(is_right: bool, tolerance: str) -> str:
    return f"{'right: below' if is_right else 'WRONG: not below'} {tolerance}"


def few_steps(
    day: Day, cfg: Config, dtype: str, device: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the losses of three steps from seed 0, and the final parameters."""
    import jax

    with jax.default_device(
        jax.devices("cpu")[0]
    ):  # gives the same initial values on all devices
        model = contestants.our_model(cfg, dtype)
        step, state, key = contestants.our_step(cfg, model, is_augmented=True)
    images, labels = contestants.random_batch(cfg, 8 if day.tiny else 64)
    batch = {"images": images, "labels": labels}
    losses = []
    with jax.default_device(device), jax.default_matmul_precision("highest"):
        state, batch, key = jax.device_put((state, batch, key), device)
        jitted = jax.jit(step)
        for _ in range(3):
            state, sums = jitted(state, batch, key)
            losses.append(float(sums["loss"]) / len(labels))
    leaves = jax.tree.leaves(jax.device_get(state.params))
    return np.array(losses), np.concatenate([np.ravel(x) for x in leaves])


def speed(day: Day, model: str) -> None:
    """Times training steps of `model` in JAX and in PyTorch's two fastest modes."""
    missing = [name for name in ("torch", "torchvision") if not util.find_spec(name)]
    reason = (
        (
            "PyTorch was skipped because these packages are missing: "
            f"{' and '.join(missing)}"
        )
        if missing
        else ""
    )
    modes: tuple[throughput.TorchMode, ...] = ("channels_last", "compile")
    cfg = throughput.Throughput(
        torch_modes=() if missing else modes[:1] if day.tiny else modes,
        rounds=1 if day.tiny else 3,
        seconds=0.1 if day.tiny else 2.0,
        warm=False,
    )
    size, side = BATCH_SIZES[model], contestants.recipe(model).data.image_size or 32
    task = Task(OURS, "train", model, size, "bfloat16", day.is_gpu)

    def seen(row: throughput.Row) -> None:
        best = f"PyTorch's best: {row['best']}" if row["best"] else reason
        failed = [
            f"{k}: {v['error']}" for k, v in row["programs"].items() if "error" in v
        ]
        day.tell(
            f"{model} at {side} px, batch {size}, bfloat16",
            speeds(row),
            "; ".join(filter(None, [best, *failed])),
        )

    row = throughput.measure(cfg, task, seen)
    seen(row)
    if not any("rate" in program for program in row["programs"].values()):
        raise ConfigError("nothing could be measured")


def speeds(row: throughput.Row) -> dict[str, float]:
    """Returns the figures that a row of throughput.measure contains so far."""
    kinds = {"median": "ratio", "min": "least ratio", "max": "greatest ratio"}
    figures = {kinds[kind]: value for kind, value in row.get("ratio", {}).items()}
    units = {
        "rate": ("images/s", 1),
        "bytes": ("peak MB", 1e-6),
        "cold": ("first s", 1),
    }
    for name, program in row["programs"].items():
        for key, (unit, scale) in units.items():
            if program.get(key) is not None:
                figures[f"{name} {unit}"] = program[key] * scale
    return figures


def fast(day: Day) -> None:
    """Trains the wide `fast` recipe and evaluates it with test-time augmentation."""
    begun = time.monotonic()
    records = train(day, "fast", 2 if day.tiny else 12)
    wall = time.monotonic() - begun
    seconds = [record["seconds"] for record in records]
    compiling = sum(record["compile_seconds"] for record in records)
    figures = {
        "accuracy %": 100 * records[-1]["test_accuracy"],
        "training s": sum(seconds),
        "with compilation s": sum(seconds) + compiling,
        "wall-clock time (s)": wall,
    }
    reached = [r["test_accuracy"] >= GOAL for r in records]
    note = f"{GOAL:.0%} was not reached in any epoch"
    if any(reached):
        epochs = reached.index(True) + 1
        figures["time to 94 % (s)"] = sum(seconds[:epochs])
        note = f"{GOAL:.0%} after epoch {epochs}"
    what = f"{len(records)} epochs"
    day.tell(what, figures, note)
    run_dir, scores = Path(day.work, "runs", "fast"), Path(day.work, "scores.json")
    options = ("--tta", "--output", str(scores), "--platform", day.platform)
    run("evaluate.py", str(run_dir), *options)
    found = files.read_json(scores)
    scored = {
        "accuracy %": 100 * found["accuracy"],
        "with --tta %": 100 * found["tta"]["accuracy"],
    }
    day.tell("evaluate.py, all test images", scored)


def seeds(day: Day) -> None:
    """Times the training of four networks at once (two in a rehearsal) and of one."""
    count = 2 if day.tiny else 4
    one = last_epochs(baseline(day), "seconds")
    records = train(day, "seeds", 2 if day.tiny else 3, "--num-seeds", str(count))
    all_of_them = last_epochs(records, "seconds")
    figures = {
        "ratio": all_of_them / one,
        f"epoch of {count} s": all_of_them,
        "epoch of 1 s": one,
    }
    day.tell(f"{count} seeds against 1", figures, f"a ratio of {count} means no gain")


def deterministic(day: Day) -> None:
    """Measures the training speed with and without --deterministic."""
    free = last_epochs(baseline(day), "images_per_second")
    records = train(day, "deterministic", 2 if day.tiny else 3, "--deterministic")
    bound = last_epochs(records, "images_per_second")
    figures = {"ratio": bound / free, "images/s": bound, "without it images/s": free}
    day.tell("throughput with --deterministic", figures)


def last_epochs(records: list[Record], name: str) -> float:
    """Returns the median of a figure over all epochs except the first."""
    return float(statistics.median(record[name] for record in records[1:]))


def baseline(day: Day) -> list[Record]:
    """Returns the records of a run with one seed: the `fast` run or a new one."""
    for name in ("fast", "baseline"):
        records = files.read_jsonl(Path(day.work, "runs", name, "metrics.jsonl"))
        if len(records) > 1:
            return records
    return train(day, "baseline", 2 if day.tiny else 3)


def train(day: Day, name: str, epochs: int, *more: str) -> list[Record]:
    """Runs train.py, and returns the records in the run's metrics.jsonl."""
    run_dir = Path(day.work, "runs", name)
    where = ("--epochs", str(epochs), "--workdir", str(run_dir))
    given = (*FAST, *(TINY if day.tiny else WIDE), *images(day), *where)
    run("train.py", *given, "--platform", day.platform, *more)
    return files.read_jsonl(run_dir / "metrics.jsonl")


def run(program: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, program, *arguments], cwd=ROOT)
    if done.returncode:  # the program has already printed the reason
        sys.exit(done.returncode)


def images(day: Day) -> tuple[str, ...]:
    """Returns the options that tell train.py where to read the images.

    The arrays in --data are cached as if they came from a data directory, which is made
    to look prepared. Because train.py then reads only the cache, tensorflow-datasets is
    not needed, and 60,000 images need not be encoded and decoded.

    Raises:
      ConfigError: if CIFAR-10 is missing.
      DataError: if a file cannot be read or contains the wrong images.
    """
    from resnet_jax.data import archives, cache, cifar, tfds

    if day.tiny:
        return ()
    if day.data is None:
        if tfds.find("cifar10", tfds.default_data_dir()) is None:
            raise ConfigError(
                "no prepared CIFAR-10 was found: use --data FOLDER with "
                "train*.npz and test*.npz files"
            )
        return ()
    home = Path(day.work, "data")
    version = home / "cifar10" / "3.0.2"
    if not (files.cache_dir() / "cifar10.npz").exists():
        train, test = (read_npz(Path(day.data), split) for split in ("train", "test"))
        arrays = tfds.Arrays(train, test, archives.CLASS_NAMES)
        fault = cifar.CIFAR10.find_fault(arrays)
        if fault is not None:
            raise DataError(f"{day.data}: {fault}")
        version.mkdir(parents=True, exist_ok=True)
        files.write_json(version / "dataset_info.json", {})
        cache.save("cifar10", version, arrays)
    return ("--data-dir", str(home))


def read_npz(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns (images, labels) of a split, whose files are joined in order of name."""
    parts = []
    for path in sorted(folder.glob(f"{split}*.npz")):
        try:
            with np.load(path, allow_pickle=False) as found:
                parts.append((found["images"], found["labels"].astype(np.int32)))
        except Exception as error:  # NumPy and zipfile raise many types of error
            raise DataError(f"{path} cannot be read ({first_line(error)})") from None
    images, labels = (np.concatenate(each) for each in zip(*parts, strict=True))
    return images, labels


PARTS: dict[str, Callable[[Day], None]] = {
    "smoke": smoke,
    "fast": fast,
    "seeds": seeds,
    "deterministic": deterministic,
}


def main() -> None:
    name, told, file = sys.argv[1:]
    day = Day(Path(file), **json.loads(told))
    try:
        PARTS[name](day) if name in PARTS else speed(day, name)
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
