"""Compares the throughput of our input pipeline with that of PyTorch's DataLoader.

    python -m benchmarks.jpegs photos --photos --train 5000 --test 500
    resnet-jax prepare folder photos photos-256
    python -m benchmarks.input photos --shards photos-256

All contestants decode images and crop them with RandomResizedCrop, in batches of 128
and with the same number of worker processes. They take turns in each round; the time to
start the workers is not counted. PyTorch's batches are float32 tensors that are already
flipped and normalized; ours are uint8 arrays, which the training step flips and
normalizes. The benchmark also measures how long one thread takes to decode an image at
full scale and to crop it. It reports the peak memory of each contestant's processes.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tyro.conf import Positional


@dataclass(frozen=True)
class Input:
    """Options of the benchmark."""

    folder: Positional[Path]
    """Folder with images in train/CLASS/ and test/CLASS/."""
    shards: Path | None = None
    """Folder with shards that `resnet-jax prepare` made from the same images."""
    workers: int = 2
    """Number of worker processes."""
    batch_size: int = 128
    """Images per batch."""
    batches: int = 20
    """Number of timed batches per contestant and round, after some untimed ones."""
    rounds: int = 3
    """Number of measurement rounds."""
    size: int = 224
    """Height and width of the crops."""
    output: Path | None = None
    """JSON file for the figures."""
    only: str | None = None
    """Measure only this contestant, in one round, and print images/s and MB as JSON."""


def main(cfg: Input) -> None:
    """Measures all contestants and prints a table."""
    contestants: dict[str, Callable[[], Iterator[Any]]] = {
        "torch, folder": lambda: torchs(cfg, cfg.folder),
        "ours, folder": lambda: ours(cfg, cfg.folder),
    }
    if cfg.shards is not None:
        shards = cfg.shards
        contestants["ours, shards"] = lambda: ours(cfg, shards)
    if cfg.only is not None:
        print(json.dumps(measure(cfg, contestants[cfg.only])))
        return
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    memory = dict.fromkeys(contestants, 0.0)
    for number in range(cfg.rounds):
        for name in contestants:
            rate, held = in_a_process_of_its_own(name)
            rates[name].append(rate)
            memory[name] = max(memory[name], held)
            print(f"round {number + 1}: {name} {rate:.0f}", file=sys.stderr)
    peers = rates["torch, folder"]
    print("| contestant | images/s (rounds) | ratio to torch's (rounds) | memory, MB |")
    print("|---|---|---|---|")
    for name, own in rates.items():
        ratios = [mine / theirs for mine, theirs in zip(own, peers, strict=True)]
        print(
            f"| {name} | {_spread(own, '.0f')} | {_spread(ratios, '.2f')} | "
            f"{memory[name]:.0f} |"
        )
    parts = {"folder": parts_of(cfg, cfg.folder)}
    if cfg.shards is not None:
        parts["shards"] = parts_of(cfg, cfg.shards)
    print("\n| ms per image, one thread | decode | crop and resize |\n|---|---|---|")
    for name, (decode, crop) in parts.items():
        print(f"| {name} | {decode:.2f} | {crop:.2f} |")
    if cfg.output is not None:
        figures = {"rates": rates, "memory": memory, "parts": parts}
        cfg.output.write_text(json.dumps(figures, indent=1))


def in_a_process_of_its_own(name: str) -> tuple[float, float]:
    """Runs `measure` for a contestant in a separate process; returns the result."""
    command = [sys.executable, "-m", "benchmarks.input", *sys.argv[1:], "--only", name]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    rate, held = json.loads(done.stdout.splitlines()[-1])
    return rate, held


def _spread(values: list[float], form: str) -> str:
    median, low, high = statistics.median(values), min(values), max(values)
    return f"{median:{form}} ({low:{form}} to {high:{form}})"


def measure(cfg: Input, begin: Callable[[], Iterator[Any]]) -> tuple[float, float]:
    """Returns (images/s, peak memory in MB of this process and its workers)."""
    reader = begin()
    # Skips the batches that were prefetched while the workers started.
    for _ in range(4 * max(cfg.workers, 1)):
        next(reader)
    begun = time.perf_counter()
    held = 0.0
    for number in range(cfg.batches):
        next(reader)
        if number % 5 == 0:
            held = max(held, memory_of_all())
    seconds = time.perf_counter() - begun
    close = getattr(reader, "close", None)
    if close is not None:
        close()
    return cfg.batches * cfg.batch_size / seconds, held


def memory_of_all() -> float:
    """Returns the proportional set size, in MB, of this process and its children."""
    import os

    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text().rpartition(")")[2].split()
        except OSError:  # the process has already ended
            continue
        children.setdefault(int(text[1]), []).append(int(path.parent.name))
    todo, total = [os.getpid()], 0
    while todo:
        one = todo.pop()
        todo += children.get(one, [])
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def torchs(cfg: Input, folder: Path) -> Iterator[Any]:
    """Yields batches from torchvision's ImageFolder with the V1 transforms."""
    import torch
    from torchvision import datasets, transforms

    whole = transforms.Compose(
        [
            transforms.RandomResizedCrop(cfg.size),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
            transforms.ConvertImageDtype(torch.float),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    loader = torch.utils.data.DataLoader(
        datasets.ImageFolder(str(folder / "train"), whole),
        batch_size=cfg.batch_size,
        shuffle=True,
        num_workers=cfg.workers,
        drop_last=True,
        persistent_workers=cfg.workers > 0,
    )
    while True:
        yield from loader


def ours(cfg: Input, folder: Path) -> Iterator[Any]:
    """Yields batches from `resnet_jax.data.Loader`, as in the `imagenet` recipe."""
    from dataclasses import replace

    import jax

    from resnet_jax import data, devices, training
    from resnet_jax.recipes import RECIPES

    recipe = RECIPES["imagenet"][1]
    own = replace(
        recipe.data,
        data_dir=str(folder),
        image_size=cfg.size,
        batch_size=cfg.batch_size,
        workers=cfg.workers,
        drop_last=True,
        stream=True,
    )
    splits = data.load(own)
    splits = splits._replace(train=data.drawn(splits.train, recipe.augment, own, 0))
    order = training.make_order(0, 1)
    loader = data.Loader(devices.make_mesh(1), splits, own, order, epochs=1000)
    try:
        for epoch in range(1000):
            for batch in loader.train(epoch):
                yield jax.block_until_ready(batch)
    finally:
        loader.close()


def parts_of(cfg: Input, folder: Path, num: int = 200) -> tuple[float, float]:
    """Returns the times in ms that one thread takes to decode and to crop an image."""
    from PIL import Image

    from resnet_jax import data
    from resnet_jax.config import DataConfig
    from resnet_jax.data import pillow, transforms

    own = DataConfig(dataset="folder", data_dir=str(folder), stream=True)
    reader = data.load(own).train.images.read
    rng, spent = np.random.default_rng(0), np.zeros(2)
    for one in reader.open(np.arange(num)):
        begun = time.perf_counter()
        with one as file:
            image = pillow.decode(file)
        decoded = time.perf_counter()
        box = transforms.draw_region(rng, *image.size, smallest=0.08)
        transforms.resized_crop(image, box, cfg.size, Image.Resampling.BILINEAR)
        spent += decoded - begun, time.perf_counter() - decoded
    decode, crop = (1000 * spent / num).tolist()
    return decode, crop


if __name__ == "__main__":
    main(tyro.cli(Input))
