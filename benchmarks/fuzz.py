"""Feeds damaged and malicious files to all readers, which must accept or reject them.

    python -m benchmarks.fuzz                          # 12,000 inputs, a few minutes
    python -m benchmarks.fuzz --inputs 500 --seed 1

The inputs are mutated copies of valid files: weights files (.pth, .tar, .zip and
.safetensors) and their indexes; a run's config.json, metrics.jsonl, layers.jsonl and
classes.json; the config.json of an exported network and of a timm model; the array
cache; Fashion-MNIST's archives; and images. Mutations flip bits; remove or duplicate
parts; overwrite parts with malicious lengths; and change pickles, headers and JSON
values, updating checksums and lengths to match. Each input is read just as the commands
would read it, in a process with limited memory. An input fails if reading it raises any
exception other than a UserError, ends the process, takes more than five seconds, or
needs more than 1 GB of memory. The benchmark needs torch, because torch.save writes the
.pth files.
"""

import dataclasses
import gzip
import hashlib
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import struct
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

MEMORY = 2**30  # memory limit for one input, in bytes
SECONDS = 5.0  # time limit for one input, in seconds, long enough for a busy machine
LENGTHS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)
Mutate = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Fuzz:
    """Options of the benchmark."""

    inputs: int = 12_000
    """Total number of inputs of all types."""
    seed: int = 0
    """Seed of the mutations."""


@dataclass(frozen=True)
class Kind:
    """A file type: a valid example, its reader, and a format-aware mutation."""

    name: str
    sound: bytes
    read: Callable[[Path], Any]
    within: Mutate | None = None


def main(cfg: Fuzz) -> None:
    kinds = make_kinds()
    failures = []
    count = -(-cfg.inputs // len(kinds))
    for index, kind in enumerate(kinds):
        begun = time.monotonic()
        outcomes, failed, peak = fuzz(index, count, seed=cfg.seed)
        failures += [f"{kind.name}, {failure}" for failure in failed]
        shown = ", ".join(f"{n} {what}" for what, n in outcomes.most_common())
        seconds = time.monotonic() - begun
        print(
            f"{kind.name:24} {count:6d}: {shown}; {seconds:.0f} s, at most "
            f"{peak / 2**20:.0f} MB",
            flush=True,
        )
    for failure in failures:
        print(failure)
    if failures:
        raise SystemExit(1)
    print(f"{count * len(kinds)} inputs, seed {cfg.seed}: no failures")


def fuzz(index: int, count: int, *, seed: int) -> tuple[Counter[str], list[str], int]:
    """Returns (outcomes, failures, peak memory in bytes) for `count` inputs."""
    context = multiprocessing.get_context("spawn")
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    peak = first = 0
    while first < count and len(failures) < 20:
        here, there = context.Pipe()
        worker = context.Process(target=_work, args=(index, first, count, seed, there))
        worker.start()
        there.close()
        done = first
        try:
            while done < count:
                outcome, used = here.recv()
                peak = max(peak, used)
                if outcome.startswith("FAILED"):
                    failures.append(f"kind {index}, input {done}: {outcome}")
                else:
                    outcomes[outcome] += 1
                done += 1
        except EOFError:
            worker.join()
            failures.append(
                f"kind {index}, input {done}: the worker process exited with "
                f"code {worker.exitcode}"
            )
            done += 1
        worker.join()
        first = done
    return outcomes, failures, peak


def mutated(kind: Kind, number: int, seed: int) -> bytes:
    """Returns input `number` of a type; the result depends only on the arguments."""
    rng = random.Random(f"{seed} {kind.name} {number}")
    content = kind.sound
    if kind.within is not None and rng.random() < 0.6:
        content = kind.within(content, rng)
        return content if rng.random() < 0.8 else mutate(content, rng)
    return mutate(content, rng)


def _work(index: int, first: int, count: int, seed: int, report: Any) -> None:
    """Reads the inputs from number `first` on, and reports the outcome of each."""
    from resnet_jax.errors import UserError

    kind = make_kinds()[index]

    def late(*_: Any) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 2 * MEMORY, -1))
    with tempfile.TemporaryDirectory() as folder:
        sound = Path(folder, kind.name)
        sound.write_bytes(kind.sound)
        kind.read(sound)  # if the valid file fails, all results are meaningless
        for number in range(first, count):
            path = Path(folder, kind.name)
            path.write_bytes(mutated(kind, number, seed))
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak memory
            before = _memory("VmRSS")
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            try:
                kind.read(path)
                outcome = "read"
            except UserError as error:
                outcome = f"exit {error.exit_code}"
                if len(str(error).splitlines()) != 1:
                    outcome = f"FAILED: multi-line error message: {error}"
            except TimeoutError:
                outcome = f"FAILED: no result within {SECONDS} s"
            except BaseException as error:
                outcome = f"FAILED with {error!r:.300}"
            signal.setitimer(signal.ITIMER_REAL, 0)
            used = _memory("VmHWM") - before
            if used > MEMORY:
                outcome = f"FAILED: used {used / 2**20:.0f} MB of memory"
            report.send((outcome, used))
    report.close()


