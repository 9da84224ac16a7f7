"""Profiles how much time each operation of a training step takes on a CPU.

    python -m benchmarks.ops --model resnet20

Runs XLA's profiler for several steps, and adds up the times of the operations for each
type of layer. Operations can overlap, so the total is not the step time. The lower
bound for a type of layer is the time that its multiply-adds would take at the rate of
the fastest matrix product measured in the same process.
"""

import collections
import re
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro


@dataclass(frozen=True)
class Ops:
    """Options of the benchmark."""

    model: str = "resnet20"
    """Name of the network, trained as in benchmarks.throughput."""
    batch_size: int = 128
    """Images per step."""
    steps: int = 5
    """Number of steps to profile, after two warm-up steps."""
    most: int = 12
    """Number of individual operations to list."""


def main(cfg: Ops) -> None:
    import jax

    from benchmarks import contestants
    from resnet_jax.layers import library
    from resnet_jax.models import summary

    task = contestants.Task(contestants.OURS, "train", cfg.model, cfg.batch_size)
    recipe = contestants.recipe(cfg.model)
    model = contestants.our_model(recipe)
    train_step, state, key = contestants.our_step(recipe, model)
    images, labels = jax.device_put(contestants.random_batch(recipe, cfg.batch_size))
    batch = {"images": images, "labels": labels}
    step = library.jit(train_step, donate_argnums=0)
    compiled = step.lower(state, batch, key).compile()

    def run(steps: int) -> float:
        nonlocal state
        begun = time.perf_counter()
        for _ in range(steps):
            state, _ = jax.block_until_ready(compiled(state, batch, key))
        return (time.perf_counter() - begun) / steps

    run(2)
    seconds = run(cfg.steps)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run(cfg.steps)
        spent = operations(Path(folder), compiled.as_text())
    peak = contestants.gflops(task, contestants.our_multiply(task))
    macs: dict[str, int] = collections.defaultdict(int)
    for layer in summary.structure(model, contestants.image_shape(recipe)).layers:
        macs[layer.kind] += 3 * cfg.batch_size * layer.num_macs
    print(
        f"{cfg.model}, batch {cfg.batch_size}, jax {jax.__version__}: "
        f"{1e3 * seconds:.0f} ms per step; a matrix product reaches {peak:.0f} "
        "GFLOP/s\n"
    )
    print(table(spent, {k: 2e-9 * n / peak for k, n in macs.items()}, cfg))


Spent = Mapping[tuple[str, str, str], float]  # maps (layer, part, operation) to seconds


def operations(folder: Path, program: str) -> Spent:
    """Reads from the trace in `folder` how long each operation of `program` ran."""
    import jax

    paths = dict(re.findall(r'%?([\w.\-]+) = .*?op_name="([^"]*)"', program))
    (file,) = folder.rglob("*.xplane.pb")
    spent: dict[tuple[str, str, str], float] = collections.defaultdict(float)
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            for event in line.events:
                if "hlo_op" not in [name for name, _ in event.stats]:
                    continue
                if re.match("while|call|conditional", event.name):
                    continue  # the operations inside have their own events
                path = paths.get(event.name, "")
                name = re.sub(r"[.]\d+$", "", event.name)
                spent[kind_of(path), part_of(path), name] += 1e-9 * event.duration_ns
    return spent


def kind_of(path: str) -> str:
    """Returns the type of layer to which an operation belongs, based on its path."""
    for kind, pattern in (
        ("Conv", r"conv\d|downsample(\.0)?(/|$)"),
        ("BatchNorm", r"bn\d|downsample\.1"),
        ("Linear", r"fc\d?"),
    ):
        if re.search(rf"(^|[/.]){pattern}", path):
            return kind
    return (
        "other" if path else "unnamed"
    )  # XLA drops the paths of some operations, such as matrix products in loops


def part_of(path: str) -> str:
    """Returns the part of a layer that an operation computes."""
    if "kernel_gradient" in path:
        return "kernel gradient"
    return "backward" if "transpose(" in path else "forward"


def table(spent: Spent, bounds: Mapping[str, float], cfg: Ops) -> str:
    """Returns a Markdown table of times and bounds in ms per step."""
    parts: dict[tuple[str, str], float] = collections.defaultdict(float)
    names: dict[tuple[str, str], float] = collections.defaultdict(float)
    for (kind, part, name), seconds in spent.items():
        parts[kind, part] += 1e3 * seconds / cfg.steps
        names[f"{kind}, {part}", name] += 1e3 * seconds / cfg.steps
    lines = ["| layer | part | ms |", "|---|---|---|"]
    lines += [f"| {kind} | {part} | {ms:.0f} |" for (kind, part), ms in ranked(parts)]
    lines += [
        f"| {kind} | all parts, at the rate of the matrix product | {1e3 * bound:.0f} |"
        for kind, bound in bounds.items()
        if bound
    ]
    lines += ["", "| operation | layer, part | ms |", "|---|---|---|"]
    for (of, name), ms in ranked(names)[: cfg.most]:
        lines.append(f"| {name} | {of} | {ms:.0f} |")
    return "\n".join(lines)


def ranked(values: Mapping[Any, float]) -> list[tuple[Any, float]]:
    return sorted(values.items(), key=lambda item: -item[1])


if __name__ == "__main__":
    from resnet_jax.commands.command_line import command_line

    with command_line("benchmarks.ops"):
        main(tyro.cli(Ops, description=__doc__))
