"""Per-epoch records of a run, written to JSON Lines, TensorBoard and wandb."""

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
_LARGEST = 1e30  # larger than any number that this package writes
Layers = dict[str, dict[str, Any]]  # see diagnostics.layer_statistics
_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def read_metrics(run_dir: Path, *, of_ours: bool = True) -> list[Record]:
    """Returns the records of metrics.jsonl in `run_dir`, or [] if there is no file.

    Args:
      of_ours: whether the fields step and lr are required; files from other programs
        may omit them.

    Raises:
      ConfigError: if a field that docs/training.md lists is missing from a line or has
        an invalid value. The message contains the line number.
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
                    f"{str(value)[:40]}: correct or remove the line"
                )
    return records


class JsonLines:
    """A JSON Lines file that initially contains `records`.

    An existing file is replaced.

    Raises:
      ConfigError: if the file cannot be written.
    """

    def __init__(self, path: Path, records: list[Record]) -> None:
        text = "".join(f"{metrics.json_line(r)}\n" for r in records)
        files.write_text(path, text)
        self._path, self._size = path, len(text.encode())
        self._unwritten = b""

    def write(self, record: Record) -> None:
        """Appends `record` and syncs the file to disk.

        If the disk is full or fails, the record is kept in memory and written later.

        Raises:
          ConfigError: if writing fails for a reason that is not temporary, such as the
            file's permissions.
        """
        self._unwritten += metrics.json_line(record).encode() + b"\n"
        self.flush()

    def flush(self) -> str | None:
        """Writes pending lines; returns the reason for a temporary failure, or None."""
        if not self._unwritten:
            return None
        try:
            # The mode "r+" prevents a removed file from being recreated empty.
            with self._path.open("r+b", buffering=0) as file:
                file.truncate(self._size)  # removes what a failed attempt wrote
                file.seek(self._size)
                left = self._unwritten
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in _PASSING:
                raise ConfigError(
                    f"{self._path} cannot be written ({error.strerror}), so the run "
                    "ends here: make it writable, or choose another --workdir"
                ) from None
            log.warning(
                "%s: %s; the line will be written later", self._path, error.strerror
            )
            return str(error.strerror)
        self._size += len(self._unwritten)
        self._unwritten = b""
        return None


def last_line(run_dir: Path, records: list[Record], step: int) -> list[Record]:
    """Returns the record of `step` if it was written after the step's checkpoint.

    Args:
      run_dir: the run directory.
      records: the records in the checkpoint.
      step: the step of the checkpoint.

    Returns:
      A list of at most one record.
    """
    try:
        lines = read_metrics(run_dir)
    except ConfigError as error:
        log.warning("%s; the file will be rewritten from the checkpoint", error)
        return []
    known = {record["step"] for record in records}
    return [r for r in lines if r["step"] == step and r["step"] not in known]


class Logs:
    """Writes the records of the run in `run_dir`, continuing after `step`.

    Records of later steps, which the run wrote before it was killed, are removed
    because the resumed run will write them again.

    Args:
      records: the records so far, from the checkpoint and last_line.
      step: the step of the checkpoint.
      tensorboard: whether to write TensorBoard event files as well.
      layers: whether to write layers.jsonl as well.
      wandb: a Weights & Biases log that also receives the records, or None.

    Raises:
      ConfigError: if a file cannot be written, or if the package that `tensorboard`
        needs is missing.
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
        self.exit_code = 0  # exit code of the command, for wandb
        self._dir, self._step = run_dir, step
        self.records = list(records)
        self._lines = JsonLines(run_dir / METRICS, self.records)
        self._layers = self._open_layers() if layers else None

    def write(self, record: Record) -> None:
        """Appends the record of an epoch."""
        self.records.append(record)
        self._lines.write(record)
        if self._writer is not None:
            for name in sorted(record.keys() - {"epoch", "step"}):
                if isinstance(record[name], float):  # skips lists of per-seed values
                    self._writer.add_scalar(name, record[name], record["step"])
            self._writer.flush()
        if self._wandb is not None:
            self._wandb.write(record)

    def begin(self) -> None:
        """Starts the Weights & Biases run, if requested."""
        if self._wandb is not None:
            self._wandb.begin()

    @property
    def last_step(self) -> int | None:
        """The step of the last record, or None if there are no records."""
        return self.records[-1]["step"] if self.records else None

    def flush(self) -> str | None:
        """Flushes every file; returns the reason for the first failure, or None."""
        logs = [self._lines] if self._layers is None else [self._layers, self._lines]
        failures = [failure for each in logs if (failure := each.flush())]
        return failures[0] if failures else None

    def _open_layers(self) -> JsonLines:
        path = self._dir / LAYERS
        kept: list[Record] = []
        for record in files.read_jsonl(path) if self._step else []:
            if type(record.get("step")) is not int:
                raise ConfigError(f"{path} has a line without a step: remove the line")
            # layers.jsonl is written before metrics.jsonl. A record that metrics.jsonl
            # lacks will be written to both files again.
            if record["step"] <= (self.last_step or 0):
                kept.append(record)
        return JsonLines(path, kept)

    def write_layers(self, place: dict[str, int], layers: Layers | None) -> None:
        """Appends `layers`, if given, with the epoch and the step from `place`."""
        if self._layers is not None and layers is not None:
            self._layers.write({**place, "layers": layers})

    def close(self) -> None:
        """Closes the TensorBoard file and the Weights & Biases run."""
        if self._writer is not None:
            self._writer.close()
        if self._wandb is not None:
            self._wandb.close(self.exit_code)


def open_logs(cfg: Config, run_dir: Path, records: list[Record], step: int) -> Logs:
    """Returns the Logs specified by `cfg`, continuing after `step`.

    Raises:
      ConfigError: for the reasons listed in Logs, or if the package that --wandb needs
        is missing.
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
    """Returns a TensorBoard writer that purges the events of steps after `step`."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ConfigError(
            "--tensorboard needs tensorboardX: pip install -e '.[tensorboard]'"
        ) from None
    return SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)
