"""Analyzes training and evaluation steps compiled for TPUs and GPUs.

    pip install -e '.[tpu,cuda]'
    python -m benchmarks.accelerators                     # resnet50 on v5e and H100
    python -m benchmarks.accelerators --models resnet20 --targets v6e h100:8
    python -m benchmarks.accelerators --recipes fast --kinds train --targets v5e:4x4
    python -m benchmarks.accelerators --targets here      # run on a device

No accelerator is needed, because libtpu and XLA's CUDA compiler can compile for chips
that are not present. The figures are those of the real program: flops, bytes and memory
per chip, collectives, kernels and convolutions. Nothing is executed, so the only step
time shown is the roofline estimate: bytes / bandwidth or flops / peak, whichever is
larger. With the target `here`, the benchmark compiles for JAX's local devices, runs the
programs on them, and also shows the measured time.

"Bytes accessed" is the compiler's own figure; on TPUs, it counts prefetched data more
than once. The main-memory traffic is derived from the program's HLO text: each operand
and each result in main memory counts once per kernel. The roofline estimate uses this
traffic and the chip's peak bfloat16 rate. Because of caching, a program can be faster
than the estimate.

There are three versions of each network: `ours`; `flax`, modeled on Flax's ImageNet
example; and `flax-norm`, our network with flax.linen.BatchNorm. All of them use our
training step, the optimizer of benchmarks.throughput, and uint8 images. With --recipes,
each recipe's step is compiled as in train.py, including the augmentation.

XLA's CUDA compiler reports neither bytes nor flops. For GPUs, both byte columns
therefore show the main-memory traffic, and the flops are computed from the model.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro

from benchmarks import chips
from resnet_jax import fields
from resnet_jax.commands.command_line import command_line
from resnet_jax.config import AugmentConfig, Config
from resnet_jax.errors import ConfigError
from resnet_jax.recipes import RECIPES

Contestant = Literal["ours", "flax", "flax-norm"]
Kind = Literal["train", "evaluate"]
MIB = 2**20
HERE = "here"


@dataclass(frozen=True)
class Accelerators:
    """The programs to compile, and their targets."""

    models: tuple[str, ...] = ("resnet50",)
    """Networks to compile, with the training settings of benchmarks.throughput."""
    recipes: tuple[str, ...] = ()
    """Recipes of train.py to compile, with --dtype instead of their own dtype."""
    targets: tuple[str, ...] = ("v5e:2x2", "h100")
    """TPUs (v4, v5e, v5p or v6e), optionally with a topology, such as v5e:4x4; GPUs
    (a100, h100 or h200), optionally with their number, such as h100:8; or `here`."""
    kinds: tuple[Kind, ...] = ("train", "evaluate")
    """Which steps to compile: training, evaluation, or both."""
    contestants: tuple[Contestant, ...] = ("ours", "flax", "flax-norm")
    """Versions of each network to compile; any that do not exist are skipped."""
    batch_per_chip: int = 256
    """Number of images per chip in each step."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of the arithmetic."""
    recipe_model: str | None = None
    """Network that replaces the recipes' own; small networks compile faster."""
    stage_sizes: tuple[int, ...] = ()
    """Number of blocks in each stage, instead of the models' own; later stages can be
    left out."""
    remat: bool = False
    """Recompute each block's activations in the backward pass."""
    seconds: float = 10.0
    """With `here`: number of seconds to run each program."""
    text: Path | None = None
    """Folder for the HLO text of the compiled programs."""
    json: Path | None = None
    """JSON file for all figures, updated after each program."""

    def __post_init__(self) -> None:
        if self.batch_per_chip < 1:
            raise ConfigError(
                f"batch_per_chip {self.batch_per_chip} is too small: "
                "it must be at least 1"
            )
        for name in self.recipes:
            if name not in RECIPES:
                raise ConfigError(
                    f"unknown recipe {name!r}: use one of {', '.join(RECIPES)}"
                )
        for target in self.targets:
            if target != HERE:
                chips.parse(target)
        for name in ("json", "text"):
            path = getattr(self, name)
            if path is not None and (
                path.is_dir() != (name == "text") and path.exists()
            ):
                kind = "not a folder" if name == "text" else "a folder"
                raise ConfigError(f"{name} {path} is {kind}")
            if path is not None and not path.parent.is_dir():
                raise ConfigError(f"{name} {path}: there is no folder {path.parent}")
        if HERE in self.targets and len(self.targets) > 1:
            raise ConfigError(
                "`here` cannot be combined with other targets: compiling for "
                "those targets hides the local devices"
            )


