"""What a run records of its epochs: JSON lines, a printed line, TensorBoard."""

import dataclasses
import errno
import logging
import os
from pathlib import Path
from typing import Any

from resnet_jax import files
from resnet_jax.config import Config
from resnet_jax.devices import processes
from resnet_jax.errors import ConfigError
from resnet_jax.run.directory import LAYERS, METRICS
from resnet_jax.run.wandb_log import WandbLog
from resnet_jax.training import metrics

log = logging.getLogger(__name__)

Record = dict[str, Any]
_FORM = (
    *("epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy"),
    *("seconds", "images_per_second"),
)
_VALIDATION = ("val_loss", "val_accuracy")
_LARGEST = 1e30  # no number of ours is larger, and none is NaN
Layers = dict[str, dict[str, Any]]  # as diagnostics.layer_statistics has them
_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def read_metrics(run_dir: Path, *, of_ours: bool = True) -> list[Record]:
    """The lines of metrics.jsonl in `run_dir`; none where there is no such file.

    Args:
      of_ours: they have step and lr, too; other programs' need not.

    Raises:
      ConfigError: a line has not the form that docs/training.md gives; it is named.
    """
    records = files.read_jsonl(run_dir / METRICS)
    names = [*_FORM, *(["step", "lr"] if of_ours else [])]
    names += [name for name in _VALIDATION if records and name in records[0]]
    for number, record in enumerate(records, start=1):
        for name in names:
            value: Any = record.get(name)
            is_count = name in ("epoch", "step")
            fits = type(value) is int if is_count else type(value) in (int, float)
            if not fits or not -_LARGEST < value < _LARGEST:
                raise ConfigError(
                    f"{run_dir / METRICS}, line {number}: {name} is "
                    f"{str(value)[:40]}: put it right, or remove the line"
                )
    return records


class JsonLines:
    """A file of JSON lines, begun afresh with `records`.

    Raises:
      ConfigError: the file cannot be written.
    """

    def __init__(self, path: Path, records: list[Record]) -> None:
        text = "".join(f"{metrics.json_line(r)}\n" for r in records)
        files.write_text(path, text)
        self._path, self._size = path, len(text.encode())
        self._unwritten = b""

    def write(self, record: Record) -> None:
        """Appends `record`; it is on the disk on return, unless that is full.

        Raises:
          ConfigError: the file cannot be written, for a reason that will not pass.
        """
        self._unwritten += metrics.json_line(record).encode() + b"\n"
        self.flush()

    def flush(self) -> str | None:
        """Writes what a full disk refused; the reason where it refuses still."""
        if not self._unwritten:
            return None
        try:
            # "r+": a file that has vanished is not to come back as an empty one.
            with self._path.open("r+b", buffering=0) as file:
                file.truncate(self._size)  # what a full disk took of the last try
                file.seek(self._size)
                left = self._unwritten
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in _PASSING:
                raise ConfigError(
                    f"{self._path} cannot be written ({error.strerror}): the run ends "
                    "here; put it right, or choose another --workdir"
                ) from None
            log.warning("%s: %s; the line is kept back", self._path, error.strerror)
            return str(error.strerror)
        self._size += len(self._unwritten)
        self._unwritten = b""
        return None


def last_line(run_dir: Path, records: list[Record], step: int) -> list[Record]:
    """The line of the checkpoint's own step, where it was written after that."""
    try:
        lines = read_metrics(run_dir)
    except ConfigError as error:
        log.warning("%s; the file is written anew from the checkpoint", error)
        return []
    known = {record["step"] for record in records}
    return [r for r in lines if r["step"] == step and r["step"] not in known]


class Logs:
    """What the run in `run_dir` records of its epochs, continued after `step`.

    Lines of later steps, whose checkpoint a killed run never saw, are taken out: they
    will be written again.

    Args:
      records: the lines so far, as the checkpoint and last_line have them.
      layers: whether there is to be a layers.jsonl as well.
      wandb: where the lines go as well.

    Raises:
      ConfigError: the file cannot be written, or `tensorboard` lacks its package.
    """

    def __init__(
        self,
        run_dir: Path,
        records: list[Record],
        *,
        step: int,
        tensorboard: bool,
        layers: bool,
        wandb: WandbLog | None = None,
    ) -> None:
        self._writer = _make_writer(run_dir, step) if tensorboard else None
        self._wandb = wandb
        self._dir, self._step = run_dir, step
        self.records = list(records)
        self._lines = JsonLines(run_dir / METRICS, self.records)
        self._layers = self._open_layers() if layers else None

    def write(self, record: Record) -> None:
        """Appends `record`, of an epoch."""
        self.records.append(record)
        self._lines.write(record)
        if self._writer is not None:
            for name in sorted(record.keys() - {"epoch", "step"}):
                if isinstance(record[name], float):  # not the values behind a mean
                    self._writer.add_scalar(name, record[name], record["step"])
            self._writer.flush()
        if self._wandb is not None:
            self._wandb.write(record)

    def begin(self) -> None:
        """Says elsewhere, too, that there is something to do."""
        if self._wandb is not None:
            self._wandb.begin()

    @property
    def last_step(self) -> int | None:
        """The step of the last line."""
        return self.records[-1]["step"] if self.records else None

    def flush(self) -> str | None:
        """As JsonLines.flush, of every file."""
        logs = [self._lines] if self._layers is None else [self._layers, self._lines]
        failures = [failure for each in logs if (failure := each.flush())]
        return failures[0] if failures else None

    def _open_layers(self) -> JsonLines:
        path = self._dir / LAYERS
        kept: list[Record] = []
        for record in files.read_jsonl(path) if self._step else []:
            if type(record.get("step")) is not int:
                raise ConfigError(f"{path} has a line without its step: remove it")
            # The line of metrics comes after: where it is missing, both are written.
            if record["step"] <= (self.last_step or 0):
                kept.append(record)
        return JsonLines(path, kept)

    def write_layers(self, place: dict[str, int], layers: Layers | None) -> None:
        """Appends the line of `layers`, if there are any, at epoch and step `place`."""
        if self._layers is not None and layers is not None:
            self._layers.write({**place, "layers": layers})

    def close(self) -> None:
        """Closes what TensorBoard reads, and what is sent elsewhere."""
        if self._writer is not None:
            self._writer.close()
        if self._wandb is not None:
            self._wandb.close()


def open_logs(cfg: Config, run_dir: Path, records: list[Record], step: int) -> Logs:
    """The Logs that `cfg` asks for, continued after `step`.

    Raises:
      ConfigError: as Logs, or --wandb lacks its package.
    """
    wandb = None
    if cfg.run.wandb is not None and processes.is_first():
        values, is_resumed = dataclasses.asdict(cfg), step > 0
        wandb = WandbLog(run_dir, cfg.run.wandb, values, is_resumed=is_resumed)
    return Logs(
        *(run_dir, records),
        step=step,
        tensorboard=cfg.run.tensorboard,
        layers=cfg.run.log_gradients,
        wandb=wandb,
    )


def _make_writer(run_dir: Path, step: int) -> Any:
    """TensorBoard's writer; what a killed run wrote of later steps is not shown."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ConfigError(
            "--tensorboard needs tensorboardX: pip install -e '.[tensorboard]'"
        ) from None
    return SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)
