"""Deeper networks perform worse without shortcuts and better with them.

See He et al. 2015, figures 1 and 6.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from experiments.variants import Experiment, Outcome, table
from resnet_jax.config import Config
from resnet_jax.report import figures, origin, page


@dataclass(frozen=True)
class Skip(Experiment):
    """Trains plain and residual networks of two depths in the same way."""

    depths: tuple[int, ...] = (20, 56)
    """Depths of He et al.'s networks for CIFAR-10."""
    epochs: int = 40
    """Number of epochs of SGD, with a cosine schedule that starts at lr=0.1."""
    batch_size: int = 128
    """Number of images per step."""
    workdir: Path = Path("runs/experiments/skip")
    """Directory for the runs and the page."""

    def variants(self) -> dict[str, Config]:
        """Returns all runs by name."""
        return {
            f"{'residual' if skip else 'plain'}-{depth}": self.config(
                model=f"resnet{depth}",
                skip=skip,
                epochs=self.epochs,
                batch_size=self.batch_size,
                lr=0.1,
                weight_decay=1e-4,
                schedule="cosine",
                crop_padding=4,
                flip="random",
            )
            for depth in self.depths
            for skip in (False, True)
        }

    def write_page(self, outcomes: Mapping[str, Outcome]) -> None:
        """Writes index.html to workdir from the logs of the runs."""
        panels = {}
        for key, title in (
            ("train_accuracy", "training error"),
            ("test_accuracy", "test error"),
        ):
            panels[title] = {
                name: (
                    [record["epoch"] for record in outcome.records],
                    [100 * (1 - record[key]) for record in outcome.records],
                )
                for name, outcome in outcomes.items()
            }
        path = self.workdir / "curves.png"
        figures.plot_lines(panels, path, xlabel="epoch", ylabel="error, %")
        alt = "Training and test error by epoch, for plain and residual networks"
        shallow, deep = min(self.depths), max(self.depths)
        seen = []
        for kind in ("plain", "residual"):
            errors = []
            for depth in (shallow, deep):
                records = outcomes[f"{kind}-{depth}"].records
                if records:
                    errors.append(100 * (1 - records[-1]["train_accuracy"]))
            if len(errors) == 2:
                more = errors[1] - errors[0]
                seen.append(
                    f"{kind.capitalize()}: with {deep} layers, the final training "
                    f"error is {abs(more):.2f} percentage points "
                    f"{'higher' if more > 0 else 'lower'} than with {shallow} "
                    f"({errors[1]:.2f} versus {errors[0]:.2f} %)."
                )
        sections: dict[str, list[page.Content]] = {
            "Observations": [*seen, self.setting, page.Picture(path, alt)],
            "All runs": [table(outcomes)],
        }
        sections["Origin"] = [origin.card()]
        page.write(self.workdir / "index.html", "Plain and residual", sections)
