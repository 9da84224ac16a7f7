"""A run's epochs in Weights & Biases, whose failures are none of the run's."""

import logging
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resnet_jax import files
from resnet_jax.errors import ConfigError, StoppedError, first_line
from resnet_jax.run.directory import WANDB

log = logging.getLogger(__name__)

_START = 30.0  # seconds to reach the server
_END = 60.0  # seconds to upload what is left; `wandb sync` does it later


class WandbLog:
    """The lines of metrics.jsonl, by epoch, as a run of the project `project`.

    A run that goes on is the same one there. Where wandb fails, as without a network or
    a key, there is one warning, and nothing more is sent.

    Args:
      config: the configuration, for JSON.
      is_resumed: whether the run in `run_dir` was begun before.

    Raises:
      ConfigError: the package is not installed.
    """

    def __init__(
        self, run_dir: Path, project: str, config: dict[str, Any], *, is_resumed: bool
    ) -> None:
        try:
            import wandb
        except ImportError:
            raise ConfigError(
                "--wandb needs wandb: pip install -e '.[wandb]'"
            ) from None
        self._wandb, self._run = wandb, None
        self._dir, self._project, self._config = run_dir, project, config
        self._is_resumed = is_resumed

    def begin(self) -> None:
        """Begins the run there, or goes on with it."""
        self._safely(self._begin)

    def write(self, record: dict[str, Any]) -> None:
        """Sends the numbers of a line; of several seeds, not those behind a mean."""
        if self._run is not None:
            numbers = {k: v for k, v in record.items() if not isinstance(v, list)}
            self._safely(lambda: self._run.log(numbers))

    def close(self, exit_code: int = 0) -> None:
        """Waits for what is being sent, a minute at most.

        Args:
          exit_code: of the command. 0 is a finished run there, another a failed one,
            and 75, after a signal, a preempted one, which the same command resumes.
        """
        run, self._run = self._run, None
        if run is None:
            return
        if exit_code == StoppedError.exit_code:
            self._safely(run.mark_preempting)
        self._safely(lambda: run.finish(exit_code=exit_code))

    def _begin(self) -> None:
        wandb, run_dir = self._wandb, self._dir.absolute()
        run_dir.mkdir(parents=True, exist_ok=True)
        # Nobody is there to be asked for a key, or it takes long; what is printed is
        # printed by the run itself.
        known = {
            "console": "off",
            "init_timeout": _START,
            "login_timeout": _START,
            "finish_timeout": _END,
        }
        fields = getattr(wandb.Settings, "model_fields", known)  # by version
        settings = {name: value for name, value in known.items() if name in fields}
        run = wandb.init(
            project=self._project,
            name=run_dir.name,
            id=self._id(),
            resume="allow",
            dir=str(run_dir),
            settings=wandb.Settings(**settings),
        )
        self._run = run
        # By epoch, and not by wandb's own count, which a line that is written again
        # after a kill would be behind.
        run.define_metric("*", step_metric="epoch")
        run.config.update(self._config, allow_val_change=True)

    def _id(self) -> str:
        """That of the run that is resumed, else a new one, which is kept."""
        path = self._dir / WANDB
        if self._is_resumed and path.exists():
            found = files.read_json(path)
            if isinstance(found, dict) and isinstance(found.get("id"), str):
                return str(found["id"])
        new = secrets.token_hex(4)
        files.write_json(path, {"project": self._project, "id": new})
        return new

    def _safely(self, function: Callable[[], Any]) -> None:
        try:
            function()
        except Exception as error:  # of every kind, and of none that matters here
            self._run = None
            log.warning("wandb: %s; the run goes on without it", first_line(error))
