"""The run directory: config.json, metrics.jsonl and checkpoints that resume exactly."""

import contextlib
import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies
from tqdm import tqdm

from resnet_jax import config, metrics, signals
from resnet_jax.errors import (
    CheckpointError,
    ConfigError,
    NonFiniteLossError,
    StoppedError,
)
from resnet_jax.timing import Stopwatch

_CONFIG, _METRICS, _CHECKPOINTS = "config.json", "metrics.jsonl", "checkpoints"
_PROFILE_STEPS = (5, 10)  # of this process, from and to: compilation is over by then


def _best(scores: dict[str, float]) -> float:
    return scores["val_accuracy"]


def _make_manager(run_dir: Path, keep: int | None = None) -> ocp.CheckpointManager:
    """orbax's manager, to read; or to write, keeping the last `keep` and the best."""
    kept = policies.AnyPreservationPolicy(
        [
            policies.LatestN(n=keep),
            policies.BestN(
                get_metric_fn=_best, n=1, keep_checkpoints_without_metrics=False
            ),
        ]
    )
    options = ocp.CheckpointManagerOptions(
        best_fn=_best,
        read_only=keep is None,
        cleanup_tmp_directories=keep is not None,
        preservation_policy=kept,
    )
    return ocp.CheckpointManager((run_dir / _CHECKPOINTS).absolute(), options=options)


def _restore(
    manager: ocp.CheckpointManager, run_dir: Path, step: int, **items: Any
) -> Any:
    try:
        return manager.restore(step, args=ocp.args.Composite(**items))
    except Exception as error:  # orbax raises of every kind
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise CheckpointError(
            f"checkpoint {step} of {run_dir} is damaged or of another model: "
            f"{reason[:200]}"
        ) from error


