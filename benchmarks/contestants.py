"""The programs that benchmarks.throughput times, each in its own process.

A process receives a Task as JSON, runs its first step, and reports on stdout that this
step is done. It then reads commands from stdin and answers each one with a line of
JSON. The commands are `block SECONDS`, `matmul`, `memory` and `macs`.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnet_jax import fields
from resnet_jax.config import AugmentConfig, Config
from resnet_jax.recipes import RECIPES

OURS = "ours"
AT_224 = ("resnet34", "resnet50", "resnet101", "resnet152")  # others use 32
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # for PyTorch

Run = Callable[[int], int]  # runs steps or epochs; returns the number of images


@dataclass(frozen=True)
class Task:
    """The work of one process."""

    program: str  # OURS, or a PyTorch mode: eager, channels_last, compile, ...
    kind: str  # train or infer (on one batch), epoch, or describe (only the machine)
    model: str = ""
    batch_size: int = 0
    dtype: str = "float32"
    gpu: bool = False
    data: str | None = None  # for "epoch": an .npz file with images and labels

    @property
    def matmul_size(self) -> int:
        """Returns the side length of the matrices multiplied to measure the peak."""
        return 8192 if self.gpu else 2048


class Program(NamedTuple):
    """A task that is ready for its first step."""

    run: Run
    make_multiply: Callable[[], Callable[[], Any]]  # multiplies square matrices
    peak_bytes: Callable[[], int | None]  # peak memory use of the device
    num_macs: Callable[[], int | None]  # multiply-adds of the forward pass, per image


def recipe(model: str) -> Config:
    """Returns the training settings for `model`, from the tutorial or from He et al."""
    if model == "hresnet":
        return RECIPES[model][1]
    found = fields.replace(
        Config(),
        **{"model": model, "normalize": "cifar10", "crop_padding": 4, "flip": "random"},
        **{"optimizer": "sgd", "lr": 0.1, "weight_decay": 1e-4},
    )
    if model in AT_224:
        return fields.replace(found, stem="imagenet", image_size=224)
    return fields.replace(found, stem="cifar") if model == "resnet18" else found


def num_classes(cfg: Config) -> int:
    return 1000 if cfg.data.image_size else 10


def image_shape(cfg: Config) -> tuple[int, int, int]:
    side = cfg.data.image_size or 32
    return side, side, 3


def random_batch(cfg: Config, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns random images (uint8 [size, H, W, 3]) and labels (int32 [size])."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size, *image_shape(cfg)), np.uint8)
    return images, rng.integers(0, num_classes(cfg), size, np.int32)


def random_matrix(task: Task) -> np.ndarray:
    size = (task.matmul_size, task.matmul_size)
    return np.random.default_rng(0).standard_normal(size, np.float32)


def load(task: Task) -> tuple[np.ndarray, np.ndarray]:
    with np.load(task.data or "") as arrays:
        return arrays["images"], arrays["labels"]


def num_threads() -> int:
    """Returns the number of cores that this process, and therefore JAX, may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_resident_bytes() -> int | None:
    """Returns this process's peak resident memory in bytes, or None if not on Linux."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    peaks = [1024 * int(x.split()[1]) for x in lines if x.startswith("VmHWM")]
    return peaks[0] if peaks else None


def our_program(task: Task) -> Program:
    import jax

    from resnet_jax.models import summary

    cfg = recipe(task.model)
    model = our_model(cfg, task.dtype)
    runs = {"epoch": our_epochs, "train": our_training, "infer": our_inference}

    def peak_bytes() -> int | None:
        stats = jax.local_devices()[0].memory_stats() or {}
        return stats.get("peak_bytes_in_use") if task.gpu else peak_resident_bytes()

    def num_macs() -> int:
        layers = summary.structure(model, image_shape(cfg)).layers
        return sum(layer.num_macs for layer in layers)

    make_multiply = partial(our_multiply, task)
    return Program(
        runs[task.kind](task, cfg, model), make_multiply, peak_bytes, num_macs
    )


def our_model(cfg: Config, dtype: str = "float32") -> Any:
    from resnet_jax import models

    return models.create(replace(cfg.model, dtype=dtype), num_classes(cfg))


def our_multiply(task: Task) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp

    a = jnp.asarray(random_matrix(task), task.dtype)
    square = jax.jit(jnp.dot)
    return lambda: square(a, a).block_until_ready()


def our_step(
    cfg: Config, model: Any, is_augmented: bool = False
) -> tuple[Any, Any, Any]:
    """Returns (train_step, state, augment_key) for `cfg`; the step is not compiled.

    Args:
      is_augmented: whether to augment images; they are always normalized.
    """
    from resnet_jax import data, training

    schedule = training.make_schedule(cfg.optim, 100_000)
    tx = training.make_optimizer(cfg.optim, schedule)
    made = (
        cfg.augment if is_augmented else AugmentConfig(normalize=cfg.augment.normalize)
    )
    preprocess = data.make_preprocess(made, image_shape(cfg))
    augment = data.make_augment(made, preprocess, num_classes(cfg))
    keys = training.make_keys(cfg.seed, 1)
    state = training.init_state(model, tx, image_shape(cfg), key=keys.init)
    return training.make_train_step(model, tx, augment), state, keys.augment


def compiled(
    cfg: Config,
    model: Any,
    train: Any,
    batch_size: int,
    steps_per_call: int | None = 1,
    is_augmented: bool = False,
) -> tuple[Callable[..., Any], Any, Any]:
    """Returns (compiled step, state, loader) for training with `cfg` on one device."""
    from resnet_jax import data, devices, training

    train_step, state, key = our_step(cfg, model, is_augmented)
    mesh = devices.make_mesh(1)
    state, key = devices.replicate(mesh, (state, key))
    none = train.take(slice(0))
    loader = data.Loader(
        mesh,
        data.Splits(train, none, none, {}),
        replace(cfg.data, batch_size=batch_size, steps_per_call=steps_per_call),
        order=training.make_order(cfg.seed, 1),
        epochs=100_000,
    )
    step, _ = training.compile_step(train_step, state, loader, key)
    return step, state, loader


def our_training(task: Task, cfg: Config, model: Any) -> Run:
    import jax

    from resnet_jax import data

    train = data.Dataset(*random_batch(cfg, task.batch_size), ())
    step, state, loader = compiled(cfg, model, train, task.batch_size)
    batch = next(loader.examples())

    def run(steps: int) -> int:
        nonlocal state
        for _ in range(steps):
            state, _ = step(state, batch)
        jax.block_until_ready(state)
        return steps * task.batch_size

    return run


def our_inference(task: Task, cfg: Config, model: Any) -> Run:
    import jax

    from resnet_jax import training
    from resnet_jax.data import augment
    from resnet_jax.layers import library
    from resnet_jax.training import evaluation

    images, _ = jax.device_put(random_batch(cfg, task.batch_size))
    mean, std = augment.parse_normalization(cfg.augment.normalize or "cifar10")
    init = partial(training.init_variables, model, image_shape(cfg))
    variables = jax.jit(init)(key=jax.random.key(0))

    preprocess = partial(augment.normalize, mean=mean, std=std)

    @library.jit
    def forward(variables: Any, images: jax.Array) -> jax.Array:
        batch = {"images": images}
        return evaluation.logits_of(model, preprocess, variables, batch)

    def run(steps: int) -> int:
        for _ in range(steps):
            logits = forward(variables, images)
        logits.block_until_ready()
        return steps * task.batch_size

    return run


def our_epochs(task: Task, cfg: Config, model: Any) -> Run:
    """Returns a function that runs training epochs with train.py's data loading."""
    import jax

    from resnet_jax import data

    train = data.Dataset(*load(task), tuple("0123456789"))
    step, state, loader = compiled(cfg, model, train, task.batch_size, None, True)
    epoch = 0

    def run(epochs: int) -> int:
        nonlocal state, epoch
        for _ in range(epochs):
            pending = []
            for batch in loader.train(epoch):
                state, sums = step(state, batch)
                pending.append(sums)
                if sum(s["loss"].size for s in pending) >= cfg.run.log_every_steps:
                    jax.device_get(pending)
                    pending.clear()
            jax.device_get(pending)
            epoch += 1
        return epochs * len(train)

    return run