def _memory(name: str) -> int:
    """Returns this process's memory in bytes: current (VmRSS) or peak (VmHWM)."""
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index(f"{name}:") + 1]) * 1024


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Returns `content` after one to four random changes to bytes or byte ranges."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        if not data:
            break
        at = rng.randrange(len(data))
        size = rng.randint(1, max(1, min(64, len(data) // 4)))
        match rng.randrange(7):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.randrange(256)
            case 2:
                del data[at:]
            case 3:
                del data[at : at + size]
            case 4:
                data[at:at] = data[at : at + size] * rng.randint(1, 4)
            case 5:
                width = rng.choice((1, 2, 4, 8))
                order = rng.choice(("little", "big"))
                value = rng.choice(LENGTHS) % 2 ** (8 * width)
                data[at : at + width] = value.to_bytes(width, order)
            case 6:
                data[at : at + size] = rng.randbytes(size)
    return bytes(data)


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    """Changes or removes a value or name in `content`, which is JSON or JSON Lines."""
    lines = content.decode().splitlines() if content.count(b"\n") > 1 else []
    if lines and lines[0].endswith("}"):
        index = rng.randrange(len(lines))
        lines[index] = mutate_json(lines[index].encode(), rng).decode()
        return ("\n".join(lines) + "\n").encode()
    root = [json.loads(content)]
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(root)
    hostile = (
        *(None, True, -1, 0, 1, 2**31, 2**63, -(2**70), 0.5, -0.0, 1e308, float("nan")),
        *(float("inf"), "", "x", "../../x", "<script>", "\0", "\ud800", "9" * 300),
        *([], {}, [[]], {"a": 1}, [1, "a", None], ["a"] * 1000),
    )
    node, key = rng.choice(places)
    choice = rng.randrange(4)
    if choice == 0 and isinstance(node, dict):
        node[rng.choice(("x", "", "__class__", "step"))] = node.pop(key)
    elif choice == 1:
        del node[key]
    else:
        node[key] = rng.choice(hostile)
    text = json.dumps(root[0] if root else None)
    if rng.random() < 0.03:
        text = text.replace(":", ":" + "[" * 100_000, 1)
    if rng.random() < 0.03:
        text = text.replace(": ", ": " + "9" * 5000, 1)
    return text.encode("utf-8", "surrogatepass") + b"\n" * (content[-1:] == b"\n")


def _mutate_zip(content: bytes, rng: random.Random) -> bytes:
    """Mutates one file in a zip archive, usually data.pkl, and updates its checksum."""
    target = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(target, "w") as new,
    ):
        names = old.namelist()
        changed = rng.choice([n for n in names if n.endswith("data.pkl")] * 9 + names)
        for name in names:
            part = old.read(name)
            part = mutate(part, rng) if name == changed else part
            packed = rng.random() < 0.05
            kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
            part = bytes(2**27) if packed and rng.random() < 0.1 else part
            new.writestr(name, part, kind)
    return target.getvalue()


def _mutate_safetensors(content: bytes, rng: random.Random) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    header = mutate_json(content[8 : 8 + length], rng).strip()
    length = len(header) if rng.random() < 0.8 else rng.choice(LENGTHS)
    return struct.pack("<Q", length) + header + content[8 + length :]


def make_kinds() -> list[Kind]:
    """Creates a valid file of each type, and pairs it with the reader for the type."""
    import logging

    from PIL import Image
    from safetensors.numpy import save

    from resnet_jax import models, training
    from resnet_jax.config import Config
    from resnet_jax.data import cache, fashion_mnist, folder, tfds
    from resnet_jax.run import directory, logs
    from resnet_jax.weights import adopt, convert, hub, pretrained, read

    logging.disable()
    model = models.create_model("resnet8", num_classes=10)
    shapes = training.variable_shapes(model, (32, 32, 3))
    rng = np.random.default_rng(0)
    weights = {
        name: rng.normal(size=value.shape).astype(np.float32)
        for name, value in convert.to_torch(_zeros(shapes)).items()
        if not name.endswith("num_batches_tracked")
    }

    def read_weights(path: Path) -> None:
        convert.from_torch(adopt.read_state_dict(path), shapes)

    def adopt_weights(path: Path) -> None:
        adopt.adopt(read.read(path), shapes, model, name="resnet8")

    def read_index(path: Path) -> None:
        (path.parent / "a.safetensors").write_bytes(save(weights))
        adopt_weights(path)

    def beside(name: str, read: Callable[[Path], Any]) -> Callable[[Path], Any]:
        def read_folder(path: Path) -> None:
            shutil.move(path, path.parent / name)
            read(path.parent)

        return read_folder

    def read_image(path: Path) -> None:
        for split in ("train", "test"):
            (path.parent / split / "a").mkdir(parents=True, exist_ok=True)
            shutil.copy(path, path.parent / split / "a")
        train, _ = folder.scan(path.parent).splits
        folder.load(train, size=32, crop_pct=0.875)

    line = {
        **{"epoch": 1, "step": 5, "lr": 0.1, "train_loss": 2.3, "train_accuracy": 0.1},
        **{"val_loss": 2.2, "val_accuracy": 0.2, "test_loss": 2.1},
        **{"test_accuracy": 0.3, "seconds": 1.5, "images_per_second": 100.0},
    }
    metrics = "".join(json.dumps(line | {"step": 5 * n}) + "\n" for n in range(1, 6))
    info = {
        "architecture": {
            **{"model": "resnet8", "num_classes": 10, "stem": None, "skip": True},
            **{"norm": "batch", "dtype": "float32"},
        },
        "dataset": "digits",
        "class_names": list("abcdefghij"),
        "preprocessing": {"size": 32, "image_size": 32, "normalize": "half"},
        "sha256": hashlib.sha256(save(weights)).hexdigest(),
    }

    def read_exported(home: Path) -> None:
        (home / "model.safetensors").write_bytes(save(weights))
        pretrained.load_pretrained(home)

    def read_layers(home: Path) -> None:
        (home / "metrics.jsonl").unlink(missing_ok=True)
        logs.Logs(home, [], step=5, tensorboard=False, layers=True)

    def read_fashion(path: Path) -> None:
        archives = [f"{split}-images-idx3" for split in ("train", "t10k")]
        archives += [f"{split}-labels-idx1" for split in ("train", "t10k")]
        for name in archives:
            shutil.copy(path, path.parent / f"{name}-ubyte.gz")
        fashion_mnist.read(path.parent)

    # cache.load returns the cached arrays for a data folder, which is empty here.
    empty = Path(tempfile.gettempdir(), "resnet_jax-fuzz")
    empty.mkdir(exist_ok=True)
    arrays = tfds.Arrays(*[(np.zeros((2, 4)), np.arange(2))] * 2, ("a", "b"))
    with tempfile.TemporaryDirectory() as home:
        os.environ["RESNET_JAX_CACHE"] = home
        cache.save("cifar10", empty, arrays)
        cached = Path(home, "cifar10.npz").read_bytes()

    def read_cache(home: Path) -> None:
        os.environ["RESNET_JAX_CACHE"] = str(home)
        cache.load("cifar10", empty)

    # If the archive is read as images, a 16-byte header precedes images of 784 bytes
    # each. If it is read as labels, the header has 8 bytes.
    fashion = gzip.compress(rng.integers(0, 10, 8 * 784 + 16, np.uint8).tobytes())
    layers = [json.dumps({"step": n, "layers": {}}) + "\n" for n in range(5)]
    image = Image.fromarray(rng.integers(0, 256, (40, 30, 3), np.uint8))
    images = {}
    for suffix in ("png", "jpeg", "bmp", "ppm", "tiff", "webp"):
        file = io.BytesIO()
        image.save(file, suffix)
        images[suffix] = file.getvalue()
    index = json.dumps({"weight_map": {n: "a.safetensors" for n in weights}}).encode()
    timm = json.dumps(
        {
            "architecture": "resnet18",
            "num_classes": 1000,
            "pretrained_cfg": {
                **{"mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.95},
                **{"input_size": [3, 224, 224], "interpolation": "bicubic"},
            },
        }
    ).encode()

    def read_described(home: Path) -> None:
        hub.describe(str(home), home)

    return [
        Kind("zip.pth", _torch_file(weights, legacy=False), read_weights, _mutate_zip),
        Kind("legacy.pth", _torch_file(weights, legacy=True), read_weights),
        Kind("training.pth", _training(weights), adopt_weights, _mutate_zip),
        Kind("training.tar", _training(weights, legacy=True), adopt_weights),
        Kind("weights.zip", _zipped(save(weights)), adopt_weights, _mutate_zip),
        Kind("index.json", index, read_index, mutate_json),
        Kind("timm", timm, beside("config.json", read_described), mutate_json),
        Kind("safetensors", save(weights), read_weights, _mutate_safetensors),
        Kind(
            "config.json",
            json.dumps(dataclasses.asdict(Config()), indent=2).encode(),
            directory.read_config,
            mutate_json,
        ),
        Kind(
            "lines",
            metrics.encode(),
            beside("metrics.jsonl", logs.read_metrics),
            mutate_json,
        ),
        Kind(
            "exported",
            json.dumps(info).encode(),
            beside("config.json", read_exported),
            mutate_json,
        ),
        Kind(
            "classes",
            json.dumps(["cat", "dog"]).encode(),
            beside("classes.json", directory.read_classes),
            mutate_json,
        ),
        Kind(
            "layers",
            "".join(layers).encode(),
            beside("layers.jsonl", read_layers),
            mutate_json,
        ),
        Kind("cache", cached, beside("cifar10.npz", read_cache), _mutate_zip),
        Kind("fashion.gz", fashion, read_fashion),
        *(
            Kind(f"image.{suffix}", content, read_image)
            for suffix, content in images.items()
        ),
    ]


def _torch_file(weights: dict[str, np.ndarray], *, legacy: bool) -> bytes:
    import torch

    file = io.BytesIO()
    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    torch.save(tensors, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def _training(weights: dict[str, np.ndarray], *, legacy: bool = False) -> bytes:
    """Returns a training checkpoint that has other entries besides the weights."""
    import argparse
    import collections

    import torch

    tensors = {
        f"module.model.{name}": torch.from_numpy(value)
        for name, value in weights.items()
    }
    content = {
        "state_dict": tensors,
        "args": argparse.Namespace(lr=np.float64(0.1), path=Path("a")),
        "milestones": collections.Counter({30: 1}),
        "frozen": {"conv1"},
    }
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def _zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/model.safetensors", content)
    return file.getvalue()


def _zeros(shapes: Any) -> Any:
    import jax

    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


if __name__ == "__main__":
    main(tyro.cli(Fuzz, description=__doc__))
