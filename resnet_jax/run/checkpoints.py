"""Writes a run's checkpoints and removes incomplete ones."""

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

DAMAGED = "damaged"  # folder in the run directory for damaged checkpoints
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
# With several processes, only the first writes, and the others do not wait for it.
_FIRST: dict[str, Any] = {
    "create": False,
    "multiprocessing_options": ocp.options.MultiprocessingOptions(
        primary_host=0, active_processes={0}, barrier_sync_key_prefix="first"
    ),
}


class Checkpoints:
    """Manages the checkpoints in `run_dir`, keeping the last `keep` and the best one.

    A save is complete once its index has been read back; only then are older
    checkpoints deleted. If a save fails, a warning is logged, and the older checkpoints
    are kept.

    Args:
      layout: the result of mesh.layout. A warning is logged if the layout or a package
        version has changed since the checkpoint, because the results may then differ.
    """

    def __init__(self, run_dir: Path, keep: int, layout: dict[str, str]) -> None:
        self._dir, self._keep = run_dir, keep
        # orbax does not create the folder if there are several processes or if its
        # path contains a symbolic link.
        files.check_writable(run_dir / CHECKPOINTS, "folder", "--workdir")
        self._decide_bits = {
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
            **layout,
        }
        self._records: list[Record] = []  # one per epoch, to find the best checkpoint
        self._has_failed = False
        self._saving: Manifest | None = None  # manifest of an unverified save
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
        """The step of the newest checkpoint, or None if there is none."""
        step: int | None = self._manager.latest_step()
        return step

    def restore(self, state: Any) -> tuple[Any, Manifest | None]:
        """Returns the newest valid checkpoint, as NumPy arrays, and its manifest.

        Returns (`state`, None) if there is no checkpoint. Moves damaged checkpoints
        that are newer than the returned one to the folder DAMAGED.

        Raises:
          CheckpointError: if there are checkpoints but all are damaged.
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
            log.warning(
                "%s: %s, so results may no longer be bitwise identical",
                self._dir,
                notice,
            )
        return found, manifest

    def _changes(self, then: dict[str, str]) -> str:
        """Lists the differences from `then`, such as "jax 0.10.2 -> 0.12.0"."""
        return ", ".join(
            f"{name} {then[name]} -> {now}"
            for name, now in self._decide_bits.items()
            if then.get(name, now) != now
        )

    def save(self, step: int, state: Any, manifest: Manifest) -> str | None:
        """Starts saving `state`, which the caller may overwrite after this call.

        Returns:
          The reason for the failure if the save has already failed, or None.

        Raises:
          ConfigError: if the run directory no longer exists.
        """
        self._check_there()
        self.wait()
        state = jax.device_get(state)
        # Copy the manifest, because orbax writes it while the run continues.
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
        except Exception as error:  # orbax raises many exception types
            return self._give_up(error)
        return None

    def save_last(
        self,
        step: int,
        state: Any,
        manifest: Manifest,
        flush: Callable[[], str | None],
    ) -> None:
        """Saves `state` unless it is already saved, then waits; tries at most twice.

        Args:
          flush: a function that writes the pending records, which must be on disk
            before the checkpoint is saved. The function returns the reason for a
            failure, or None.

        Raises:
          CheckpointError: if `state` could not be saved.
        """
        for _ in range(2):
            failure = flush()
            if failure is None and self.latest != step:
                failure = self.save(step, state, manifest) or self.wait()
            if failure is None:
                return
        raise CheckpointError(
            f"{self._dir}: the checkpoint of step {step} could not be saved "
            f"({failure}): correct the cause (for example, free some space), then run "
            f"the same command to resume after step {self.latest or 0}"
        )

    def wait(self) -> str | None:
        """Waits for the current save and verifies it.

        Returns:
          The reason for the failure if the save failed, or None.
        """
        saving = self._saving
        try:
            self._manager.wait_until_finished()
            if saving is not None:
                restore.check_written(self._manager, saving)
        except Exception as error:  # orbax raises many exception types
            return self._give_up(error)
        if saving is not None:
            self._saving = None
            self._remove_old()
        return None

    def _remove_old(self) -> None:
        """Removes all checkpoints except the last `keep` and the best one."""
        steps = sorted(self._manager.all_steps())
        kept = {*steps[-self._keep :], restore.best_step(self._records, steps)}
        for step in steps:
            if step in kept:
                continue
            try:
                self._manager.delete(step)
            except Exception as error:  # orbax raises many exception types
                reason = first_line(error)
                log.warning(
                    "%s: checkpoint %d was not removed: %s", self._dir, step, reason
                )

    def _give_up(self, error: Exception) -> str:
        """Logs and returns why a save failed, and prepares for another attempt."""
        self._check_there()
        self._has_failed = True
        reason = first_line(error)
        log.warning("%s: a checkpoint could not be saved: %s", self._dir, reason)
        with contextlib.suppress(Exception):  # closing may raise the same error
            self._manager.close()
        if self._saving is not None:  # incomplete checkpoint that may look complete
            left = self._dir / CHECKPOINTS / str(self._saving["step"])
            shutil.rmtree(left, ignore_errors=True)
            self._saving = None
        self._manager = self._make_manager()
        return reason

    def _check_there(self) -> None:
        """Raises ConfigError if the checkpoint folder no longer exists.

        Without this check, orbax would recreate the folder.
        """
        if not (self._dir / CHECKPOINTS).is_dir():
            raise ConfigError(
                f"{self._dir} no longer exists, so the run ends here: restore it, or "
                "choose another --workdir"
            )

    def close(self) -> None:
        """Waits for the save in progress and closes orbax's manager."""
        self.wait()
        self._manager.close()
        if self._has_failed:  # orbax's threads may still write after an error
            for left in (self._dir / CHECKPOINTS).glob("*.orbax-checkpoint-tmp"):
                shutil.rmtree(left, ignore_errors=True)
        self._stack.close()


def is_finite(state: Any) -> bool:
    """Returns whether all floating-point numbers in `state` are finite."""
    floats = (
        np.asarray(leaf)
        for leaf in jax.tree.leaves(jax.device_get(state))
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    )
    return all(bool(np.isfinite(leaf).all()) for leaf in floats)
