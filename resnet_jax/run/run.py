"""The run directory: config.json, metrics.jsonl, checkpoints; a resume is exact."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn, Self

import jax
import numpy as np

from resnet_jax import data, files
from resnet_jax.config import Config
from resnet_jax.data import loader as feed
from resnet_jax.devices import processes
from resnet_jax.devices.mesh import local, make_mesh
from resnet_jax.errors import NonFiniteLossError
from resnet_jax.run import config_json
from resnet_jax.run.directory import CHECKPOINTS, CLASSES, CONFIG, newest_step
from resnet_jax.run.logs import LAYERS, METRICS, Logs
from resnet_jax.run.profiling import Trace
from resnet_jax.run.progress import Progress
from resnet_jax.run.saving import Saver
from resnet_jax.run.signals import Interrupted, Signals
from resnet_jax.training import metrics, seeds

log = logging.getLogger(__name__)


class Run:
    """A run in progress, from open_run; a context that finishes the last save.

    Until the first step, and in evaluations, a signal ends it at once (Interrupted);
    elsewhere what is being done is finished and saved first. Several processes, once
    they have met, stop together where all ask for signals.
    """

    def __init__(self, cfg: Config, run_dir: Path, signals: Signals) -> None:
        self.dir = run_dir
        self.mesh = make_mesh(cfg.devices, cfg.platform)
        self.local_bn = self.mesh if cfg.bn_scope == "local" else None
        self.each = seeds.make_each(cfg.num_seeds, self.mesh)
        self._cfg = cfg
        self._signals = signals
        self._written: list[Path] = []
        self._progress = Progress(self._raise_non_finite, cfg.num_seeds)
        # Whether the other processes, if there are any, compute and do not listen.
        self.is_training = False
        self._begun = time.monotonic()
        self._startup_seconds: float | None = None  # to the end of the first step

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.callback(self._clean)
            self._preparing = stack.enter_context(contextlib.ExitStack())
            self._preparing.enter_context(self._signals.at_once())
            self._saver = Saver(
                self._cfg, self.dir, self._progress, self._raise_non_finite, self.mesh
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

        Of several processes the first reads it, and tells the others.

        Raises:
          CheckpointError: no checkpoint fits `state` and can be read.
          ConfigError: the run was begun on other data.
        """
        self._meet()
        state, records = self._saver.restore(state)
        self._meet()
        state, records = self._saver.share(state, records)
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

    def _meet(self) -> None:
        """Waits for the other processes; all end if one has an error or a signal."""
        if processes.is_alone():
            return
        # To be interrupted while they ask each other would leave the others waiting.
        self._preparing.close()
        processes.agree()
        if self._is_signalled():
            raise Interrupted

    @property
    def place(self) -> str:
        """How far it has come and is saved, to be told: "5 of 10"; "" before that."""
        step, total = newest_step(self.dir), self._progress.total_steps
        if not processes.is_first():  # they end when the first has saved
            step = self._progress.step
        if not step:
            return ""
        return f"{step} of {total}" if total else f"{step}"

    def make_feed(self, *datasets: data.Dataset) -> feed.Feed:
        """A Feed of the run's devices, which ends with the run."""
        self._meet()
        options = {"num_seeds": self._cfg.num_seeds, **self._cfg.feeding}
        made = feed.make_feed(self.mesh, *datasets, **options)
        return self._stack.enter_context(contextlib.closing(made))

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
            progress.begin_epoch()

    def epochs(
        self, compile_seconds: float, schedule: Callable[[int], Any]
    ) -> Iterator[tuple[int, range]]:
        """(epoch, its steps still to do), from 0, until all steps are done.

        An epoch that was stopped in its evaluation has no step to do.

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
        self._meet()
        self.is_training = True
        self._saver.begin_clock()
        while progress.step < progress.total_steps or self._unscored:
            self._epoch = (progress.step - self._unscored) // progress.steps_per_epoch
            yield self._epoch, progress.steps(self._epoch)

    def batches(self, batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """`batches` of one epoch, up to the run's last step, with a progress bar."""
        return self._progress.batches(batches, self._epoch)

    def step(self, state: Any, sums: metrics.Sums) -> None:
        """Takes note of the steps that gave `sums`; saves and stops on a signal.

        Several processes ask each other for it, and the time, every log_every_steps.
        """
        progress = self._progress
        steps = progress.add(sums)
        if self._startup_seconds is None:
            jax.block_until_ready(sums)
            self._startup_seconds = time.monotonic() - self._begun
        if self._cfg.profile:
            self._trace.step(progress.step, state)
        is_time = progress.passed(self._cfg.log_every_steps, steps)
        if is_time:
            progress.collect()
        if progress.at_epoch_end:
            return
        asks = is_time or processes.is_alone()
        if asks and self._is_signalled():
            self._save_last(state)
            raise Interrupted
        if self._saver.is_due(steps, asks=asks):
            self._saver.save(state, self._log)

    def _is_signalled(self) -> bool:
        """Whether a signal came, to this process or another: all must ask."""
        return processes.any_process(self._signals.received is not None)

    def _raise_non_finite(self, what: str, step: int) -> NoReturn:
        self.is_training = False  # all have the same numbers, and come here
        self._saver.wait()  # for the last good one may be on its way
        lr = float(self._schedule(step - 1))
        good = f" (last good checkpoint here: {newest_step(self.dir)})"
        raise NonFiniteLossError(
            f"{self._cfg.workdir}: {what} at step {step}, lr {lr:g}: try a smaller "
            "--lr in another --workdir, or --debug-nans to see where"
            f"{good if processes.is_first() else ''}"
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
          CheckpointError: the last checkpoint before it ends could not be saved.
        """
        step = self._progress.step
        place = {"epoch": self._progress.epochs_begun, "step": step}
        try:
            with self._at_once():
                sums = score(state)
                layers = self._log.measure(local(state))
        except Interrupted:
            self._save_last(state)
            raise
        scored = {}
        for part, found in sums.items():
            scored |= metrics.means(found, part)
        for name, value in scored.items():
            if not np.isfinite(value).all():
                self._raise_non_finite(f"{name} is {value}", step)
        record = {
            **place,
            "lr": float(self._schedule(step - 1)),
            **metrics.means(self._progress.sums, "train"),
            **scored,
            **self._progress.times,
            "compile_seconds": self._compile_seconds,
            "startup_seconds": self._startup_seconds or 0.0,
        }
        self._compile_seconds = self._startup_seconds = 0.0  # of the epochs to come
        self._log.write_layers(place, layers)
        self._log.write(record)
        is_done = step == self._progress.total_steps
        if self._is_signalled() or is_done:
            self._save_last(state)
            if not is_done:
                raise Interrupted
        else:
            self._saver.save(state, self._log)
        self._forget_whole_epoch()

    def _at_once(self) -> contextlib.AbstractContextManager[None]:
        """Where this process may stop without the others, signals.at_once."""
        if processes.is_alone():
            return self._signals.at_once()
        return contextlib.nullcontext()

    def _save_last(self, state: Any) -> None:
        """Saves before the end: where the first process cannot, all have its error."""
        self.is_training = False
        self._saver.save(state, self._log, last=True)
        processes.agree()
