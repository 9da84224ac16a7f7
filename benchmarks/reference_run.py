"""Trains the tutorial's network in PyTorch and in JAX, with identical batches.

    python -m benchmarks.reference_run --epochs 3

Both programs start from PyTorch's initial weights and train on the real CIFAR-10 data,
with the same batches in the same order. The programs take turns, one epoch at a time.
The benchmark writes the run directories torch/ and jax/ and their curves to --workdir,
and prints a table. The same command resumes the runs; --epochs must be at least as
large as before.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro


@dataclass(frozen=True)
class ReferenceRun:
    """Options of the benchmark."""

    epochs: int = 3
    """Epochs for each program."""
    seed: int = 0
    """Seed for the weights and the image order."""
    data_dir: str | None = None
    """Data directory of tensorflow-datasets, as in train.py."""
    workdir: str = "runs/reference"
    """Folder for both runs."""
    num_train: int | None = None
    """Number of training images to use, from the beginning of the data set."""


def main(cfg: ReferenceRun) -> None:
    import torch

    from benchmarks.torch_models import HResNet
    from resnet_jax import data, fields, files
    from resnet_jax.commands import train
    from resnet_jax.data import sources
    from resnet_jax.recipes import RECIPES
    from resnet_jax.report import curves

    root = Path(cfg.workdir)
    (root / "torch").mkdir(parents=True, exist_ok=True)
    initial = root / "initial.pth"
    if not initial.exists():
        torch.manual_seed(cfg.seed)
        _save(HResNet().state_dict(), initial)
    loaded = data.load_dataset("cifar10", cfg.data_dir)
    if cfg.num_train is not None:
        loaded = (loaded[0].take(slice(cfg.num_train)), loaded[1])
    recipe = fields.replace(
        RECIPES["hresnet"][1],
        pretrained=str(initial),
        data_dir=cfg.data_dir,
        seed=cfg.seed,
        workdir=str(root / "jax"),
        override=True,
    )
    paths = {name: root / name / "metrics.jsonl" for name in ("torch", "jax")}
    original = sources.SOURCES["cifar10"]
    held = original._replace(open=lambda cfg: (10, lambda: loaded))
    sources.SOURCES["cifar10"] = held  # loads the data once for all epochs
    try:
        for epoch in range(cfg.epochs):
            if len(files.read_jsonl(paths["torch"])) <= epoch:
                _torch_epoch(root, recipe, loaded, epoch)
            if len(files.read_jsonl(paths["jax"])) <= epoch:
                train.main(fields.replace(recipe, epochs=epoch + 1))
    finally:
        sources.SOURCES["cifar10"] = original
    runs = {name: files.read_jsonl(path)[: cfg.epochs] for name, path in paths.items()}
    print(table(runs["torch"], runs["jax"]))
    named = {"PyTorch": runs["torch"], "resnet_jax": runs["jax"]}
    pictures = curves.plot_runs(named, root)
    print(f"curves written to {', '.join(str(picture.path) for picture in pictures)}")


def _torch_epoch(root: Path, recipe: Any, loaded: Any, epoch: int) -> None:
    """Runs epoch `epoch` (from 0) in PyTorch; writes a record and a checkpoint."""
    import torch

    from benchmarks.torch_models import HResNet
    from resnet_jax import data
    from resnet_jax.data.augment import parse_normalization

    train, test = loaded
    model = HResNet().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.optim.lr)
    if epoch == 0:
        model.load_state_dict(torch.load(root / "initial.pth", weights_only=True))
    else:
        saved = torch.load(root / "torch" / f"{epoch}.pth", weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    mean, std = (
        torch.tensor(values).reshape(1, 3, 1, 1)
        for values in parse_normalization(recipe.augment.normalize)
    )

    def inputs(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.from_numpy(batch.images).permute(0, 3, 1, 2)
        labels = torch.from_numpy(batch.labels).long()
        return (images.float() / 255 - mean) / std, labels

    sizes = data.batch_sizes(len(train), recipe.data.batch_size)
    batches = data.epoch_batches(len(train), sizes, epoch, seed=recipe.seed)
    model.train()
    begun, losses, correct = time.monotonic(), 0.0, 0
    for indices in batches:
        x, y = inputs(train.take(indices))
        optimizer.zero_grad()
        logits = model(x)
        loss = torch.nn.functional.cross_entropy(logits, y)
        loss.backward()
        optimizer.step()
        losses += loss.item() * len(y)
        correct += (logits.argmax(1) == y).sum().item()
    seconds = time.monotonic() - begun
    model.eval()
    test_loss, test_correct = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(test), 500):
            x, y = inputs(test.take(slice(start, start + 500)))
            logits = model(x)
            loss = torch.nn.functional.cross_entropy(logits, y, reduction="sum")
            test_loss += loss.item()
            test_correct += (logits.argmax(1) == y).sum().item()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    _save(content, root / "torch" / f"{epoch + 1}.pth")
    record = {
        "epoch": epoch + 1,
        "train_loss": losses / len(train),
        "train_accuracy": correct / len(train),
        "test_loss": test_loss / len(test),
        "test_accuracy": test_correct / len(test),
        "seconds": seconds,
        "images_per_second": len(train) / seconds,
    }
    with (root / "torch" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    (root / "torch" / f"{epoch}.pth").unlink(missing_ok=True)
    print("PyTorch", json.dumps(record), flush=True)


def _save(content: Any, path: Path) -> None:
    import torch

    torch.save(content, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def table(theirs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> str:
    """Returns a Markdown table of both programs' figures for each epoch."""
    lines = [
        "| epoch | loss PyTorch / JAX | difference | test % PyTorch / JAX | "
        "difference | images/s PyTorch / JAX |",
        "|---|---|---|---|---|---|",
    ]
    for a, b in zip(theirs, ours, strict=True):
        loss = 100 * (b["train_loss"] / a["train_loss"] - 1)
        accuracies = [100 * record["test_accuracy"] for record in (a, b)]
        lines.append(
            f"| {a['epoch']} | {a['train_loss']:.4f} / {b['train_loss']:.4f} | "
            f"{loss:+.2f} % | {accuracies[0]:.2f} / {accuracies[1]:.2f} | "
            f"{accuracies[1] - accuracies[0]:+.2f} | "
            f"{a['images_per_second']:.0f} / {b['images_per_second']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    from resnet_jax.commands.command_line import command_line

    with command_line("reference_run"):
        main(tyro.cli(ReferenceRun, description=__doc__))
