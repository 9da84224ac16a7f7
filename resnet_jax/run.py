"""The run directory: config.json, metrics.jsonl, checkpoints; a resume is exact."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from tqdm import tqdm

from resnet_jax import checkpoint, config, config_json, files, metrics, signals
from resnet_jax.checkpoint import CHECKPOINTS
from resnet_jax.errors import ConfigError, NonFiniteLossError, StoppedError
from resnet_jax.logs import LAYERS, METRICS, JsonLines, MetricsLog
from resnet_jax.profiling import Trace
from resnet_jax.rundir import CLASSES, CONFIG


class Run:
    """A run in progress, from open_run; a context that finishes the last save."""

    def __init__(self, cfg: config.Config, run_dir: Path) -> None:
        self.dir = run_dir
        self.class_names: tuple[str, ...] = ()  # saved with the run by restore
        self._cfg = cfg
        self._manager = checkpoint.make_manager(run_dir, cfg.keep)
        self._stack = contextlib.ExitStack()
        self._stack.callback(self._close)
        self._signals: list[Any] = []
        self._written: list[Path] = []
        self._step = 0
        self._pending: list[metrics.Sums] = []  # on the device, steps up to _step
        self._sums: metrics.Sums | None = None  # of the epoch's steps before those
        self._measure: Callable[[Any], dict[str, Any]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _close(self) -> None:
        self._manager.wait_until_finished()
        begun = self._manager.latest_step() is not None
        self._manager.close()
        if not begun:  # a run that failed before it saved anything leaves nothing
            for path in self._written:
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # other files may lie there
                (self.dir / CHECKPOINTS).rmdir()
                self.dir.rmdir()

    def restore(self, state: Any) -> Any:
        """The state of the newest checkpoint, or `state` itself where there is none.

        Raises:
          CheckpointError: the checkpoint does not fit `state`, or cannot be read.
        """
        saved = self._manager.latest_step()
        if saved is not None:
            target = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
            restored = checkpoint.restore(
                self._manager,
                self.dir,
                saved,
                state=ocp.args.StandardRestore(target),
                progress=ocp.args.JsonRestore(),
            )
            state = restored["state"]
            sums = restored["progress"]["train_sums"]
            self._sums = sums and {name: np.float64(sums[name]) for name in sums}
            self._step = saved
        self._written = [self.dir / CONFIG, self.dir / CLASSES, self.dir / METRICS]
        self._log = MetricsLog(
            self.dir, step=self._step, tensorboard=self._cfg.tensorboard
        )
        self._stack.callback(self._log.close)
        files.write_text(self.dir / CONFIG, config_json.to_json(self._cfg))
        files.write_json(self.dir / CLASSES, list(self.class_names))
        return state

    def log_layers(self, state: Any, measure: Callable[[Any], dict[str, Any]]) -> None:
        """Writes measure(state) to layers.jsonl, at step 0 and after each epoch."""
        self._layers = JsonLines(self.dir / LAYERS, step=self._step)
        self._written.append(self.dir / LAYERS)
        self._measure = measure
        if not self.resumed:
            self._layers.write({"epoch": 0, "step": 0, "layers": measure(state)})

    @property
    def resumed(self) -> bool:
        """Whether restore found a checkpoint."""
        return self._step > 0

    def is_finished(self, total_steps: int) -> bool:
        """Whether all is done; says so, or where the run goes on."""
        if self._step >= total_steps:
            print(f"{self.dir} is finished: {self._step} of {total_steps} steps done")
            return True
        if self._step:
            print(f"{self.dir} goes on after step {self._step} of {total_steps}")
        return False

    def epochs(
        self, steps_per_epoch: int, total_steps: int, compile_seconds: float
    ) -> Iterator[tuple[int, int]]:
        """(epoch, its first batch still to do), from 0, until `total_steps`.

        Meanwhile SIGINT and SIGTERM let a step finish, save, and raise StoppedError.
        """
        self._steps_per_epoch, self._total_steps = steps_per_epoch, total_steps
        self._compile_seconds = compile_seconds
        self._trace = Trace(self.dir / "profile", self._step)
        self._stack.callback(self._trace.close)
        self._signals = self._stack.enter_context(signals.noted())
        while self._step < total_steps:
            yield divmod(self._step, steps_per_epoch)

    def batches(self, batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """`batches` of one epoch, up to the run's last step, with a progress bar."""
        epoch, start = divmod(self._step, self._steps_per_epoch)
        num_epochs = -(-self._total_steps // self._steps_per_epoch)
        left = min(self._steps_per_epoch - start, self._total_steps - self._step)
        begun, self._num_images = time.monotonic(), 0
        with tqdm(
            total=start + left,
            initial=start,
            desc=f"epoch {epoch + 1}/{num_epochs}",
            unit="step",
            leave=False,
            disable=None,  # where stderr is no terminal
        ) as self._bar:
            yield from itertools.islice(batches, left)
            self._collect()
        seconds = time.monotonic() - begun
        self._times = {
            "seconds": seconds,
            "images_per_second": self._num_images / seconds,
            "compile_seconds": self._compile_seconds,
        }
        self._compile_seconds = 0.0  # of the epochs to come

    def step(self, state: Any, sums: metrics.Sums) -> None:
        """Takes note of one training step and, where a signal came, saves and stops."""
        self._step += 1
        self._pending.append(sums)
        self._bar.update()
        if self._cfg.profile:
            self._trace.step(self._step, state)
        if self._step % self._cfg.log_every_steps == 0 or self._signals:
            self._collect()
        ends = self._step == self._total_steps or not self._step % self._steps_per_epoch
        if self._signals and not ends:
            self._save(state)
            self._stop()

    def _collect(self) -> None:
        """Fetches the pending sums and adds them to the epoch's in float64."""
        first = self._step - len(self._pending) + 1
        for step, sums in enumerate(jax.device_get(self._pending), start=first):
            if not np.isfinite(sums["loss"]):
                self._raise_non_finite(f"the training loss is {sums['loss']}", step)
            self._sums = metrics.add(self._sums, sums)
            self._num_images += int(sums["count"])
        if self._pending:
            self._bar.set_postfix(loss=f"{sums['loss'] / sums['count']:.4f}")
        self._pending.clear()

    def _raise_non_finite(self, what: str, step: int) -> NoReturn:
        raise NonFiniteLossError(
            f"{self.dir}: {what} at step {step}, lr {self._cfg.lr:g}: try a smaller "
            "--lr in another --workdir "
            f"(last good checkpoint here: {self._manager.latest_step()})"
        )

    def end_epoch(
        self,
        state: Any,
        *,
        schedule: Callable[[int], Any],
        test: metrics.Sums,
        validation: metrics.Sums | None = None,
    ) -> None:
        """Writes the epoch's line, then its checkpoint; stops where a signal came.

        Raises:
          NonFiniteLossError: an evaluation is not finite; nothing is written.
          StoppedError: a signal came.
        """
        held_out = {} if validation is None else metrics.means(validation, "val")
        scored = {**held_out, **metrics.means(test, "test")}
        for name, value in scored.items():
            if not np.isfinite(value):
                self._raise_non_finite(f"{name} is {value}", self._step)
        record = {
            "epoch": -(-self._step // self._steps_per_epoch),
            "step": self._step,
            "lr": float(schedule(self._step - 1)),
            **metrics.means(self._sums, "train"),
            **scored,
            **self._times,
        }
        if self._measure is not None:
            place = {"epoch": record["epoch"], "step": self._step}
            self._layers.write({**place, "layers": self._measure(state)})
        self._log.write(record)
        if self._step % self._steps_per_epoch == 0:
            self._sums = None
        scores = {"val_accuracy": record["val_accuracy"]} if held_out else None
        self._save(state, scores)
        if self._signals and self._step < self._total_steps:
            self._stop()

    def _save(self, state: Any, scores: dict[str, float] | None = None) -> None:
        sums = self._sums and {name: float(self._sums[name]) for name in self._sums}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            progress=ocp.args.JsonSave({"train_sums": sums}),
        )
        self._manager.save(self._step, args=items, metrics=scores)

    def _stop(self) -> None:
        self._manager.wait_until_finished()
        raise StoppedError(
            f"{self.dir}: stopped by {self._signals[0].name}, saved at step "
            f"{self._step} of {self._total_steps}; the same command goes on from there"
        )


def open_run(cfg: config.Config) -> Run:
    """The run in cfg.workdir, begun or to be resumed.

    Raises:
      ConfigError: the directory cannot be written, holds something else, or holds a run
        of another configuration.
    """
    run_dir = Path(cfg.workdir)
    begun = any(path.name.isdecimal() for path in run_dir.glob(f"{CHECKPOINTS}/*"))
    # A run that was killed before its first checkpoint has the folder for it.
    if not (run_dir / CHECKPOINTS).is_dir() and (run_dir / METRICS).is_file():
        if (run_dir / METRICS).stat().st_size:
            raise ConfigError(
                f"{run_dir} holds the metrics of a run and none of its checkpoints: "
                "choose another --workdir, or remove it"
            )
    if begun:
        old = config_json.read_config(run_dir / CONFIG)
        changed = config.differences(old, cfg)
        if changed:
            shown = ", ".join(f"{k} {a} -> {b}" for k, (a, b) in changed.items())
            if not cfg.override or changed.keys() - config.OVERRIDABLE:
                allowed = not changed.keys() - config.OVERRIDABLE
                way = "--override to go on with it, or " if allowed else ""
                raise ConfigError(
                    f"{run_dir} holds a run of another configuration ({shown}): "
                    f"{way}another --workdir for a new run"
                )
            print(f"{run_dir}: configuration overridden: {shown}")
    files.check_writable(run_dir, "run directory", "--workdir")
    return Run(cfg, run_dir)
