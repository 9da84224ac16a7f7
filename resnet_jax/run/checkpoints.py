"""A run's checkpoints as they are written: none half, none that is not finite."""

import contextlib
import importlib.metadata
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from resnet_jax import files
from resnet_jax.devices import processes
from resnet_jax.errors import CheckpointError, ConfigError, first_line
from resnet_jax.run import restore
from resnet_jax.run.directory import CHECKPOINTS
from resnet_jax.run.logs import Record
from resnet_jax.run.restore import Manifest

log = logging.getLogger(__name__)

DAMAGED = "damaged"  # the folder in the run directory for checkpoints that are
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
# Of several processes the first writes, and the others do not wait for it.
_FIRST: dict[str, Any] = {
    "create": False,
    "multiprocessing_options": ocp.options.MultiprocessingOptions(
        primary_host=0, active_processes={0}, barrier_sync_key_prefix="first"
    ),
}


class Checkpoints:
    """The checkpoints of the run in `run_dir`: the last `keep`, and the best.

    A save counts when its index was read back, and older ones go only then. One that
    fails is a warning, and leaves what was there before.

    Args:
      layout: what else than versions decides a run's bits: its devices, by name.
    """

    def __init__(self, run_dir: Path, keep: int, layout: dict[str, str]) -> None:
        self._dir, self._keep = run_dir, keep
        # orbax will not make it for one of several processes, nor at a link's end
        files.check_writable(run_dir / CHECKPOINTS, "folder", "--workdir")
        self._decide_bits = {
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
            **layout,
        }
        self._records: list[Record] = []  # of the epochs, for the best of them
        self._has_failed = False
        self._saving: Manifest | None = None  # that of what was not read back yet
        self._stack = contextlib.ExitStack()
        self._named = self._stack.enter_context(restore.plainly_named(run_dir))
        self._manager = self._make_manager()

    def _make_manager(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            cleanup_tmp_directories=True,
            **{} if processes.is_alone() else _FIRST,
        )
        return ocp.CheckpointManager(self._named, options=options)

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint."""
        step: int | None = self._manager.latest_step()
        return step

    def restore(self, state: Any) -> tuple[Any, Manifest | None]:
        """The newest sound checkpoint in the form of `state`, and its manifest.

        NumPy arrays; `state` itself and None, if there is no checkpoint.

        Damaged ones after it are moved out of the way, and kept.

        Raises:
          CheckpointError: there are checkpoints, and all are damaged.
        """
        steps = self._manager.all_steps()
        if not steps:
            return state, None
        target = ocp.args.StandardRestore(jax.device_get(state))
        (found, manifest), damaged = restore.newest(
            self._dir,
            steps,
            lambda step: restore.read_step(self._manager, self._dir, step, target),
        )
        for step in damaged:
            aside = self._dir / DAMAGED / str(step)
            shutil.rmtree(aside, ignore_errors=True)
            aside.parent.mkdir(exist_ok=True)
            (self._dir / CHECKPOINTS / str(step)).rename(aside)
        if damaged:
            self._manager.reload()
        self._records = manifest["metrics"]
        notice = self._changes(manifest["versions"])
        if notice:
            log.warning("%s: %s, so bits may differ from here on", self._dir, notice)
        return found, manifest

    def _changes(self, then: dict[str, str]) -> str:
        """ "jax 0.10.2 -> 0.12.0, devices 4 -> 1", of all that changed."""
        return ", ".join(
            f"{name} {then[name]} -> {now}"
            for name, now in self._decide_bits.items()
            if then.get(name, now) != now
        )

    def save(self, step: int, state: Any, manifest: Manifest) -> str | None:
        """Begins to save `state`, which may be written over on return.

        Returns: the reason, if that failed already.

        Raises:
          ConfigError: the run directory has vanished.
        """
        self._check_there()
        self.wait()
        state = jax.device_get(state)
        # As it is now: orbax writes it while the run goes on.
        manifest = json.loads(json.dumps(manifest))
        self._records = manifest["metrics"]
        versions, digests = self._decide_bits, restore.digests(state)
        manifest = {"step": step, "versions": versions, **manifest, "digests": digests}
        manifest["sha256"] = restore.manifest_sha256(manifest)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), manifest=ocp.args.JsonSave(manifest)
        )
        self._saving = manifest
        try:
            self._manager.save(step, args=items, force=True)
        except Exception as error:  # orbax raises of every kind
            return self._give_up(error)
        return None

    def save_last(
        self,
        step: int,
        state: Any,
        manifest: Manifest,
        flush: Callable[[], str | None],
    ) -> None:
        """Saves `state`, unless it is there, and waits for it; tries it twice.

        Args:
          flush: writes the lines before it, without which there is no checkpoint;
            returns the reason if that failed.

        Raises:
          CheckpointError: it could not be saved.
        """
        for _ in range(2):
            failure = flush()
            if failure is None and self.latest != step:
                failure = self.save(step, state, manifest) or self.wait()
            if failure is None:
                return
        raise CheckpointError(
            f"{self._dir}: the checkpoint of step {step} could not be saved "
            f"({failure}): make room, and the same command goes on after step "
            f"{self.latest or 0}"
        )

    def wait(self) -> str | None:
        """Waits for the save in progress, and looks at it; the reason, if it failed."""
        saving = self._saving
        try:
            self._manager.wait_until_finished()
            if saving is not None:
                restore.check_written(self._manager, saving)
        except Exception as error:  # orbax raises of every kind
            return self._give_up(error)
        if saving is not None:
            self._saving = None
            self._remove_old()
        return None

    def _remove_old(self) -> None:
        """Removes all but the last ones, and the best."""
        steps = sorted(self._manager.all_steps())
        kept = {*steps[-self._keep :], restore.best_step(self._records, steps)}
        for step in steps:
            if step in kept:
                continue
            try:
                self._manager.delete(step)
            except Exception as error:  # orbax raises of every kind
                reason = first_line(error)
                log.warning("%s: checkpoint %d stays: %s", self._dir, step, reason)

    def _give_up(self, error: Exception) -> str:
        """Warns, and makes ready for another try."""
        self._check_there()
        self._has_failed = True
        reason = first_line(error)
        log.warning("%s: a checkpoint could not be saved: %s", self._dir, reason)
        with contextlib.suppress(Exception):  # the same error once more
            self._manager.close()
        if self._saving is not None:  # it may look like one, and is not
            left = self._dir / CHECKPOINTS / str(self._saving["step"])
            shutil.rmtree(left, ignore_errors=True)
            self._saving = None
        self._manager = self._make_manager()
        return reason

    def _check_there(self) -> None:
        """Raises ConfigError before orbax makes again a directory that vanished."""
        if not (self._dir / CHECKPOINTS).is_dir():
            raise ConfigError(
                f"{self._dir} is not there any more: the run ends here; put it back, "
                "or choose another --workdir"
            )

    def close(self) -> None:
        """Waits for the save in progress."""
        self.wait()
        self._manager.close()
        if self._has_failed:  # orbax's threads may go on to write after an error
            for left in (self._dir / CHECKPOINTS).glob("*.orbax-checkpoint-tmp"):
                shutil.rmtree(left, ignore_errors=True)
        self._stack.close()


def is_finite(state: Any) -> bool:
    """Whether all numbers of `state` are."""
    floats = (
        np.asarray(leaf)
        for leaf in jax.tree.leaves(jax.device_get(state))
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    )
    return all(bool(np.isfinite(leaf).all()) for leaf in floats)
