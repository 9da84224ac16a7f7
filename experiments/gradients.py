"""Vanishing gradients: depth, shortcuts, BatchNorm and initialisation."""

from dataclasses import dataclass, field
from pathlib import Path

from resnet_jax.config import Config


@dataclass(frozen=True)
class Gradients:
    """How the gradient reaches the first layers: several depths, with and without
    shortcuts and BatchNorm, both initialisations, before training and after some steps
    of SGD; and a run that has converged beside one that has vanished."""

    depths: tuple[int, ...] = (8, 20, 56, 110)
    """Of He et al.'s networks for CIFAR-10."""
    steps: int = 200
    """Of training, for each of the networks."""
    batch_size: int = 64
    """Pictures a step."""
    lr: float = 0.01
    """Constant, of SGD with momentum."""
    pair_depth: int = 20
    """Of the converged and of the vanished network."""
    pair_epochs: int = 5
    """Of those two."""
    seed: int = 0
    """Of all runs."""
    data_dir: str | None = None
    """As train.py has it."""
    workdir: Path = field(default=Path("runs/experiments/gradients"))
    """Where the runs and the page are kept."""

    def variants(self) -> dict[str, Config]:
        """All runs by name."""

        def config(depth: int, **fields: object) -> Config:
            return Config(
                model=f"resnet{depth}",
                optimizer="sgd",
                lr=self.lr,
                batch_size=self.batch_size,
                seed=self.seed,
                data_dir=self.data_dir,
                log_gradients=True,
                **fields,
            )

        found = {
            f"{depth}-{'skip' if skip else 'plain'}-{norm}-{init}": config(
                depth, skip=skip, norm=norm, init=init, epochs=1, max_steps=self.steps
            )
            for depth in self.depths
            for init in ("kaiming", "torch")
            for norm in ("batch", "none")
            for skip in (True, False)
        }
        for name, fields in (
            ("converged", {"skip": True, "norm": "batch", "init": "kaiming"}),
            ("vanished", {"skip": False, "norm": "none", "init": "torch"}),
        ):
            found[name] = config(self.pair_depth, epochs=self.pair_epochs, **fields)
        return found
