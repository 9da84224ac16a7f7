"""Tunes a recipe on images that are held out from its training set.

    python -m benchmarks.sweep fast --grid lr=.03,.06,.1 batch_size=128,256
    python -m benchmarks.sweep fast --each crop_padding=0 flip=none --seeds 3
    python -m benchmarks.sweep resnet20 --set epochs=30 --grid lr=.02,.03,.06

With --grid, trains every combination of the given values; with --each, trains the
recipe with one of the given changes at a time. Prints a table with the best
configuration first. The same command resumes the sweep. Test accuracies are in the
metrics.jsonl of each run; the sweep does not read them.
"""

import ast
import contextlib
import itertools
import re
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from experiments import variants
from resnet_jax import fields
from resnet_jax.commands.command_line import command_line
from resnet_jax.config import Config
from resnet_jax.errors import ConfigError
from resnet_jax.recipes import RECIPES

Fields = dict[str, Any]
_KNOWN = {field.name for field, _ in fields.flat(Config())}
_OWN = ("seed", "num_seeds", "validation_split", "workdir", "summary")


@dataclass(frozen=True)
class Sweep:
    """Options of the benchmark."""

    recipe: tyro.conf.Positional[str]
    """Name of the recipe to start from."""
    grid: tuple[str, ...] = ()
    """FIELD=VALUE,VALUE,...: values of fields; all combinations are tried."""
    each: tuple[str, ...] = ()
    """FIELD=VALUE,...: values to try one at a time, compared with the recipe's own."""
    set: tuple[str, ...] = ()
    """FIELD=VALUE: changes that apply to all runs."""
    seeds: int = 1
    """Number of seeds for each configuration."""
    validation_split: float = 0.1
    """Fraction of the training set that is held out."""
    workdir: Path = Path("runs/sweep")
    """Folder for the runs."""

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise ConfigError(
                f"unknown recipe {self.recipe!r}: use one of {', '.join(RECIPES)}"
            )
        if self.seeds < 1:
            raise ConfigError(f"seeds {self.seeds} is too small: it must be at least 1")
        if not self.validation_split:
            raise ConfigError(
                "validation_split 0 holds out no images to compare runs on: use a "
                "larger fraction, such as 0.1"
            )


def main(cfg: Sweep) -> None:
    outcomes = variants.run(trials(cfg), cfg.workdir)
    print(table(outcomes))


def trials(cfg: Sweep) -> dict[str, Config]:
    """Returns the configuration of each run, by name.

    Raises:
      ConfigError: if a field is unknown or a value is invalid.
    """
    fixed: Fields = {}
    for name, values in _axes(cfg.set).items():
        if len(values) > 1:
            raise ConfigError(f"{name} has several values: use --grid or --each")
        fixed[name] = values[0]
    recipe = RECIPES[cfg.recipe][1]
    base = fields.replace(recipe, validation_split=cfg.validation_split)
    axes = _axes(cfg.grid)
    chosen: list[Fields] = [
        dict(zip(axes, values, strict=True))
        for values in itertools.product(*axes.values())
    ]
    for axis in cfg.each:
        name, values = parse(axis)
        chosen += [{name: value} for value in values]
    found = {}
    for values in ({**fixed, **own} for own in chosen):
        for seed in range(base.seed, base.seed + cfg.seeds):
            changed = fields.replace(base, **values, seed=seed)
            found[f"{name_of(cfg.recipe, values)}-seed={seed}"] = changed
    return found


def _axes(texts: Iterable[str]) -> dict[str, list[Any]]:
    """Parses fields with their values; each field may occur only once."""
    found: dict[str, list[Any]] = {}
    for name, values in map(parse, texts):
        if name in found:
            raise ConfigError(f"{name} is given twice: use {name}=VALUE,VALUE")
        found[name] = values
    return found


def parse(axis: str) -> tuple[str, list[Any]]:
    """Parses a field and its values from FIELD=VALUE,VALUE."""
    name, equals, text = axis.partition("=")
    if not equals or name not in _KNOWN:
        raise ConfigError(f"{axis!r} must be FIELD=VALUE,... for a field of the recipe")
    if name in _OWN:
        raise ConfigError(f"{axis!r} is not allowed: the sweep sets {name} itself")
    parts = re.split(r",(?![^\[]*\])", text)  # splits at commas outside of a [list]
    return name, [_typed(name, part, axis) for part in parts]


def _typed(name: str, text: str, axis: str) -> Any:
    """Parses `text` as a value of the field `name`."""
    words = {"true": True, "false": False, "none": None}
    readings: list[Any] = [words.get(text.lower(), text), text]
    with contextlib.suppress(SyntaxError, ValueError):
        readings.append(ast.literal_eval(text))
    for value in readings:
        try:
            return fields.typed(Config(), name, value, axis)
        except ConfigError as failure:
            error = failure
    raise error


def name_of(recipe: str, values: Mapping[str, Any]) -> str:
    """Returns the folder name for a run with these field values."""
    return "-".join([recipe, *(f"{name}={value}" for name, value in values.items())])


def table(outcomes: Mapping[str, variants.Outcome]) -> str:
    """Returns a Markdown table of validation accuracy, loss and training time."""
    groups: dict[str, list[variants.Outcome]] = {}
    for name, outcome in outcomes.items():
        groups.setdefault(re.sub(r"-seed=\d+$", "", name), []).append(outcome)
    rows = []
    for name, runs in groups.items():
        if any(run.diverged or not run.records for run in runs):
            rows.append((-1.0, f"| {name} | diverged | | | {len(runs)} |"))
            continue
        last = [run.records[-1] for run in runs]
        accuracy = statistics.mean(100 * record["val_accuracy"] for record in last)
        loss = statistics.mean(record["val_loss"] for record in last)
        seconds = statistics.mean(
            sum(record["seconds"] for record in run.records) for run in runs
        )
        rows.append(
            (
                accuracy,
                f"| {name} | {accuracy:.2f}"
                f"{spread(100 * record['val_accuracy'] for record in last)} | "
                f"{loss:.4f} | {seconds:.0f} | {len(runs)} |",
            )
        )
    rows.sort(key=lambda row: -row[0])
    head = ["| run | validation % | loss | seconds | seeds |", "|---|---|---|---|---|"]
    return "\n".join([*head, *(text for _, text in rows)])


def spread(values: Iterable[float]) -> str:
    """Returns the standard deviation as text, or "" for a single value."""
    every = list(values)
    return f" ± {statistics.stdev(every):.2f}" if len(every) > 1 else ""


if __name__ == "__main__":
    with command_line("benchmarks.sweep"):
        main(tyro.cli(Sweep, description=__doc__))