class Task(NamedTuple):
    """A program to compile."""

    target: str
    name: str
    is_recipe: bool
    contestant: str
    kind: str


class Lowered(NamedTuple):
    """A step that is ready to be compiled, and its arguments."""

    stage: Any
    arguments: tuple[Any, ...]  # shapes and shardings of the arrays
    model_flops: float  # per chip
    least_map: int  # arrays with at least this many values count as feature maps


@dataclass(frozen=True)
class Reading:
    """Figures for a compiled program, per chip."""

    target: str
    program: str
    contestant: str
    kind: str
    chips: int
    gflops: float
    model_gflops: float
    gigabytes: float  # the compiler's "bytes accessed"
    memory_gigabytes: float  # main-memory traffic, computed from the HLO text
    roofline_ms: float
    temporaries_mib: float
    arguments_mib: float
    memory_mib: float  # total memory of the chip
    collectives: int
    all_reduces: int
    reduced_bytes: int  # bytes of all collectives
    kernels: int  # excluding copies
    copies: int
    convolutions: dict[str, int]  # number of convolutions for each result dtype
    moved_maps: int  # kernels that reorder the dimensions of a feature map
    float32_maps: int
    trace_seconds: float
    compile_seconds: float
    measured_ms: float | None = None


def tasks(cfg: Accelerators) -> Iterator[Task]:
    for target in cfg.targets:
        for kind in cfg.kinds:
            for name in cfg.models:
                for contestant in cfg.contestants:
                    yield Task(target, name, False, contestant, kind)
            for name in cfg.recipes:
                yield Task(target, name, True, "ours", kind)


def lower(task: Task, cfg: Accelerators, devices: Any, platform: str) -> Lowered | None:
    """Returns the lowered step for a task, or None if its network has no such version.

    Nothing is computed: shapes stand in for all arrays.
    """
    import jax
    import numpy as np
    from jax.sharding import Mesh

    from resnet_jax import data, models, training
    from resnet_jax.devices import mesh as layout
    from resnet_jax.layers import keep
    from resnet_jax.models import summary
    from resnet_jax.training.evaluation import eval_step

    mesh = Mesh(np.array(devices).reshape(-1), (layout.AXIS,))
    chosen, shape, num_classes = described(task, cfg)
    ours = models.create(chosen.model, num_classes, shape[-1])
    if cfg.stage_sizes and not task.is_recipe:
        if not isinstance(ours, models.ResNet):
            raise ConfigError(
                f"stage_sizes cannot be used with {task.name}, which has no "
                "configurable stages"
            )
        widths = ours.widths[: len(cfg.stage_sizes)]
        ours = ours.clone(stage_sizes=cfg.stage_sizes, widths=widths)
    model = contestant(task, chosen, ours)
    if model is None:
        return None
    preprocess = data.make_preprocess(chosen.augment, shape)
    trainable = training.make_trainable(chosen.transfer.freeze, model, shape)
    lr_scale = None
    if task.contestant == "ours":
        lr_scale = training.make_lr_scale(chosen.transfer.backbone_lr_scale, model)
    schedule = training.make_schedule(chosen.optim, 10_000, 100)
    tx = training.make_optimizer(chosen.optim, schedule, trainable, lr_scale)
    keys = jax.eval_shape(lambda: training.make_keys(0, 1))
    has_ema = chosen.optim.ema_decay > 0
    init = partial(training.init_state, model, tx, shape, has_ema=has_ema)
    rows = cfg.batch_per_chip * mesh.size
    whole, split = layout.replicated(mesh), layout.spread(mesh, rows)

    def place(tree: Any, where: Any) -> Any:
        def put(leaf: Any) -> Any:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

        return jax.tree.map(put, tree)

    state = place(jax.eval_shape(init, keys.init), whole)
    batch = {
        "images": jax.ShapeDtypeStruct((rows, *shape), np.uint8, sharding=split),
        "labels": jax.ShapeDtypeStruct((rows,), np.int32, sharding=split),
    }
    layers = summary.structure(ours, shape).layers
    macs = sum(layer.num_macs for layer in layers)
    least = max(leaf.size for leaf in jax.tree.leaves(state.params)) + 1
    flops = 2 * macs * cfg.batch_per_chip * (3 if task.kind == "train" else 1)
    if task.kind == "evaluate":
        mask = jax.ShapeDtypeStruct((rows,), np.float32, sharding=split)
        score = partial(eval_step, model, preprocess)
        arguments = (state.replace(opt_state=()), {**batch, "mask": mask})
        jitted = jax.jit(score, out_shardings=whole)
    else:
        augment = data.make_augment(chosen.augment, preprocess, num_classes, 100)
        step = training.make_train_step(
            *(model, tx, augment, trainable, chosen.transfer.backbone_bn),
            *(chosen.devices.grad_accum_steps, None),
            training.make_ema_decay(chosen, 100),
        )
        arguments = (state, batch, place(keys.augment, whole))
        jitted = jax.jit(step, donate_argnums=0, out_shardings=whole)
    with keep.compiling_for(platform):
        traced = jitted.trace(*arguments)
    stage = traced.lower(lowering_platforms=(platform,))
    return Lowered(stage, arguments, flops, least)


