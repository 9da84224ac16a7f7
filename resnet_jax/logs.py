"""What a run records of its epochs: JSON lines, a printed line, TensorBoard."""

import os
from pathlib import Path
from typing import Any

from resnet_jax import files, metrics
from resnet_jax.errors import ConfigError

METRICS = "metrics.jsonl"
LAYERS = "layers.jsonl"


class JsonLines:
    """A file of JSON lines, each with its "step", continued after `step`.

    Lines of later steps, whose checkpoint a killed run never saw, are taken out: they
    will be written again.

    Raises:
      ConfigError: the file cannot be written.
    """

    def __init__(self, path: Path, *, step: int) -> None:
        self._path = path
        kept = [r for r in files.read_jsonl(path) if r["step"] <= step]
        files.write_text(path, "".join(f"{metrics.json_line(r)}\n" for r in kept))

    def write(self, record: dict[str, Any]) -> None:
        """Appends `record`; it is on the disk on return."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(metrics.json_line(record) + "\n")
            file.flush()
            os.fsync(file.fileno())


class MetricsLog:
    """The metrics of the run in `run_dir`, continued after `step` as JsonLines are.

    Raises:
      ConfigError: the file cannot be written, or `tensorboard` lacks its package.
    """

    def __init__(self, run_dir: Path, *, step: int, tensorboard: bool) -> None:
        self._writer: Any = None
        if tensorboard:
            self._writer = _make_writer(run_dir / "tensorboard", step + 1)
        self._lines = JsonLines(run_dir / METRICS, step=step)

    def write(self, record: dict[str, Any]) -> None:
        """Appends `record`, of an epoch, and prints it."""
        self._lines.write(record)
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
