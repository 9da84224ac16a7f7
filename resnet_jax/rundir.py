"""What a run directory says of its run: configuration and classes."""

import json
from pathlib import Path

from resnet_jax import config, config_json
from resnet_jax.errors import ConfigError

CONFIG = "config.json"
CLASSES = "classes.json"


def read_run(run_dir: Path) -> config.Config:
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
        names = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(names, list) or not all(isinstance(x, str) for x in names):
            raise ValueError("not a list of names")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read as the names of classes ({error}): remove it"
        ) from None
    return tuple(names)