def described(
    task: Task, cfg: Accelerators
) -> tuple[Config, tuple[int, int, int], int]:
    """Returns (configuration, image shape, number of classes) for a task."""
    from benchmarks import contestants
    from resnet_jax.data import sources

    if task.is_recipe:
        found = RECIPES[task.name][1]
        normalize = found.augment.normalize or "cifar10"
        shape = sources.train_shape(found.data)
        num_classes = 1000 if found.data.dataset == "folder" else 10  # for ImageNet
    else:
        found = contestants.recipe(task.name)
        normalize = found.augment.normalize or "cifar10"
        shape, num_classes = contestants.image_shape(found), 10
        num_classes = contestants.num_classes(found)
        found = replace(found, augment=AugmentConfig())
    options = {"normalize": normalize, "dtype": cfg.dtype, "remat": cfg.remat}
    if task.is_recipe and cfg.recipe_model is not None:
        options |= {"model": cfg.recipe_model, "width": None, "stem": None}
    return fields.replace(found, **options), shape, num_classes


def contestant(task: Task, cfg: Config, ours: Any) -> Any:
    """Returns the network for a task, or None if that version does not exist."""
    from benchmarks import peers

    if task.contestant == "flax":
        # Flax's example has only networks for ImageNet.
        return peers.flax_example(ours) if cfg.model.stem == "imagenet" else None
    return peers.with_flax_norm(ours) if task.contestant == "flax-norm" else ours


def read(task: Task, cfg: Accelerators) -> Reading | None:
    """Compiles and analyzes a task's program; returns None if there is no program."""
    import jax

    from benchmarks.programs import Program

    begun = time.monotonic()
    devices = jax.devices() if task.target == HERE else chips.devices(task.target)
    chip = chip_of(devices[0]) if task.target == HERE else chips.parse(task.target)[0]
    lowered = lower(task, cfg, devices, chip.platform)
    if lowered is None:
        return None
    traced = time.monotonic()
    compiled = lowered.stage.compile()
    done = time.monotonic()
    text = compiled.as_text()
    if cfg.text is not None:
        cfg.text.mkdir(parents=True, exist_ok=True)
        kind = "recipe" if task.is_recipe else task.contestant
        name = f"{task.target}-{task.name}-{kind}-{task.kind}".replace(":", "_")
        (cfg.text / f"{name}.txt").write_text(text)
    program, cost = Program(text), compiled.cost_analysis() or {}
    memory = compiled.memory_analysis()
    flops = cost.get("flops", 0.0) or lowered.model_flops
    memory_bytes = program.memory_bytes()
    moved = cost.get("bytes accessed", 0.0) or memory_bytes
    collectives = program.collectives()
    kernels = [k for k in program.kernels() if not k.opcode.endswith("-done")]
    copies = sum(k.opcode.startswith("copy") for k in kernels)
    measured = measure(compiled, lowered, cfg) if task.target == HERE else None
    return Reading(
        target=task.target,
        program=task.name,
        contestant="recipe" if task.is_recipe else task.contestant,
        kind=task.kind,
        chips=len(devices),
        gflops=flops / 1e9,
        model_gflops=lowered.model_flops / 1e9,
        gigabytes=moved / 1e9,
        memory_gigabytes=memory_bytes / 1e9,
        roofline_ms=1e3 * max(flops / chip.flops, memory_bytes / chip.bandwidth),
        temporaries_mib=memory.temp_size_in_bytes / MIB,
        arguments_mib=memory.argument_size_in_bytes / MIB,
        memory_mib=chip.memory / MIB,
        collectives=len(collectives),
        all_reduces=sum(name == "all-reduce" for name, _ in collectives),
        reduced_bytes=sum(size for _, size in collectives),
        kernels=len(kernels) - copies,
        copies=copies,
        convolutions=dict(Counter(c.results[0].dtype for c in program.convolutions())),
        moved_maps=len(program.moved_maps(lowered.least_map)),
        float32_maps=len(program.maps(lowered.least_map, "f32")),
        trace_seconds=traced - begun,
        compile_seconds=done - traced,
        measured_ms=measured,
    )


