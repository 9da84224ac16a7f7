"""Logs to Weights & Biases; failures do not affect the run."""

import logging
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resnet_jax import files
from resnet_jax.errors import ConfigError, StoppedError, first_line
from resnet_jax.run.directory import WANDB

log = logging.getLogger(__name__)

_START = 30.0  # limit for reaching the server, in seconds
_END = 60.0  # limit for the final upload, in seconds; `wandb sync` can upload the rest


class WandbLog:
    """Logs the per-epoch records of metrics.jsonl to a wandb run in `project`.

    A resumed run continues the same wandb run. If wandb fails, for example because
    there is no network or no API key, one warning is logged and nothing more is sent.

    Args:
      run_dir: the run directory, whose name becomes the name of the wandb run.
      project: the name of the project.
      config: the configuration as JSON values.
      is_resumed: whether the run in `run_dir` is being resumed.

    Raises:
      ConfigError: if the wandb package is not installed.
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
        """Starts or continues the wandb run."""
        self._safely(self._begin)

    def write(self, record: dict[str, Any]) -> None:
        """Sends the numbers in a record, but not the lists of per-seed values."""
        if self._run is not None:
            numbers = {k: v for k, v in record.items() if not isinstance(v, list)}
            self._safely(lambda: self._run.log(numbers))

    def close(self, exit_code: int = 0) -> None:
        """Waits up to one minute for the upload and ends the wandb run.

        Args:
          exit_code: the exit code of the command. 0 marks the run as finished, 75
            (stopped by a signal, to be resumed) as preempted, and any other code as
            failed.
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
        # Time limits are set because there may be nobody to enter an API key. Console
        # capture is off because the run prints its own output.
        known = {
            "console": "off",
            "init_timeout": _START,
            "login_timeout": _START,
            "finish_timeout": _END,
        }
        fields = getattr(wandb.Settings, "model_fields", known)  # varies by version
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
        # Plot values by epoch: after a run is killed and resumed, wandb's own step
        # count would be ahead of the records that are written again.
        run.define_metric("*", step_metric="epoch")
        run.config.update(self._config, allow_val_change=True)

    def _id(self) -> str:
        """Returns the id of the resumed run, or saves and returns a new one."""
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
        except Exception as error:  # wandb raises many exception types
            self._run = None
            log.warning("wandb: %s; the run continues without it", first_line(error))
