"""Writes a run's config.json, metrics.jsonl and checkpoints; resumes runs exactly."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn, Self

import jax
import numpy as np

from resnet_jax.config import Config
from resnet_jax.data.dataset import Dataset
from resnet_jax.data.loader import Loader
from resnet_jax.devices import processes
from resnet_jax.devices.mesh import layout, local, make_mesh
from resnet_jax.errors import NonFiniteLossError
from resnet_jax.run import directory
from resnet_jax.run.checkpoints import Checkpoints, is_finite
from resnet_jax.run.logs import Layers, Logs, Record, last_line, open_logs
from resnet_jax.run.progress import Progress, Trace
from resnet_jax.run.signals import Interrupted, Signals, exit_code
from resnet_jax.training import metrics, seeds

Measure = Callable[[Any], Layers]  # measures a state; see training/diagnostics.py


class Run:
    """A run in progress, as yielded by open_run.

    On exit, the context manager waits for the last save. Before the first step and
    during evaluations, a signal raises Interrupted at once; otherwise, the current step
    is finished and saved first. With several processes, all stop together once they are
    synchronized.
    """

    def __init__(
        self, cfg: Config, run_dir: Path, signals: Signals, overridden: str = ""
    ) -> None:
        self.dir, self._overridden = run_dir, overridden
        self.mesh = make_mesh(cfg.devices.devices, cfg.devices.platform)
        # Whether other processes, if any, are computing and cannot receive errors.
        self.is_training = False
        self._cfg, self._signals = cfg, signals
        self.progress = Progress(self._raise_non_finite, seeds.shape(cfg.run.num_seeds))
        # Only the first of several processes writes checkpoints.
        self._checkpoints: Checkpoints | None = None
        self._log: Logs | None = None
        self._trace = Trace(run_dir / "profile")
        self._written: tuple[str, ...] = ()
        self._identity: dict[str, Any] = {}  # see data.dataset.identify
        self._schedule: Callable[[int], Any] = lambda step: math.nan
        self._measure: Measure | None = None
        self._begun, self._compile_seconds = time.monotonic(), 0.0
        self._startup_seconds: float | None = None  # time until the first step is done
        self._stack = contextlib.ExitStack()
        self._preparing = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.callback(lambda: directory.remove_unsaved(self.dir, self._written))
            stack.enter_context(self._preparing)
            self._preparing.enter_context(self._signals.at_once())
            if processes.is_first():
                keep = self._cfg.run.keep_checkpoints
                self._checkpoints = Checkpoints(self.dir, keep, layout(self.mesh))
                stack.callback(self._checkpoints.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        if self._log is not None:
            self._log.exit_code = exit_code(error[1])
        self._stack.close()

    def restore(self, state: Any, loader: Loader) -> Any:
        """Returns the state of the newest checkpoint, or `state` if there is none.

        With several processes, the first one reads the state and broadcasts it.

        Raises:
          CheckpointError: if there are checkpoints but none is valid and fits `state`.
          ConfigError: if the run was started with different data.
        """
        progress = self.progress
        self._identity = loader.splits.identity
        self._stack.callback(loader.close)
        self._meet()
        records: list[Record] = []
        if self._checkpoints is not None:
            state, manifest = self._checkpoints.restore(state)
            if manifest is not None:
                directory.check_data(self.dir, manifest["data"], self._identity)
                progress.go_to(manifest)
                records = manifest["metrics"]
            records += last_line(self.dir, records, progress.step)
        self._meet()
        progress.go_to(processes.json_from_first(progress.place))
        state = processes.from_first(state)
        records = processes.json_from_first(records)
        self._log = open_logs(self._cfg, self.dir, records, progress.step)
        self._stack.callback(self._log.close)
        self._written = directory.FILES
        directory.write_config(self.dir, self._cfg, self._identity["classes"])
        progress.steps_per_epoch = loader.steps_per_epoch
        progress.total_steps = loader.total_steps
        progress.note_scored(self._log.last_step)
        done = f"{progress.step} of {progress.total_steps}"
        if self.is_finished:
            print(f"{self.dir} is finished: {done} steps done")
        elif self.resumed:
            print(f"{self.dir} resumes after step {done}{self._overridden}")
        self._meet()
        return state

    def _meet(self) -> None:
        """Waits for all processes; stops all if one fails or receives a signal."""
        if processes.is_alone():
            return
        # A signal that interrupted this exchange would leave other processes waiting.
        self._preparing.close()
        processes.agree()
        if self._is_signalled():
            raise Interrupted

    @property
    def resumed(self) -> bool:
        """Whether restore found a checkpoint."""
        return self.progress.step > 0

    @property
    def is_finished(self) -> bool:
        """Whether all steps are done and all epochs have been scored."""
        progress = self.progress
        return progress.step >= progress.total_steps and not progress.is_unscored

    @property
    def _logs(self) -> Logs:
        if self._log is None:
            raise RuntimeError("restore must be called first")
        return self._log

    def epochs(
        self,
        state: Any,
        schedule: Callable[[int], Any],
        compile_seconds: float,
        measure: Measure | None = None,
    ) -> Iterator[tuple[int, int]]:
        """Yields 0-based (epoch, first remaining step) pairs until all steps are done.

        Args:
          state: the initial state.
          schedule: the learning rate as a function of the step (from 0).
          compile_seconds: the compilation time, which the next record will contain.
          measure: computes layers.jsonl's statistics at step 0 and after each epoch.
        """
        progress = self.progress
        self._schedule = schedule
        self._measure = measure if self._cfg.run.log_gradients else None
        self._compile_seconds = compile_seconds
        if self._measure is not None and not self.resumed:
            layers = self._measure(local(state))
            self._logs.write_layers({"epoch": 0, "step": 0}, layers)
        self._logs.begin()
        self._trace.begin_after(progress.step)
        self._stack.callback(self._trace.close)
        self._preparing.close()
        self._meet()
        self.is_training = True
        progress.begin_clock()
        while progress.step < progress.total_steps or progress.is_unscored:
            yield progress.epoch, progress.steps.start

    def track(self, batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yields the `batches` of an epoch while showing a progress bar."""
        return self.progress.batches(batches)

    def record(self, state: Any, sums: metrics.Sums) -> None:
        """Records the steps that returned `sums`, saves if due, and stops on a signal.

        With several processes, received signals are shared every log_every_steps steps.
        """
        steps = (progress := self.progress).add(sums)
        if self._startup_seconds is None:
            jax.block_until_ready(sums)
            self._startup_seconds = time.monotonic() - self._begun
        if self._cfg.run.profile:
            self._trace.step(progress.step, state)
        is_time = progress.passed(self._cfg.run.log_every_steps, steps)
        if is_time:
            progress.collect()
        if progress.at_epoch_end:
            return
        asks = is_time or processes.is_alone()
        if asks and self._is_signalled():
            self._save(state, last=True)
            raise Interrupted
        if progress.is_save_due(self._cfg.run, steps, asks=asks):
            self._save(state)

    def _is_signalled(self) -> bool:
        """Returns whether any process was signaled; all processes must call this."""
        return processes.any_process(self._signals.received is not None)

    def _raise_non_finite(self, what: str, step: int) -> NoReturn:
        self.is_training = False  # all processes reach this line with the same numbers
        if self._checkpoints is not None:
            self._checkpoints.wait()  # the last good state may not be saved yet
        good = f" (last good checkpoint: {directory.newest_step(self.dir)})"
        raise NonFiniteLossError(
            f"{self._cfg.run.workdir}: {what} at step {step}, lr "
            f"{float(self._schedule(step - 1)):g}: try a smaller --lr in another "
            "--workdir, or --debug-nans to locate the "
            f"cause{good if processes.is_first() else ''}"
        )

    def end_epoch(
        self,
        state: Any,
        evaluate: Callable[[Any, Dataset], metrics.Sums],
        parts: dict[str, Dataset],
    ) -> None:
        """Evaluates `state`, then writes the epoch's record and its checkpoint.

        Args:
          evaluate: a function from a state and a data set to metric sums.
          parts: the data sets to score, by name: "test" and, optionally, "val".

        Raises:
          NonFiniteLossError: if a score is not finite; nothing is written in that case.
          Interrupted: if a signal arrived. The state is saved first, and running the
            same command again evaluates it.
          CheckpointError: if the last checkpoint could not be saved.
        """
        progress, step = self.progress, self.progress.step
        place = {"epoch": progress.epochs_begun, "step": step}
        try:
            # One of several processes cannot stop without the others.
            with self._signals.at_once() if processes.is_alone() else nullcontext():
                sums = {name: evaluate(state, part) for name, part in parts.items()}
                layers = self._measure(local(state)) if self._measure else None
        except Interrupted:
            self._save(state, last=True)
            raise
        means = [seeds.means(found, part) for part, found in sums.items()]
        scored = {name: value for own in means for name, value in own.items()}
        for name, value in scored.items():
            if not np.isfinite(value).all():
                self._raise_non_finite(f"{name} is {value}", step)
        record = {
            **place,
            "lr": float(self._schedule(step - 1)),
            **seeds.means(progress.sums or {}, "train"),
            **scored,
            **progress.times,
            "compile_seconds": self._compile_seconds,
            "startup_seconds": self._startup_seconds or 0.0,
        }
        self._compile_seconds = self._startup_seconds = 0.0  # for later epochs
        self._logs.write_layers(place, layers)
        self._logs.write(record)
        ends = self._is_signalled() or step == progress.total_steps
        with contextlib.ExitStack() as last:  # saves even if printing fails
            last.callback(print, metrics.epoch_line(record), flush=True)
            self._save(state, last=ends)
        if ends and step < progress.total_steps:
            raise Interrupted
        progress.note_scored(step)

    def _save(self, state: Any, *, last: bool = False) -> None:
        """Starts saving a checkpoint unless it exists; waits for it if `last` is true.

        All processes call this at the same step, so all detect non-finite values. If
        the first process cannot save the last checkpoint, all raise the same error.
        """
        progress = self.progress
        if last:
            self.is_training = False
        progress.collect()
        progress.begin_clock()
        if not is_finite(state):
            self._raise_non_finite("a parameter is not finite", progress.step)
        if self._checkpoints is not None:
            flush = self._logs.flush  # write records to disk before the checkpoint
            manifest = {
                "config": dataclasses.asdict(self._cfg),
                "data": self._identity,
                **progress.place,
                "metrics": self._logs.records,
            }
            if last:
                self._checkpoints.save_last(progress.step, state, manifest, flush)
            elif flush() is None and self._checkpoints.latest != progress.step:
                self._checkpoints.save(progress.step, state, manifest)
        if last:
            processes.agree()
