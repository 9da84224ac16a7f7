"""Sequentially trains variants of a configuration that differ in a few fields."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from resnet_jax import fields, files
from resnet_jax.config import Config
from resnet_jax.data import cifar
from resnet_jax.errors import ConfigError, NonFiniteLossError
from resnet_jax.report import page
from resnet_jax.run.directory import LAYERS, METRICS

_DIVERGED = "diverged.json"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Options shared by all experiments."""

    max_train_samples: int | None = None
    """Number of training images; None uses all."""
    max_test_samples: int | None = None
    """Number of test images to evaluate on after each epoch; None uses all."""
    seed: int = 0
    """Seed for all runs."""
    data_dir: str | None = None
    """Data directory, with the same meaning as in train.py."""

    def config(self, **values: Any) -> Config:
        """Returns the shared configuration with the fields in `values` changed."""
        return fields.replace(
            Config(),
            optimizer="sgd",
            max_train_samples=self.max_train_samples,
            max_test_samples=self.max_test_samples,
            seed=self.seed,
            data_dir=self.data_dir,
            **values,
        )

    @property
    def setting(self) -> str:
        """Sentences that state how many images the runs use, and which seed."""
        train, test = (
            f"{size:,} of {cifar.CIFAR10.num_examples[part]:,}" if size else "all"
            for part, size in (
                ("train", self.max_train_samples),
                ("test", self.max_test_samples),
            )
        )
        return (
            f"The runs use {train} training images and {test} test images of CIFAR-10. "
            f"There is one run of each network, with seed {self.seed}."
        )


class Outcome(NamedTuple):
    """The result of one variant's run."""

    cfg: Config
    records: list[dict[str, Any]]  # records of metrics.jsonl
    layers: list[dict[str, Any]]  # records of layers.jsonl
    diverged: str | None  # error message if the loss became non-finite, else None


def run(variants: Mapping[str, Config], root: Path) -> dict[str, Outcome]:
    """Trains each variant in root/NAME, or reads the result of an earlier call.

    A run whose loss becomes NaN or infinite counts as diverged, not as an error. A
    signal ends the call with a StoppedError; repeating the call resumes the runs.
    """
    from resnet_jax.commands import train

    outcomes = {}
    bar = tqdm(variants.items(), unit="run", disable=None)
    for name, cfg in bar:
        bar.set_description(name)
        run_dir = root / name
        cfg = fields.replace(cfg, workdir=str(run_dir), keep_checkpoints=1)
        said = _diverged(run_dir)
        if said is not None and said["config"] != _plain(cfg):
            raise ConfigError(
                f"{run_dir} contains a diverged run with another configuration: "
                "choose another --workdir, or remove the directory"
            )
        if said is None:
            print(f"-- {name}", flush=True)
            try:
                train.main(cfg)
            except NonFiniteLossError as error:
                run_dir.mkdir(parents=True, exist_ok=True)
                said = {"message": str(error), "config": _plain(cfg)}
                files.write_json(run_dir / _DIVERGED, said)
        outcomes[name] = _read(cfg, run_dir)
    return outcomes


def _read(cfg: Config, run_dir: Path) -> Outcome:
    said = _diverged(run_dir)
    records, layers = (files.read_jsonl(run_dir / name) for name in (METRICS, LAYERS))
    return Outcome(cfg, records, layers, said and said["message"])


def _diverged(run_dir: Path) -> dict[str, Any] | None:
    """Returns the saved error and configuration if the run diverged, else None."""
    path = run_dir / _DIVERGED
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def _plain(cfg: Config) -> dict[str, Any]:
    """Returns `cfg` as a dictionary of JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(cfg)))


def table(
    outcomes: Mapping[str, Outcome],
    columns: Mapping[str, Callable[[Outcome], str]] | None = None,
) -> page.Table:
    """Returns a table of each variant's final metrics and the additional `columns`."""
    columns = columns or {}
    rows = []
    for name, outcome in outcomes.items():
        more = [show(outcome) for show in columns.values()]
        if not outcome.records:
            figures = ["diverged" if outcome.diverged else "-", "", "", ""]
        else:
            last = outcome.records[-1]
            figures = [
                str(last["step"]) + (", then diverged" if outcome.diverged else ""),
                f"{last['train_loss']:.4f}",
                f"{100 * last['train_accuracy']:.2f}",
                f"{100 * last['test_accuracy']:.2f}",
            ]
        rows.append([name, *figures, *more])
    header = ["run", "steps", "train loss", "train %", "test %", *columns]
    return page.Table(header, rows, "Final metrics of each run")
