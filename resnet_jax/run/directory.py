"""What a run directory says of its run, and whether another may go on with it."""

import dataclasses
from pathlib import Path
from typing import Any

from resnet_jax import files
from resnet_jax.config import Config
from resnet_jax.errors import ConfigError
from resnet_jax.run import config_json
from resnet_jax.run.logs import METRICS

CONFIG = "config.json"
CLASSES = "classes.json"
CHECKPOINTS = "checkpoints"  # the folder of them

# Fields of one invocation, not of the run: a resume may have them different.
TRANSIENT = frozenset(
    {
        *("data_dir", "workdir", "override", "profile", "summary"),
        *("rebuild_data", "debug_nans", "devices", "platform", "distributed"),
        *("coordinator", "num_processes", "process_id", "stream", "workers"),
    }
)
# Fields that --override lets through: how far a run goes (a cosine stretches with it)
# and what it shows and keeps.
OVERRIDABLE = frozenset(
    {
        "epochs",
        "max_steps",
        "keep",
        "save_every_steps",
        "save_every_minutes",
        "log_every_steps",
        "log_gradients",
        "tensorboard",
        "eval_batch_size",
        "steps_per_call",
    }
)


def read_run(run_dir: Path) -> Config:
    """The configuration of the run in `run_dir`.

    Raises:
      ConfigError: there is no run, or only half of one.
    """
    if not run_dir.is_dir():
        raise ConfigError(f"no run at {run_dir}: there is no such directory")
    if not (run_dir / CONFIG).is_file():
        raise ConfigError(f"{run_dir} is no run: it has no {CONFIG}")
    return config_json.read_config(run_dir / CONFIG)


def read_classes(run_dir: Path) -> tuple[str, ...] | None:
    """The names of the classes of the run in `run_dir`, where it has them.

    Raises:
      ConfigError: the file is there and is not a list of names.
    """
    path = run_dir / CLASSES
    if not path.exists():
        return None
    try:
        names = files.read_json(path)
        if not isinstance(names, list) or not all(isinstance(x, str) for x in names):
            raise ValueError("not a list of names")
    except ValueError as error:
        raise ConfigError(
            f"{path} cannot be read as the names of classes ({error}): remove it"
        ) from None
    return tuple(names)


def newest_step(run_dir: Path) -> int | None:
    """The step of the newest whole checkpoint in `run_dir`, by its name."""
    names = [path.name for path in run_dir.glob(f"{CHECKPOINTS}/*")]
    return max((int(name) for name in names if name.isdecimal()), default=None)


def check_resumable(cfg: Config, run_dir: Path) -> None:
    """Says what `cfg` overrides of the run in `run_dir`, if there is one.

    Raises:
      ConfigError: what lies there is not a run of `cfg`.
    """
    # A run that was killed before its first checkpoint has the folder for it.
    if not (run_dir / CHECKPOINTS).is_dir() and (run_dir / METRICS).is_file():
        if (run_dir / METRICS).stat().st_size:
            raise ConfigError(
                f"{run_dir} holds the metrics of a run and none of its checkpoints: "
                "choose another --workdir, or remove it"
            )
    if newest_step(run_dir) is None:
        return
    old = config_json.read_config(run_dir / CONFIG)
    changed = differences(old, cfg)
    if not changed:
        return
    shown = ", ".join(f"{k} {a} -> {b}" for k, (a, b) in changed.items())
    if not cfg.override or changed.keys() - OVERRIDABLE:
        allowed = not changed.keys() - OVERRIDABLE
        way = "--override to go on with it, or " if allowed else ""
        raise ConfigError(
            f"{run_dir} holds a run of another configuration ({shown}): "
            f"{way}another --workdir for a new run"
        )
    print(f"{run_dir}: configuration overridden: {shown}")


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """{field: (old, new)} of the fields that belong to the run and differ."""
    pairs = {
        field.name: (getattr(old, field.name), getattr(new, field.name))
        for field in dataclasses.fields(Config)
        if field.name not in TRANSIENT
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
