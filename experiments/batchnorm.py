"""What BatchNorm does: speed, learning rates, initialisation, gap, drift."""

from dataclasses import dataclass, field
from pathlib import Path

from resnet_jax.config import Config

NORMS = {"BatchNorm": ("batch", 0.0), "none": ("none", 0.0), "dropout": ("none", 0.3)}


@dataclass(frozen=True)
class BatchNorm:
    """One network with BatchNorm, without, and without but with dropout, at several
    learning rates and from both initialisations."""

    model: str = "resnet20"
    """The network."""
    lrs: tuple[float, ...] = (0.01, 0.1, 1.0)
    """Of SGD with momentum, constant."""
    epochs: int = 10
    """Of each run."""
    seed: int = 0
    """Of all runs."""
    data_dir: str | None = None
    """As train.py has it."""
    workdir: Path = field(default=Path("runs/experiments/batchnorm"))
    """Where the runs and the page are kept."""

    def variants(self) -> dict[str, Config]:
        """All runs by name."""
        return {
            f"{label}-{init}-{lr:g}": Config(
                model=self.model,
                norm=norm,
                dropout=dropout,
                init=init,
                epochs=self.epochs,
                optimizer="sgd",
                lr=lr,
                seed=self.seed,
                data_dir=self.data_dir,
                log_gradients=True,
            )
            for label, (norm, dropout) in NORMS.items()
            for lr in self.lrs
            for init in ("kaiming", "torch")
        }
