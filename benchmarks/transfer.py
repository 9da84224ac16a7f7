"""Compares transfer learning in PyTorch and in JAX, starting from the same backbone.

    python -m benchmarks.transfer backbone --file FILE --epochs 2 --lr 1e-3
    python -m benchmarks.transfer transfer --file FILE
    python -m benchmarks.transfer probe --file FILE --framework jax --num-train 1000

`backbone` trains torchvision's resnet18 on the first five classes of CIFAR-10 and saves
it with torch.save. `transfer` and `probe` train a new head for all ten classes on top
of the backbone, whose parameters are frozen. In `transfer`, the backbone's BatchNorm
layers are in training mode, so their statistics are updated; in `probe`, they are in
inference mode. The program prints one line per epoch. With --framework jax, this
package's recipe of the same name runs instead of the PyTorch code. If all images are
used, `transfer --framework jax` is equivalent to `python train.py transfer --pretrained
FILE`.
"""

import json
import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro


@dataclass(frozen=True)
class Transfer:
    """Options of the benchmark."""

    mode: Annotated[Literal["backbone", "transfer", "probe"], tyro.conf.Positional]
    """Step to run."""
    file: str = "backbone.pth"
    """Weights file, written by `backbone` and read by `transfer` and `probe`."""
    framework: Literal["torch", "jax"] = "torch"
    """Framework to use."""
    epochs: int = 30
    """Number of passes over the training set."""
    lr: float = 1e-4
    """Learning rate of Adam."""
    batch_size: int = 128
    """Images per step."""
    image_size: int | None = None
    """Height and width of the resized images (antialiased, as in torchvision)."""
    num_train: int | None = None
    """Number of training images to use, from the beginning of the data set."""
    num_test: int | None = None
    """Number of test images to use, from the beginning of the data set."""
    workdir: str = "runs/transfer-benchmark"
    """Run directory of the recipe (with --framework jax)."""
    seed: int = 0
    """Seed for the weights and the image order."""


def main(cfg: Transfer) -> None:
    from resnet_jax import data

    if cfg.mode == "backbone" and cfg.framework == "jax":
        raise SystemExit("only PyTorch trains the backbone: omit --framework")
    train, test = data.load_dataset("cifar10")
    train, test = train.take(slice(cfg.num_train)), test.take(slice(cfg.num_test))
    if cfg.framework == "jax":
        _run_recipe(cfg, train, test)
    else:
        _run_torch(cfg, train, test)


def _run_recipe(cfg: Transfer, train: Any, test: Any) -> None:
    from resnet_jax import fields
    from resnet_jax.commands import train as command
    from resnet_jax.data import sources
    from resnet_jax.recipes import RECIPES

    recipe = fields.replace(
        RECIPES[cfg.mode][1],
        pretrained=cfg.file,
        epochs=cfg.epochs,
        lr=cfg.lr,
        batch_size=cfg.batch_size,
        image_size=cfg.image_size,
        eval_batch_size=100,
        seed=cfg.seed,
        workdir=cfg.workdir,
    )
    original = sources.SOURCES["cifar10"]
    held = original._replace(open=lambda cfg: (10, lambda: (train, test)))
    sources.SOURCES["cifar10"] = held
    try:
        command.main(recipe)
    finally:
        sources.SOURCES["cifar10"] = original


def _run_torch(cfg: Transfer, train: Any, test: Any) -> None:
    import numpy as np
    import torch
    import torchvision
    from torchvision.transforms.v2 import functional as T

    torch.manual_seed(cfg.seed)
    if cfg.mode == "backbone":
        train, test = (part.take(part.labels < 5) for part in (train, test))
    model = torchvision.models.resnet18(num_classes=5 if cfg.mode == "backbone" else 10)
    if cfg.mode != "backbone":
        saved = torch.load(cfg.file, weights_only=True)
        kept = {k: v for k, v in saved.items() if not k.startswith("fc.")}
        model.load_state_dict(kept, strict=False)
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.startswith("fc.")
    model = model.to(memory_format=torch.channels_last)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=cfg.lr)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def batch(part: object, indices: np.ndarray) -> tuple[torch.Tensor, ...]:
        x = torch.from_numpy(part.images[indices]).permute(0, 3, 1, 2).float() / 255
        x = T.normalize(x, mean, std)
        if cfg.image_size is not None:
            x = T.resize(x, [cfg.image_size, cfg.image_size], antialias=True)
        return x, torch.from_numpy(part.labels[indices]).long()

    if cfg.mode == "probe":  # features do not change, so they are computed once
        head, model.fc = model.fc, torch.nn.Identity()
        model.eval()
        cached = {}
        with torch.no_grad():
            for part in (train, test):
                places = np.split(np.arange(len(part)), range(100, len(part), 100))
                cached[id(part)] = torch.cat([model(batch(part, i)[0]) for i in places])
        model = head

        def batch(part: object, indices: np.ndarray) -> tuple[torch.Tensor, ...]:
            labels = torch.from_numpy(part.labels[indices]).long()
            return cached[id(part)][torch.from_numpy(indices)], labels

    for epoch in range(1, cfg.epochs + 1):
        begun, losses = time.monotonic(), 0.0
        model.train(cfg.mode != "probe")
        order = np.random.default_rng([cfg.seed, epoch]).permutation(len(train))
        for start in range(0, len(order), cfg.batch_size):
            x, y = batch(train, order[start : start + cfg.batch_size])
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses += loss.item() * len(y)
        seconds = time.monotonic() - begun
        model.eval()
        correct = 0
        with torch.inference_mode():
            for start in range(0, len(test), 500):
                x, y = batch(test, np.arange(start, min(start + 500, len(test))))
                correct += (model(x).argmax(1) == y).sum().item()
        record = {
            "mode": cfg.mode,
            "seed": cfg.seed,
            "epoch": epoch,
            "train_loss": losses / len(train),
            "test_accuracy": correct / len(test),
            "seconds": seconds,
        }
        print(json.dumps(record), flush=True)
    if cfg.mode == "backbone":
        torch.save(model.state_dict(), cfg.file)


if __name__ == "__main__":
    main(tyro.cli(Transfer, description=__doc__))