def torch_program(task: Task) -> Program:
    import torch
    from torch.nn import functional as F

    from benchmarks.torch_models import create_twin

    torch.set_num_threads(num_threads())
    device = torch.device("cuda" if task.gpu else "cpu")
    if task.gpu:  # as in XLA, autotunes algorithms and uses TF32 for float32
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    is_eager = task.program == "eager"
    layout = torch.contiguous_format if is_eager else torch.channels_last
    place = {"device": device, "memory_format": layout}
    cfg = recipe(task.model)
    model = create_twin(task.model, cfg.model.stem, num_classes(cfg)).to(**place)
    model.train(task.kind != "infer")
    is_mixed = task.dtype == "bfloat16"
    mean, std = (torch.tensor(x, device=device).view(1, 3, 1, 1) for x in (MEAN, STD))

    def forward(images: torch.Tensor) -> torch.Tensor:
        if images.dtype == torch.uint8:
            images = (images.float() / 255 - mean) / std
        with torch.autocast(device.type, torch.bfloat16, enabled=is_mixed):
            return model(images).float()

    if task.program not in ("eager", "channels_last"):
        mode = None if task.program == "compile" else task.program
        forward = torch.compile(forward, mode=mode)

    if task.kind != "infer":
        optimizer = torch_optimizer(cfg, model)

    def step(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def finish() -> None:
        if task.gpu:
            torch.cuda.synchronize()

    def run(steps: int) -> int:
        with torch.set_grad_enabled(task.kind == "train"):
            for _ in range(steps):
                if task.kind == "train":
                    step(images, labels)
                else:
                    forward(images)
        finish()
        return steps * task.batch_size

    if task.kind == "epoch":
        run = torch_epochs(task, cfg, step, **place)
    else:
        images, labels = map(torch.from_numpy, random_batch(cfg, task.batch_size))
        images, labels = (
            images.permute(0, 3, 1, 2).to(**place),
            labels.long().to(device),
        )

    def make_multiply() -> Callable[[], Any]:
        a = torch.from_numpy(random_matrix(task)).to(device, getattr(torch, task.dtype))
        return lambda: (a @ a, finish())

    def peak_bytes() -> int | None:
        return torch.cuda.max_memory_allocated() if task.gpu else peak_resident_bytes()

    return Program(run, make_multiply, peak_bytes, lambda: None)


def torch_optimizer(cfg: Config, model: Any) -> Any:
    import torch

    optim = cfg.optim
    options = {"lr": optim.lr, "weight_decay": optim.weight_decay, "fused": True}
    if optim.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), **options)
    return torch.optim.SGD(model.parameters(), momentum=optim.momentum, **options)


