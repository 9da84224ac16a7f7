"""What BatchNorm does: speed, learning rates, initialisation, gap, drift."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.variants import Outcome, table
from resnet_jax import figures, page
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
    workdir: Path = Path("runs/experiments/batchnorm")
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

    def write_page(self, outcomes: Mapping[str, Outcome]) -> None:
        """The page index.html in workdir, from what the runs logged."""
        accuracy: dict[str, dict[str, Any]] = {}
        drift: dict[str, dict[str, Any]] = {}
        for name, outcome in outcomes.items():
            label, init, lr = name.split("-", 2)
            if outcome.records:
                accuracy.setdefault(f"{init} init, lr {lr}", {})[label] = (
                    [record["epoch"] for record in outcome.records],
                    [100 * record["test_accuracy"] for record in outcome.records],
                )
            if outcome.layers:
                drift.setdefault(f"{init} init, lr {lr}", {})[label] = _drift(outcome)
        pictures = []
        for name, panels, ylabel, alt in (
            ("accuracy", accuracy, "test %", "Test accuracy by epoch"),
            (
                "drift",
                drift,
                "mean over spread at the start",
                "Mean of the input of the middle convolution by epoch, on one batch, "
                "in spreads of its input before training",
            ),
        ):
            path = self.workdir / f"{name}.png"
            figures.plot_lines(panels, path, xlabel="epoch", ylabel=ylabel)
            pictures.append(page.Picture(path, alt))
        sections: dict[str, list[page.Content]] = {
            "What is seen": self._seen(outcomes),
            "Speed, learning rates, initialisation": [pictures[0]],
            "Drift": [pictures[1]],
            "All runs": [table(outcomes, {"train - test, points": _gap})],
        }
        page.write(self.workdir / "index.html", "Batch normalisation", sections)

    def _seen(self, outcomes: Mapping[str, Outcome]) -> list[page.Content]:
        rows = []
        for label in NORMS:
            mine = {n: o for n, o in outcomes.items() if n.startswith(f"{label}-")}
            trains = [o.cfg.lr for o in mine.values() if is_training(o)]
            scored = {
                n: o.records[-1]["test_accuracy"] for n, o in mine.items() if o.records
            }
            first = [o.records[0]["test_accuracy"] for o in mine.values() if o.records]
            best = max(scored, key=lambda n: scored[n]) if scored else None
            rows.append(
                (
                    label,
                    f"{max(trains):g}" if trains else "none",
                    f"{len(trains)} of {len(mine)}",
                    f"{100 * max(first):.2f}" if first else "-",
                    "-" if best is None else f"{100 * scored[best]:.2f} ({best})",
                )
            )
        header = (
            "network",
            "largest lr that trains",
            "runs that train",
            "best test % after an epoch",
            "best test % at the end",
        )
        return [
            "A run trains if its loss is finite and its last training accuracy exceeds "
            "15 % (chance is 10 %).",
            page.Table(header, rows),
        ]


def is_training(outcome: Outcome) -> bool:
    """Whether a run learned anything."""
    if outcome.diverged or not outcome.records:
        return False
    return outcome.records[-1]["train_accuracy"] > 0.15


def _gap(outcome: Outcome) -> str:
    if not outcome.records:
        return "-"
    last = outcome.records[-1]
    return f"{100 * (last['train_accuracy'] - last['test_accuracy']):+.2f}"


def _drift(outcome: Outcome) -> tuple[list[int], list[float]]:
    """(epochs, mean of the middle convolution's input over its first spread)."""
    names = [n for n in outcome.layers[0]["layers"] if n.rsplit(".", 1)[-1] == "conv1"]
    middle = names[len(names) // 2]
    spread = outcome.layers[0]["layers"][middle]["input_std"] or 1.0
    means = [record["layers"][middle]["input_mean"] for record in outcome.layers]
    return [record["epoch"] for record in outcome.layers], [m / spread for m in means]
