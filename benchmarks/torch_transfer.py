"""Transfer learning in PyTorch, to compare ours with.

    python -m benchmarks.torch_transfer backbone --output FILE
    python -m benchmarks.torch_transfer transfer --backbone FILE --epochs 10
    python -m benchmarks.torch_transfer probe --backbone FILE --epochs 10

`backbone` trains torchvision's resnet18 on the first five classes of CIFAR-10 and saves
it with torch.save. `transfer` and `probe` give it a new head for all ten: frozen
parameters, with BatchNorm in training mode (its statistics move) or in inference mode.
One JSON line an epoch.
"""

import json
import time
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class TorchTransfer:
    """The step of the comparison that is to run."""

    mode: Annotated[Literal["backbone", "transfer", "probe"], tyro.conf.Positional]
    """What to do."""
    backbone: str = "backbone.pth"
    """The file that `backbone` saved."""
    output: str = "backbone.pth"
    """Where `backbone` saves."""
    epochs: int = 2
    """Passes over the training set."""
    lr: float = 1e-4
    """Of Adam."""
    batch_size: int = 128
    """Pictures a step."""
    image_size: int | None = None
    """Resize to this side, as torchvision does tensors (antialiased)."""
    num_train: int | None = None
    """Train on the first so many pictures only."""
    seed: int = 0
    """Of weights and order."""


def main(cfg: TorchTransfer) -> None:
    import numpy as np
    import torch
    import torchvision
    from torchvision.transforms.v2 import functional as T

    from resnet_jax.data import load_dataset

    torch.manual_seed(cfg.seed)
    train, test = load_dataset("cifar10")
    if cfg.num_train is not None:
        train = train.take(slice(cfg.num_train))
    if cfg.mode == "backbone":
        train, test = (part.take(part.labels < 5) for part in (train, test))
    model = torchvision.models.resnet18(num_classes=5 if cfg.mode == "backbone" else 10)
    if cfg.mode != "backbone":
        saved = torch.load(cfg.backbone, weights_only=True)
        kept = {k: v for k, v in saved.items() if not k.startswith("fc.")}
        model.load_state_dict(kept, strict=False)
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.startswith("fc.")
    model = model.to(memory_format=torch.channels_last)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=cfg.lr)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def batch(part: object, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.from_numpy(part.images[indices]).permute(0, 3, 1, 2).float() / 255
        x = T.normalize(x, mean, std)
        if cfg.image_size is not None:
            x = T.resize(x, [cfg.image_size, cfg.image_size], antialias=True)
        return x, torch.from_numpy(part.labels[indices]).long()

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
        torch.save(model.state_dict(), cfg.output)


if __name__ == "__main__":
    main(tyro.cli(TorchTransfer, description=__doc__))
