"""What a run records of its epochs: metrics.jsonl, a printed line, TensorBoard."""

import os
from pathlib import Path
from typing import Any

from resnet_jax import files, metrics
from resnet_jax.errors import ConfigError

METRICS = "metrics.jsonl"


class MetricsLog:
    """The metrics of the run in `run_dir`, continued after `step`.

    Lines of later steps, whose checkpoint a killed run never saw, are taken out: they
    will be written again.

    Raises:
      ConfigError: the file cannot be written, or `tensorboard` lacks its package.
    """

    def __init__(self, run_dir: Path, *, step: int, tensorboard: bool) -> None:
        self._writer: Any = None
        if tensorboard:
            self._writer = _make_writer(run_dir / "tensorboard", step + 1)
        self._path = run_dir / METRICS
        kept = [r for r in files.read_jsonl(self._path) if r["step"] <= step]
        lines = "".join(f"{metrics.json_line(record)}\n" for record in kept)
        files.write_text(self._path, lines)

    def write(self, record: dict[str, Any]) -> None:
        """Appends `record`, of an epoch, and prints it."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(metrics.json_line(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(metrics.epoch_line(record), flush=True)
        if self._writer is not None:
            for name in record.keys() - {"epoch", "step"}:
                self._writer.add_scalar(name, record[name], record["step"])

    def close(self) -> None:
        """Flushes what TensorBoard's writer holds."""
        if self._writer is not None:
            self._writer.close()


def _make_writer(directory: Path, purge_step: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ConfigError(
            "--tensorboard needs tensorboardX: pip install tensorboardX"
        ) from None
    return SummaryWriter(str(directory), purge_step=purge_step)