def _make_writer(directory: Path, purge_step: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ConfigError(
            "--tensorboard needs tensorboardX: pip install tensorboardX"
        ) from None
    return SummaryWriter(str(directory), purge_step=purge_step)


class Run:
    """A run in progress, from open_run; a context that finishes the last save."""

    def __init__(self, cfg: config.Config, run_dir: Path) -> None:
        self.dir = run_dir
        self._cfg = cfg
        self._manager = _make_manager(run_dir, cfg.keep)
        self._stack = contextlib.ExitStack()
        self._stack.callback(self._close)
        self._writer: Any = None
        self._signals: list[Any] = []
        self._step = 0
        self._pending: list[metrics.Sums] = []  # on the device, steps up to _step
        self._sums: metrics.Sums | None = None  # of the epoch's steps before those

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
        self._manager.close()
        # A run that failed before it began leaves nothing behind.
        with contextlib.suppress(OSError):
            (self.dir / _CHECKPOINTS).rmdir()
            self.dir.rmdir()

    def restore(self, state: Any) -> Any:
        """The state of the newest checkpoint, or `state` itself where there is none.

        Raises:
          CheckpointError: the checkpoint does not fit `state`, or cannot be read.
        """
        saved = self._manager.latest_step()
        if saved is not None:
            target = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
            restored = _restore(
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
        if self._cfg.tensorboard:
            self._writer = _make_writer(self.dir / "tensorboard", self._step + 1)
            self._stack.callback(self._writer.close)
        _write(self.dir / _CONFIG, config.to_json(self._cfg))
        # Lines of steps after the checkpoint will be written again.
        records = metrics.read_jsonl(self.dir / _METRICS)
        lines = [metrics.json_line(r) for r in records if r["step"] <= self._step]
        _write(self.dir / _METRICS, "".join(f"{line}\n" for line in lines))
        return state

    def epochs(
        self, *, steps_per_epoch: int, total_steps: int
    ) -> Iterator[tuple[int, int]]:
        """(epoch, its first batch still to do), from 0, until `total_steps`.

        Meanwhile SIGINT and SIGTERM let a step finish, save, and raise StoppedError.
        """
        self._steps_per_epoch, self._total_steps = steps_per_epoch, total_steps
        if self._step >= total_steps:
            print(f"{self.dir} is finished: {self._step} of {total_steps} steps done")
        elif self._step:
            print(f"{self.dir} goes on after step {self._step} of {total_steps}")
        self._profile_at = [self._step + step for step in _PROFILE_STEPS]
        self._signals = self._stack.enter_context(signals.noted())
        while self._step < total_steps:
            yield divmod(self._step, steps_per_epoch)

    def batches(self, batches: Iterable[Any]) -> Iterator[Any]:
        """`batches` of one epoch, up to the run's last step, with a progress bar."""
        epoch, start = divmod(self._step, self._steps_per_epoch)
        num_epochs = -(-self._total_steps // self._steps_per_epoch)
        left = min(self._steps_per_epoch - start, self._total_steps - self._step)
        self._watch, self._num_images = Stopwatch(), 0
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
        seconds, compile_seconds = self._watch.stop()
        self._times = {
            "seconds": seconds,
            "images_per_second": self._num_images / seconds,
            "compile_seconds": compile_seconds,
        }

    def step(self, state: Any, sums: metrics.Sums) -> None:
        """Takes note of one training step and, where a signal came, saves and stops."""
        self._step += 1
        self._pending.append(sums)
        self._bar.update()
        if self._cfg.profile:
            self._profile(state)
        if self._step % self._cfg.log_every_steps == 0 or self._signals:
            self._collect()
        if self._signals and self._step % self._steps_per_epoch:
            self._save(state)
            self._stop()

    def _collect(self) -> None:
        """Fetches the pending sums and adds them to the epoch's in float64."""
        first = self._step - len(self._pending) + 1
        for step, sums in enumerate(jax.device_get(self._pending), start=first):
            if not np.isfinite(sums["loss"]):
                raise NonFiniteLossError(
                    f"{self.dir}: the training loss is {sums['loss']} at step {step}, "
                    f"lr {self._cfg.lr:g}: try a smaller --lr in another --workdir "
                    f"(last good checkpoint here: {self._manager.latest_step()})"
                )
            self._sums = metrics.add(self._sums, sums)
            self._num_images += int(sums["count"])
            self._bar.set_postfix(loss=f"{sums['loss'] / sums['count']:.4f}")
        self._pending.clear()

    def _profile(self, state: Any) -> None:
        begin, end = self._profile_at
        if self._step == begin:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self.dir / "profile"))
        elif self._step == end:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            tqdm.write(f"profile of steps {begin + 1} to {end} in {self.dir / 'profile'}")

    def end_epoch(
        self,
        state: Any,
        *,
        lr: float,
        test: metrics.Sums,
        validation: metrics.Sums | None = None,
    ) -> None:
        """Writes the epoch's line, then its checkpoint; stops where a signal came."""
        held_out = {} if validation is None else metrics.means(validation, "val")
        record = {
            "epoch": -(-self._step // self._steps_per_epoch),
            "step": self._step,
            "lr": lr,
            **metrics.means(self._sums, "train"),
            **held_out,
            **metrics.means(test, "test"),
            **self._times,
        }
        with (self.dir / _METRICS).open("a", encoding="utf-8") as file:
            file.write(metrics.json_line(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(metrics.epoch_line(record), flush=True)
        if self._writer is not None:
            for name in record.keys() - {"epoch", "step"}:
                self._writer.add_scalar(name, record[name], self._step)
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


def _write(path: Path, text: str) -> None:
    """Writes `text` to `path`, whole or not at all."""
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=path.name, delete=False
    ) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def open_run(cfg: config.Config) -> Run:
    """The run in cfg.workdir, begun or to be resumed.

    Raises:
      ConfigError: the directory cannot be written, holds something else, or holds a run
        of another configuration.
    """
    run_dir = Path(cfg.workdir)
    if (run_dir / _CHECKPOINTS).exists():
        old = config.read_config(run_dir / _CONFIG)
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
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=run_dir):
            pass
    except OSError as error:
        raise ConfigError(
            f"run directory {run_dir} cannot be written ({error.strerror}): "
            "choose another --workdir"
        ) from None
    return Run(cfg, run_dir)


def read_run(run_dir: Path) -> config.Config:
    """The configuration of the run in `run_dir`.

    Raises:
      ConfigError: there is no run, or only half of one.
    """
    if not run_dir.is_dir():
        raise ConfigError(f"no run at {run_dir}: there is no such directory")
    if not (run_dir / _CONFIG).is_file():
        raise ConfigError(f"{run_dir} is no run: it has no {_CONFIG}")
    return config.read_config(run_dir / _CONFIG)


def load_variables(
    run_dir: Path, checkpoint: str, variables: dict[str, Any]
) -> tuple[dict[str, Any], int]:
    """(variables, step) of a checkpoint: "last", "best" or a step.

    Args:
      variables: what the model's init gives, or its shapes (jax.eval_shape).

    Raises:
      ConfigError: `checkpoint` is none of those.
      CheckpointError: no such checkpoint, a damaged one, or one of another model.
    """
    if not (run_dir / _CHECKPOINTS).is_dir():
        raise CheckpointError(f"{run_dir} has no checkpoint yet: train it first")
    with contextlib.closing(_make_manager(run_dir)) as manager:
        steps = sorted(manager.all_steps())
        if not steps:
            raise CheckpointError(f"{run_dir} has no checkpoint yet: train it first")
        if checkpoint == "last":
            step = steps[-1]
        elif checkpoint == "best":
            scored = [s for s in steps if manager.metrics(s)]
            if not scored:
                raise CheckpointError(
                    f"{run_dir} has no best checkpoint: best is by validation accuracy, "
                    "so train with --validation-split"
                )
            step = max(scored, key=lambda s: _best(manager.metrics(s)))
        elif checkpoint.isdecimal():
            step = int(checkpoint)
        else:
            raise ConfigError(f"checkpoint {checkpoint!r}: last, best or a step")
        if step not in steps:
            raise CheckpointError(
                f"{run_dir} has no checkpoint of step {step}: "
                f"it has {', '.join(map(str, steps))}"
            )
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), variables
        )
        placed = ocp.checkpoint_utils.construct_restore_args(target)
        restored = _restore(
            manager,
            run_dir,
            step,
            state=ocp.args.PyTreeRestore(target, placed, partial_restore=True),
        )
        return restored["state"], step