def chip_of(device: Any) -> chips.Chip:
    """Returns the known chip that matches a device.

    Raises:
      ConfigError: if the peak rates of the chip are unknown.
    """
    for chip in chips.CHIPS.values():
        if device.device_kind in chip.kinds:
            return chip
    known = ", ".join(chips.CHIPS)
    raise ConfigError(f"{device.device_kind} is not a known chip: use one of {known}")


def measure(compiled: Any, lowered: Lowered, cfg: Accelerators) -> float:
    """Runs the program for `cfg.seconds` seconds; returns the median step time (ms)."""
    import statistics

    import jax
    import jax.numpy as jnp
    import numpy as np

    rng = np.random.default_rng(0)

    def make(path: Any, leaf: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.device_put(jax.random.key(0), leaf.sharding)
        if leaf.dtype == np.uint8:
            values = rng.integers(0, 256, leaf.shape, np.uint8)
        elif "opt_state" in str(path) or jnp.issubdtype(leaf.dtype, jnp.integer):
            values = np.zeros(leaf.shape, leaf.dtype)
        else:  # draws kernels around 0, and scales, variances and masks around 1
            low, high = (-0.1, 0.1) if len(leaf.shape) > 1 else (0.5, 1.5)
            values = rng.uniform(low, high, leaf.shape).astype(leaf.dtype)
        return jax.device_put(values, leaf.sharding)

    first, *rest = jax.tree_util.tree_map_with_path(make, lowered.arguments)
    is_step = len(rest) == 2
    seconds: list[float] = []
    while sum(seconds) < cfg.seconds or len(seconds) < 3:
        begun = time.perf_counter()
        found = compiled(first, *rest)
        jax.block_until_ready(found)
        seconds.append(time.perf_counter() - begun)
        first = found[0] if is_step else first
    return 1e3 * statistics.median(seconds[1:])


HEADER = (
    "| target | program | GFLOP (model) | GB accessed (main memory) | roofline, ms "
    "| temporaries + arguments of total memory, MiB | all-reduces (MiB) | kernels + "
    "copies | convolutions | feature maps reordered / in float32 | compile time, s "
    "| measured, ms (relative to roofline) |"
)


def row(found: Reading) -> str:
    memory = f"{found.temporaries_mib:,.0f} + {found.arguments_mib:,.0f}"
    types = ", ".join(f"{n} {dtype}" for dtype, n in found.convolutions.items())
    others = found.collectives - found.all_reduces
    reduced = f"{found.all_reduces} ({found.reduced_bytes / MIB:.1f})"
    timed = "-"
    if found.measured_ms is not None:
        share = found.measured_ms / found.roofline_ms
        timed = f"{found.measured_ms:.2f} ({share:.2f})"
    cells = (
        f"{found.target} ({found.chips})",
        f"{found.program}, {found.contestant}, {found.kind}",
        f"{found.gflops:,.0f} ({found.model_gflops:,.0f})",
        f"{found.gigabytes:.2f} ({found.memory_gigabytes:.2f})",
        f"{found.roofline_ms:.2f}",
        f"{memory} of {found.memory_mib:,.0f}",
        reduced + (f" and {others} others" if others else ""),
        f"{found.kernels} + {found.copies}",
        types,
        f"{found.moved_maps} / {found.float32_maps}",
        f"{found.compile_seconds:.0f}",
        timed,
    )
    return f"| {' | '.join(cells)} |"


def main(cfg: Accelerators) -> None:
    if HERE not in cfg.targets:
        chips.prepare()
    import flax
    import jax

    print(
        f"jax {jax.__version__}, flax {flax.__version__}; {cfg.dtype}, "
        f"{cfg.batch_per_chip} images per chip\n"
    )
    print(HEADER)
    print("|" + "---|" * HEADER.count(" | ") + "---|", flush=True)
    readings: list[dict[str, Any]] = []
    about = {"jax": jax.__version__, "dtype": cfg.dtype}
    about |= {"batch_per_chip": cfg.batch_per_chip}

    def write() -> None:
        if cfg.json is not None:
            cfg.json.write_text(json.dumps({**about, "programs": readings}, indent=1))

    write()  # so that a write error occurs now, not after minutes of compilation
    for task in tasks(cfg):
        found = read(task, cfg)
        if found is not None:
            print(row(found), flush=True)
            readings.append(asdict(found))
            write()


if __name__ == "__main__":
    with command_line("benchmarks.accelerators"):
        main(tyro.cli(Accelerators, description=__doc__))
