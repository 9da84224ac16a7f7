"""The run directory: config.json, metrics.jsonl, checkpoints; a resume is exact."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np

from resnet_jax import config_json, data, files, metrics, numerics
from resnet_jax.config import Config
from resnet_jax.errors import (
    NonFiniteLossError,
    StoppedError,
)
from resnet_jax.lock import claim
from resnet_jax.logs import LAYERS, METRICS, Logs
from resnet_jax.profiling import Trace
from resnet_jax.progress import Progress
from resnet_jax.rundir import (
    CHECKPOINTS,
    CLASSES,
    CONFIG,
    check_resumable,
    newest_step,
)
from resnet_jax.saving import Saver
from resnet_jax.signals import Interrupted, Signals

log = logging.getLogger(__name__)


class Run:
    """A run in progress, from open_run; a context that finishes the last save.

    Until the first step, and in evaluations, a signal ends it at once (Interrupted);
    elsewhere what is being done is finished and saved first.
    """

    def __init__(self, cfg: Config, run_dir: Path, signals: Signals) -> None:
        self.dir = run_dir
        self._cfg = cfg
        self._signals = signals
        self._written: list[Path] = []
        self._progress = Progress(self._raise_non_finite)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.callback(self._clean)
            self._preparing = stack.enter_context(contextlib.ExitStack())
            self._preparing.enter_context(self._signals.at_once())
            self._saver = Saver(
                self._cfg, self.dir, self._progress, self._raise_non_finite
            )
            stack.callback(self._saver.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _clean(self) -> None:
        """A run that failed before it saved anything leaves nothing."""
        if newest_step(self.dir) is not None:
            return
        with contextlib.suppress(OSError):  # other files may lie there
            for path in self._written:
                path.unlink(missing_ok=True)
            # Beside the metrics of a killed run it says that they are one's.
            if not (self.dir / METRICS).exists():
                (self.dir / CHECKPOINTS).rmdir()

    def note_data(self, train: data.Dataset, test: data.Dataset) -> None:
        """Takes down what the run is of; a resume wants the same."""
        self._classes = train.class_names
        self._saver.note_data(train, test)

    def restore(self, state: Any) -> Any:
        """The state of the newest checkpoint, or `state` itself where there is none.

        Raises:
          CheckpointError: no checkpoint fits `state` and can be read.
          ConfigError: the run was begun on other data.
        """
        state, records = self._saver.restore(state)
        self._written = [self.dir / CONFIG, self.dir / CLASSES, self.dir / METRICS]
        self._log = Logs(
            self.dir,
            records,
            step=self._progress.step,
            tensorboard=self._cfg.tensorboard,
        )
        self._stack.callback(self._log.close)
        files.write_text(self.dir / CONFIG, config_json.to_json(self._cfg))
        files.write_json(self.dir / CLASSES, list(self._classes))
        return state

    def log_layers(self, state: Any, measure: Callable[[Any], dict[str, Any]]) -> None:
        """Writes measure(state) to layers.jsonl, at step 0 and after each epoch."""
        self._written.append(self.dir / LAYERS)
        self._log.add_layers(measure)
        if not self.resumed:
            self._log.write_layers({"epoch": 0, "step": 0}, self._log.measure(state))

    @property
    def resumed(self) -> bool:
        """Whether restore found a checkpoint."""
        return self._progress.step > 0

    def is_finished(self, steps_per_epoch: int, total_steps: int) -> bool:
        """Whether all is done; says so, or where the run goes on."""
        progress = self._progress
        progress.steps_per_epoch, progress.total_steps = steps_per_epoch, total_steps
        self._forget_whole_epoch()
        step = progress.step
        if step >= total_steps and not self._unscored:
            print(f"{self.dir} is finished: {step} of {total_steps} steps done")
            return True
        if step:
            print(f"{self.dir} goes on after step {step} of {total_steps}")
        return False

    @property
    def _unscored(self) -> bool:
        """Whether an epoch's steps are done and its line is not written."""
        progress = self._progress
        if not 0 < progress.step <= progress.total_steps:
            return False
        return progress.step != self._log.last_step and progress.at_epoch_end

    def _forget_whole_epoch(self) -> None:
        """Begins the sums of the next epoch, where the line of this one is written."""
        progress = self._progress
        if not self._unscored and not progress.step % progress.steps_per_epoch:
            progress.sums = None

    def epochs(
        self, compile_seconds: float, schedule: Callable[[int], Any]
    ) -> Iterator[tuple[int, int]]:
        """(epoch, its first batch still to do), from 0, until all steps are done.

        An epoch that was stopped in its evaluation has no batch to do.

        Args:
          compile_seconds: what compiling took, for the first line of metrics.
          schedule: of the step from 0, its learning rate.
        """
        self._schedule = schedule
        self._compile_seconds = compile_seconds
        progress = self._progress
        self._trace = Trace(self.dir / "profile", progress.step)
        self._stack.callback(self._trace.close)
        self._preparing.close()
        self._saver.begin_clock()
        while progress.step < progress.total_steps or self._unscored:
            self._epoch = (progress.step - self._unscored) // progress.steps_per_epoch
            yield self._epoch, progress.step - self._epoch * progress.steps_per_epoch

    def batches(self, batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """`batches` of one epoch, up to the run's last step, with a progress bar."""
        return self._progress.batches(batches, self._epoch)

    def step(self, state: Any, sums: metrics.Sums) -> None:
        """Takes note of one training step and, where a signal came, saves and stops."""
        self._progress.add(sums)
        step = self._progress.step
        if self._cfg.profile:
            self._trace.step(step, state)
        if step % self._cfg.log_every_steps == 0:
            self._progress.collect()
        if self._progress.at_epoch_end:
            return
        if self._signals.received:
            self._save(state)
            raise Interrupted
        if self._saver.is_due(step):
            self._save(state)

    def _raise_non_finite(self, what: str, step: int) -> NoReturn:
        self._saver.wait()  # for the last good one may be on its way
        lr = float(self._schedule(step - 1))
        raise NonFiniteLossError(
            f"{self.dir}: {what} at step {step}, lr {lr:g}: try a smaller "
            "--lr in another --workdir, or --debug-nans to see where "
            f"(last good checkpoint here: {newest_step(self.dir)})"
        )

    def end_epoch(
        self,
        state: Any,
        score: Callable[[Any], dict[str, metrics.Sums]],
    ) -> None:
        """Scores `state`, writes the epoch's line, then its checkpoint.

        Args:
          score: of the state, the sums "test" and perhaps "val".

        Raises:
          NonFiniteLossError: a score is not finite; nothing is written.
          Interrupted: a signal came. In the middle of an evaluation the state is
            saved, and the same command evaluates it.
          CheckpointError: the run's last checkpoint could not be saved.
        """
        step = self._progress.step
        place = {"epoch": self._progress.epochs_begun, "step": step}
        try:
            with self._signals.at_once():
                sums = score(state)
                layers = self._log.measure(state)
        except Interrupted:
            self._save(state)
            raise
        scored = {}
        for part, found in sums.items():
            scored |= metrics.means(found, part)
        for name, value in scored.items():
            if not np.isfinite(value):
                self._raise_non_finite(f"{name} is {value}", step)
        record = {
            **place,
            "lr": float(self._schedule(step - 1)),
            **metrics.means(self._progress.sums, "train"),
            **scored,
            **self._progress.times,
            "compile_seconds": self._compile_seconds,
        }
        self._compile_seconds = 0.0  # of the epochs to come
        self._log.write_layers(place, layers)
        self._log.write(record)
        last = step == self._progress.total_steps
        self._save(state, last=last)
        self._forget_whole_epoch()
        if self._signals.received and not last:
            raise Interrupted

    def _save(self, state: Any, *, last: bool = False) -> None:
        last = last or self._signals.received is not None
        self._saver.save(state, self._log, last=last)

    @property
    def whereabouts(self) -> str:
        """What there is to go on from, for the message of a run that stops."""
        step = newest_step(self.dir)
        if step is None:
            return " before its first step; the same command begins it"
        total = self._progress.total_steps
        saved = f"{step} of {total}" if total else f"{step}"
        return f", saved at step {saved}; the same command goes on from there"


@contextlib.contextmanager
def open_run(cfg: Config) -> Iterator[Run]:
    """The run in cfg.workdir, begun or to be resumed, computed as cfg.numerics says.

    Raises:
      ConfigError: the directory cannot be written, is in use, holds something else, or
        holds a run of another configuration.
    """
    run_dir = Path(cfg.workdir)
    with (
        claim(run_dir),
        numerics.configured(**cfg.numerics),
        Signals() as signals,
    ):
        run = Run(cfg, run_dir, signals)
        try:
            check_resumable(cfg, run_dir)
            with run:
                yield run
        except Interrupted:
            name = signals.received.name if signals.received else "a signal"
            raise StoppedError(
                f"{run_dir}: stopped by {name}{run.whereabouts}"
            ) from None