@dataclass(frozen=True)
class Images:
    """A data set for PyTorch's DataLoader, like torchvision.datasets.CIFAR10."""

    images: np.ndarray
    labels: np.ndarray
    transform: Callable[[Any], Any]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        image = Image.fromarray(self.images[index])
        return self.transform(image), int(self.labels[index])


def torch_epochs(
    task: Task, cfg: Config, step: Callable[..., Any], **place: Any
) -> Run:
    """Returns a function that runs training epochs as in PyTorch's tutorials."""
    import torch
    from torchvision import transforms as T

    padding = cfg.augment.crop_padding
    crop = [T.RandomCrop(32, padding=padding)] if padding else []
    flip = [T.RandomHorizontalFlip()] if cfg.augment.flip == "random" else []
    transform = T.Compose([*crop, *flip, T.ToTensor(), T.Normalize(MEAN, STD)])
    images, labels = load(task)
    device = place["device"]

    loader = torch.utils.data.DataLoader(
        Images(images, labels, transform),
        batch_size=task.batch_size,
        shuffle=True,
        num_workers=os.cpu_count() or 1,
        persistent_workers=True,
        pin_memory=task.gpu,
    )
    sizes = {min(task.batch_size, len(labels)), len(labels) % task.batch_size} - {0}
    for size in sizes:  # compiles the step, as compile_step does for our program
        noise, targets = torch.rand(size, 3, 32, 32), torch.zeros(size).long()
        step(noise.to(**place), targets.to(device))

    def run(epochs: int) -> int:
        for _ in range(epochs):
            total = torch.zeros((), device=device)
            for batch, targets in loader:
                batch = batch.to(**place, non_blocking=True)
                targets = targets.to(device, non_blocking=True)
                total += step(batch, targets) * len(targets)
            total.item()
        return epochs * len(labels)

    return run


def describe(task: Task) -> dict[str, Any]:
    """Returns the versions, GPU and number of threads that a framework uses."""
    if task.program == OURS:
        import flax
        import jax

        device = jax.local_devices()[0]
        gpu = device.device_kind if device.platform == "gpu" else None
        versions = {"jax": jax.__version__, "flax": flax.__version__}
    else:
        import torch

        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        versions = {"torch": torch.__version__}
    versions = {"Python": platform.python_version(), **versions}
    return {"versions": versions, "gpu": gpu, "threads": num_threads()}


def gflops(task: Task, multiply: Callable[[], Any]) -> float:
    """Returns the best GFLOP/s of five matrix products, after one warm-up product."""
    seconds = []
    for _ in range(6):
        begun = time.perf_counter()
        multiply()
        seconds.append(time.perf_counter() - begun)
    return 2 * task.matmul_size**3 / min(seconds[1:]) / 1e9


def serve(task: Task, answer: Callable[[dict[str, Any]], None]) -> None:
    if task.kind == "describe":
        answer(describe(task))
        return
    program = (our_program if task.program == OURS else torch_program)(task)
    if task.kind != "epoch":
        program.run(1)
    answer({})
    steps = 1
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "block":
            # While the program waits, the host of a virtual machine may reclaim memory
            # that the program has freed. In one case, getting the memory back took 1.5
            # s.
            if task.kind != "epoch":
                program.run(1)
            begun = time.perf_counter()
            images = program.run(steps)
            seconds = time.perf_counter() - begun
            answer({"images": images, "seconds": seconds})
            steps = max(1, round(steps * float(arguments[0]) / seconds))
        elif command == "matmul":
            answer({"gflops": gflops(task, program.make_multiply())})
        elif command == "memory":
            answer({"bytes": program.peak_bytes()})
        elif command == "macs":
            answer({"macs": program.num_macs()})


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # compilers print to stdout

    def answer(record: dict[str, Any]) -> None:
        print(json.dumps(record), file=answers, flush=True)

    try:
        serve(Task(**json.loads(sys.argv[1])), answer)
    except Exception as error:  # frameworks raise many types of error
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        answer({"error": f"{type(error).__name__}: {reason[:200]}"})
        sys.exit(1)


if __name__ == "__main__":
    main()
