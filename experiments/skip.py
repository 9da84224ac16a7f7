"""Deeper is worse without shortcuts, and better with them (He et al., figures 1, 6)."""

from dataclasses import dataclass, field
from pathlib import Path

from resnet_jax.config import Config


@dataclass(frozen=True)
class Skip:
    """Plain and residual networks of two depths, trained alike."""

    depths: tuple[int, ...] = (20, 56)
    """Of He et al.'s networks for CIFAR-10."""
    epochs: int = 40
    """Of SGD with a cosine from lr .1."""
    seed: int = 0
    """Of all runs."""
    data_dir: str | None = None
    """As train.py has it."""
    workdir: Path = field(default=Path("runs/experiments/skip"))
    """Where the runs and the page are kept."""

    def variants(self) -> dict[str, Config]:
        """All runs by name."""
        return {
            f"{'residual' if skip else 'plain'}-{depth}": Config(
                model=f"resnet{depth}",
                skip=skip,
                epochs=self.epochs,
                optimizer="sgd",
                lr=0.1,
                weight_decay=1e-4,
                schedule="cosine",
                crop_padding=4,
                flip=True,
                seed=self.seed,
                data_dir=self.data_dir,
            )
            for depth in self.depths
            for skip in (False, True)
        }
