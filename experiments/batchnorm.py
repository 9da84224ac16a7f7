"""The effects of BatchNorm on speed, learning rates and initialization.

The experiment also compares the gaps between training and test accuracy, and the
covariate shifts in the input of a convolution.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.variants import Experiment, Outcome, table
from resnet_jax.config import Config
from resnet_jax.report import figures, origin, page

NORMS = {"BatchNorm": ("batch", 0.0), "none": ("none", 0.0), "dropout": ("none", 0.3)}
_WORDS = {
    "BatchNorm": "with BatchNorm",
    "none": "without",
    "dropout": "with dropout instead",
}


@dataclass(frozen=True)
class BatchNorm(Experiment):
    """Trains a network with BatchNorm, without it, and with dropout instead; each
    variant is trained at several learning rates and from two initializations.
    """

    model: str = "resnet20"
    """The network."""
    lrs: tuple[float, ...] = (0.01, 0.1, 1.0)
    """Constant learning rates of SGD with momentum."""
    epochs: int = 10
    """Number of epochs of each run."""
    batch_size: int = 128
    """Number of images per step."""
    workdir: Path = Path("runs/experiments/batchnorm")
    """Directory for the runs and the page."""

    def variants(self) -> dict[str, Config]:
        """Returns the runs' configurations by name."""
        return {
            f"{label}-{init}-{lr:g}": self.config(
                model=self.model,
                norm=norm,
                dropout=dropout,
                init=init,
                epochs=self.epochs,
                batch_size=self.batch_size,
                lr=lr,
                log_gradients=True,
            )
            for label, (norm, dropout) in NORMS.items()
            for lr in self.lrs
            for init in ("kaiming", "torch")
        }

    def write_page(self, outcomes: Mapping[str, Outcome]) -> None:
        """Writes index.html to workdir from the logs of the runs."""
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
                "mean / initial std",
                "Mean of the middle convolution's input on one batch, by epoch, in "
                "units of the input's standard deviation before training",
            ),
        ):
            path = self.workdir / f"{name}.png"
            figures.plot_lines(panels, path, xlabel="epoch", ylabel=ylabel)
            pictures.append(page.Picture(path, alt))
        sections: dict[str, list[page.Content]] = {
            "Observations": self._seen(outcomes),
            "Speed, learning rates, initialization": [pictures[0]],
            "Covariate shift": [pictures[1]],
            "All runs": [table(outcomes, {"train - test, points": _gap})],
        }
        sections["Origin"] = [origin.card()]
        page.write(self.workdir / "index.html", "Batch normalization", sections)

    def _seen(self, outcomes: Mapping[str, Outcome]) -> list[page.Content]:
        best = {label: _best(outcomes, label) for label in NORMS}
        largest = {
            label: max(
                (
                    o.cfg.optim.lr
                    for n, o in _of(outcomes, label).items()
                    if is_training(o)
                ),
                default=None,
            )
            for label in NORMS
        }
        apart = {label: self._sensitivity(outcomes, label) for label in NORMS}
        first = {
            label: max(_accuracy(o, 0) for o in _of(outcomes, label).values())
            for label in NORMS
        }
        return [
            "A run counts as trained if its loss is finite and its last training "
            "accuracy exceeds 15 % (chance is 10 %).",
            "Speed: after the first epoch, the test accuracy of the best run is "
            f"{_each(first, '{:.2f} %')}.",
            "Learning rates: the largest learning rate at which a run trains is "
            f"{_each(largest, '{:g}')}.",
            "Initialization: at the same learning rate, the final test accuracies "
            "of the two initializations differ by at most the following numbers of "
            f"percentage points: {_each(apart, '{:.2f}')}. A diverged run counts as "
            "chance (10 %).",
            "Gap: at the end of the best run, the training accuracy minus the test "
            "accuracy is, in percentage points, "
            f"{_each({k: _gap(o) for k, o in best.items()})}. Training accuracy is "
            "computed in each step before the update, with dropout active.",
            "Covariate shift: from before training to the end of the best run, the "
            "mean of the middle convolution's input changes by the following "
            "multiples of the input's standard deviation before training: "
            f"{_each({k: _moved(o) for k, o in best.items()})}.",
            self.setting,
        ]

    def _sensitivity(self, outcomes: Mapping[str, Outcome], label: str) -> float:
        """Returns the largest accuracy difference between the two initializations."""
        return max(
            abs(
                _accuracy(outcomes[f"{label}-kaiming-{lr:g}"])
                - _accuracy(outcomes[f"{label}-torch-{lr:g}"])
            )
            for lr in self.lrs
        )


def _each(values: Mapping[str, Any], form: str = "{}") -> str:
    """Returns text like "1 with BatchNorm, 2 without, 3 with dropout instead"."""
    return ", ".join(
        f"{'none' if value is None else form.format(value)} {_WORDS[label]}"
        for label, value in values.items()
    )


def _of(outcomes: Mapping[str, Outcome], label: str) -> dict[str, Outcome]:
    return {n: o for n, o in outcomes.items() if n.startswith(f"{label}-")}


def _accuracy(outcome: Outcome, epoch: int = -1) -> float:
    """Returns the test accuracy in percent, or 10 (chance) if the run diverged."""
    if not outcome.records or (outcome.diverged and epoch == -1):
        return 10.0
    return 100 * outcome.records[epoch]["test_accuracy"]


def _best(outcomes: Mapping[str, Outcome], label: str) -> Outcome:
    return max(_of(outcomes, label).values(), key=_accuracy)


def _moved(outcome: Outcome) -> str:
    if len(outcome.layers) < 2:
        return "-"
    _, means = _drift(outcome)
    return f"{abs(means[-1] - means[0]):.2f}"


def is_training(outcome: Outcome) -> bool:
    """Returns whether a run learned anything."""
    if outcome.diverged or not outcome.records:
        return False
    return outcome.records[-1]["train_accuracy"] > 0.15


def _gap(outcome: Outcome) -> str:
    if not outcome.records:
        return "-"
    last = outcome.records[-1]
    return f"{100 * (last['train_accuracy'] - last['test_accuracy']):+.2f}"


def _drift(outcome: Outcome) -> tuple[list[int], list[float]]:
    """Returns the epochs, and the mean of the middle convolution's input at each epoch.

    The means are in units of the input's standard deviation in the first record.
    """
    names = [n for n in outcome.layers[0]["layers"] if n.rsplit(".", 1)[-1] == "conv1"]
    middle = names[len(names) // 2]
    spread = outcome.layers[0]["layers"][middle]["input_std"] or 1.0
    means = [record["layers"][middle]["input_mean"] for record in outcome.layers]
    return [record["epoch"] for record in outcome.layers], [m / spread for m in means]
