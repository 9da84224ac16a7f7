"""Vanishing gradients: effects of depth, shortcuts, BatchNorm and initialization."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.variants import Experiment, Outcome, table
from resnet_jax.config import Config
from resnet_jax.report import figures, origin, page

_LABELS = {
    ("skip", "batch"): "shortcuts, BatchNorm",
    ("plain", "batch"): "plain, BatchNorm",
    ("skip", "none"): "shortcuts only",
    ("plain", "none"): "plain, no BatchNorm",
}
_KEYS = ("gradient", "gradient norm"), ("update_ratio", "update / weight")


@dataclass(frozen=True)
class Gradients(Experiment):
    """Measures the gradients that reach the first layers of networks of several depths,
    with and without shortcuts and BatchNorm, and from two initializations. The
    gradients are measured before training and after some steps of SGD. A run that
    converges is also compared with one whose gradients vanish.
    """

    depths: tuple[int, ...] = (8, 20, 56, 110)
    """Depths of He et al.'s networks for CIFAR-10."""
    steps: int = 200
    """Number of training steps for each network."""
    batch_size: int = 64
    """Number of images per step."""
    lr: float = 0.01
    """Constant learning rate of SGD with momentum."""
    pair_depth: int = 20
    """Depth of the network that converges and of the one whose gradients vanish."""
    pair_epochs: int = 5
    """Number of epochs for the two networks of depth --pair-depth."""
    workdir: Path = Path("runs/experiments/gradients")
    """Directory for the runs and the page."""

    def variants(self) -> dict[str, Config]:
        """Returns the runs' configurations by name."""

        def config(depth: int, **fields: object) -> Config:
            return self.config(
                model=f"resnet{depth}",
                lr=self.lr,
                batch_size=self.batch_size,
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

    def write_page(self, outcomes: Mapping[str, Outcome]) -> None:
        """Writes index.html to workdir from the logs of the runs."""
        sections: dict[str, list[page.Content]] = {"Observations": self._seen(outcomes)}
        for when, place in (("before training", 0), ("after training", -1)):
            path = self.workdir / f"gradients-{when.split()[0]}.png"
            figures.plot_lines(
                self._panels(outcomes, place),
                path,
                xlabel="convolution, from the first to the last",
                ylabel="gradient norm",
                log=True,
                columns=2,
            )
            alt = f"Norm of the loss gradient of each convolution {when}, by depth"
            steps = f", {self.steps} steps" if place else ""
            sections[f"{when.capitalize()}{steps}"] = [page.Picture(path, alt)]
        path = self.workdir / "pair.png"
        pair = {name: outcomes[name] for name in ("converged", "vanished")}
        figures.plot_lines(
            {
                label: {
                    name: convolutions(outcome.layers[-1], key)
                    for name, outcome in pair.items()
                    if outcome.layers
                }
                for key, label in _KEYS
            },
            path,
            xlabel="convolution, from the first to the last",
            ylabel="",
            log=True,
        )
        alt = (
            "Gradient norm and update-to-weight ratio of the runs named "
            "converged and vanished"
        )
        sections["Converged or vanished?"] = [
            *self._pair(pair),
            page.Picture(path, alt),
        ]
        sections["All runs"] = [table(outcomes, {"first / last gradient": _reach})]
        sections["Origin"] = [origin.card()]
        page.write(self.workdir / "index.html", "Vanishing gradients", sections)

    def _panels(
        self, outcomes: Mapping[str, Outcome], place: int
    ) -> dict[str, dict[str, Any]]:
        panels: dict[str, dict[str, Any]] = {}
        for name, outcome in outcomes.items():
            if name in ("converged", "vanished") or not outcome.layers:
                continue
            depth, skip, norm, init = name.split("-")
            lines = panels.setdefault(f"{depth} layers, {init} init", {})
            lines[_LABELS[skip, norm]] = convolutions(outcome.layers[place], "gradient")
        return panels

    def _seen(self, outcomes: Mapping[str, Outcome]) -> list[page.Content]:
        deepest = max(self.depths)
        rows = []
        found: dict[str, list[str]] = {"level": [], "vanished": [], "exploded": []}
        for init in ("kaiming", "torch"):
            for (skip, norm), label in _LABELS.items():
                outcome = outcomes[f"{deepest}-{skip}-{norm}-{init}"]
                if not outcome.layers:
                    continue
                losses = [f"{r['train_loss']:.4g}" for r in outcome.records] or "-"
                rows.append((label, init, _reach(outcome), losses[-1]))
                _, values = convolutions(outcome.layers[0], "gradient")
                kind = "level"
                if values[0] < 0.01 * values[-1]:
                    kind = "vanished"
                elif values[0] > 100 * values[-1]:
                    kind = "exploded"
                found[kind].append(f"{label} ({init})")
        sentences = [
            f"Before training, with {deepest} layers, the gradient has {kind} on its "
            "way from the last convolution to the first in these networks: "
            f"{'; '.join(names)}."
            for kind, names in found.items()
            if names and kind != "level"
        ]
        sentences.append(
            "The gradients of the first and last convolutions are within a factor of "
            "100 of each other in these networks: "
            f"{'; '.join(found['level']) or 'none'}. The loss shows whether "
            "the networks can be trained:"
        )
        loss = f"training loss over {self.steps} steps"
        header = ("network", "initialization", "first / last gradient", loss)
        caption = f"Gradients in networks with {deepest} layers before training"
        return [*sentences, page.Table(header, rows, caption), self.setting]

    def _pair(self, pair: Mapping[str, Outcome]) -> list[page.Content]:
        found: list[page.Content] = []
        for name, outcome in pair.items():
            if not outcome.records or not outcome.layers:
                found.append(f"The {name} run has no measurements: {outcome.diverged}.")
                continue
            losses = [f"{record['train_loss']:.3f}" for record in outcome.records]
            _, ratios = convolutions(outcome.layers[-1], "update_ratio")
            found.append(
                f"{name.capitalize()}: the training loss by epoch is "
                f"{', '.join(losses)}. At the end, an update changes the weights of "
                f"the first convolution by {ratios[0]:.1e} of their norm, and the "
                f"weights of the last convolution by {ratios[-1]:.1e}."
            )
        return found


def convolutions(record: Mapping[str, Any], key: str) -> tuple[list[int], list[float]]:
    """Returns the indices of the 3x3 convolutions and the value of `key` for each."""
    values = [
        values[key]
        for name, values in record["layers"].items()
        if "conv" in name.rsplit(".", 1)[-1]
    ]
    return list(range(1, len(values) + 1)), values


def _reach(outcome: Outcome) -> str:
    if not outcome.layers:
        return "-"
    _, values = convolutions(outcome.layers[0], "gradient")
    return f"{values[0] / values[-1]:.2g}" if values[-1] else "-"
