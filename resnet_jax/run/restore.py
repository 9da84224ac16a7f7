"""Reads a run's checkpoints and verifies the sha256 of every array."""

import contextlib
import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from resnet_jax.errors import CheckpointError, ConfigError, first_line
from resnet_jax.run.directory import CHECKPOINTS
from resnet_jax.run.logs import Record, read_metrics

log = logging.getLogger(__name__)

Manifest = dict[str, Any]  # see checkpoints.py


@contextlib.contextmanager
def plainly_named(run_dir: Path) -> Iterator[Path]:
    """Yields a path through which orbax can open the checkpoints in `run_dir`.

    orbax interprets *, ?, [ and ] as glob patterns, and TensorStore requires UTF-8
    names and rejects "..", "//" and names that end in ".__lock". Paths are therefore
    resolved, and unsuitable paths are accessed through a symbolic link.
    """
    directory = (run_dir / CHECKPOINTS).resolve()
    if re.fullmatch(r"/(?!/)((?!__lock)[\w/.,+=@ -])*", str(directory), re.ASCII):
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="resnet_jax-") as folder:
        link = Path(folder, CHECKPOINTS)
        link.symlink_to(directory, target_is_directory=True)
        yield link


@contextlib.contextmanager
def reading(run_dir: Path) -> Iterator[ocp.CheckpointManager]:
    """Yields a read-only orbax manager of the checkpoints in `run_dir`."""
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)  # hides orbax's warnings about expected conditions
    try:
        options = ocp.CheckpointManagerOptions(read_only=True)
        with plainly_named(run_dir) as directory:
            manager = ocp.CheckpointManager(directory, options=options)
            with contextlib.closing(manager):
                yield manager
    finally:
        absl.setLevel(level)


def best_step(
    records: Iterable[Record], among: Iterable[int] | None = None
) -> int | None:
    """Returns the step with the best validation accuracy, or None if there is none.

    Args:
      records: the per-epoch records.
      among: the steps to choose from; None means all steps in `records`.
    """
    scores = {r["step"]: r["val_accuracy"] for r in records if "val_accuracy" in r}
    steps = scores.keys() if among is None else scores.keys() & set(among)
    return max(sorted(steps), key=lambda step: scores[step], default=None)


def digests(tree: Any) -> dict[str, str]:
    """Maps each array's path to the sha256 of the array's dtype, shape and values."""

    def digest(leaf: Any) -> str:
        array = np.asarray(leaf)
        found = hashlib.sha256(f"{array.dtype} {array.shape} ".encode())
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return found.hexdigest()

    return {
        jax.tree_util.keystr(path, simple=True, separator="."): digest(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    }


def manifest_sha256(manifest: Manifest) -> str:
    """Returns the sha256 of a manifest without its "sha256" entry."""
    text = json.dumps({k: v for k, v in manifest.items() if k != "sha256"})
    return hashlib.sha256(text.encode()).hexdigest()


def check_written(manager: ocp.CheckpointManager, manifest: Manifest) -> None:
    """Raises ValueError unless a checkpoint's manifest and index are complete.

    Storage systems may report success without having stored anything.
    """
    step = manifest["step"]
    read = ocp.args.Composite(manifest=ocp.args.JsonRestore())
    found = manager.restore(step, args=read)["manifest"]
    if manifest_sha256(found) != manifest["sha256"]:
        raise ValueError("its manifest differs from the one that was written")
    path = str(manager.directory / str(step) / "state") + "/"
    base = {"driver": "file", "path": path}
    index = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    there = {key.decode().rpartition("/")[0] for key in index.list().result()}
    missing = sorted(manifest["digests"].keys() - there)
    if missing:
        raise ValueError(f"{len(missing)} arrays are missing, including {missing[0]}")


def read_step(
    manager: ocp.CheckpointManager, run_dir: Path, step: int, state: Any
) -> tuple[Any, Manifest]:
    """Restores the state and the manifest of checkpoint `step`.

    Args:
      manager: the manager of the checkpoints.
      run_dir: the run directory, for error messages.
      step: the step of the checkpoint.
      state: orbax's arguments for restoring the state.

    Raises:
      CheckpointError: if the checkpoint is damaged, even by one bit, or does not fit
        `state`.
    """
    try:
        items = ocp.args.Composite(state=state, manifest=ocp.args.JsonRestore())
        restored = manager.restore(step, args=items)
        manifest = restored["manifest"]
        if manifest["sha256"] != manifest_sha256(manifest) or manifest["step"] != step:
            raise ValueError("its manifest differs from the one that was written")
        for name, digest in digests(restored["state"]).items():
            if manifest["digests"].get(name) != digest:
                raise ValueError(f"the sha256 of {name} does not match")
    except Exception as error:  # orbax raises many exception types
        raise _unfit(run_dir, step, error) from error
    return restored["state"], manifest


def newest(
    run_dir: Path, steps: Iterable[int], read: Callable[[int], Any]
) -> tuple[Any, list[int]]:
    """Returns read(step) for the newest valid step, and the damaged steps after it.

    Raises:
      CheckpointError: if no checkpoint is valid. The message describes the newest
        checkpoint.
    """
    damaged: list[int] = []
    first: CheckpointError | None = None
    for step in sorted(steps, reverse=True):
        try:
            found = read(step)
        except CheckpointError as error:
            first = first or error
            damaged.append(step)
            continue
        if first is not None:
            log.warning("%s; using step %d instead", first, step)
        return found, damaged
    raise first or CheckpointError(f"{run_dir} has no checkpoint yet: train it first")


def _unfit(run_dir: Path, step: int, reason: Any) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {step} of {run_dir} is damaged or belongs to another model: "
        f"{first_line(reason)}"
    )


def _check_fits(
    manager: ocp.CheckpointManager, run_dir: Path, step: int, variables: dict[str, Any]
) -> None:
    """Raises CheckpointError unless a checkpoint's arrays match `variables`.

    All names and shapes must be equal. The check is necessary because orbax's partial
    restore ignores arrays that are missing from the checkpoint or from `variables`.
    """

    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(
            {name: tree[name] for name in variables}
        )
        return {
            ".".join(key.key for key in path): tuple(leaf.shape)
            for path, leaf in leaves
        }

    try:
        with ocp.StandardCheckpointer() as reader:
            metadata = reader.metadata(manager.directory / str(step) / "state")
            metadata = metadata.item_metadata
        if metadata is None:
            raise ValueError("it contains no readable arrays")
        stored = shapes(metadata.tree)
    except Exception as error:  # orbax raises many exception types
        raise _unfit(run_dir, step, error) from error
    expected = shapes(variables)
    differ = sorted(
        name
        for name in stored.keys() | expected.keys()
        if stored.get(name) != expected.get(name)
    )
    if differ:
        name = differ[0]
        raise _unfit(
            run_dir,
            step,
            f"{len(differ)} arrays differ; the first is {name}: "
            f"{stored.get(name, 'missing')} in the checkpoint, "
            f"{expected.get(name, 'missing')} in the model",
        )


class Loaded(NamedTuple):
    """The part of a checkpoint that evaluation needs."""

    variables: dict[str, Any]
    step: int
    data: dict[str, Any]  # identifies the training data; see data.dataset.identify


def _step_of(run_dir: Path, checkpoint: str, steps: list[int]) -> int:
    """Returns the step of `checkpoint`, which is "best" or a number, among `steps`.

    Raises:
      ConfigError: if `checkpoint` is neither.
      CheckpointError: if there is no such checkpoint.
    """
    if checkpoint == "best":
        step = best_step(read_metrics(run_dir), steps)
        if step is None:
            raise CheckpointError(
                f"{run_dir} has no best checkpoint, because none has a validation "
                "accuracy: train with --validation-split"
            )
        return step
    if not checkpoint.isdecimal():
        raise ConfigError(f"checkpoint {checkpoint!r} must be last, best or a step")
    if int(checkpoint) not in steps:
        raise CheckpointError(
            f"{run_dir} has no checkpoint of step {checkpoint}, only of "
            f"{', '.join(map(str, steps))}: choose one of these"
        )
    return int(checkpoint)


def load_variables(
    run_dir: Path,
    checkpoint: str,
    variables: dict[str, Any],
    *,
    averaged: bool = False,
) -> Loaded:
    """Reads the variables of a checkpoint.

    If the last checkpoint is requested but damaged, logs a warning and reads the newest
    valid one.

    Args:
      run_dir: the run directory.
      checkpoint: "last", "best" (by validation accuracy) or a step.
      variables: the result of the model's init, or its shapes from jax.eval_shape.
      averaged: whether to read the moving average; see training/step.py.

    Raises:
      ConfigError: if `checkpoint` is not "last", "best" or a step.
      CheckpointError: if the checkpoint does not exist, is damaged or belongs to
        another model.
    """
    if not (run_dir / CHECKPOINTS).is_dir():
        raise CheckpointError(f"{run_dir} has no checkpoint yet: train it first")
    wanted = {"ema": variables} if averaged else variables
    with reading(run_dir) as manager:
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), wanted
        )
        placed = ocp.checkpoint_utils.construct_restore_args(target)
        part = ocp.args.PyTreeRestore(target, placed, partial_restore=True)

        def read(step: int) -> Loaded:
            _check_fits(manager, run_dir, step, wanted)
            found, manifest = read_step(manager, run_dir, step, part)
            found = found["ema"] if averaged else found
            return Loaded(found, step, manifest["data"])

        steps = sorted(manager.all_steps())
        if not steps or checkpoint == "last":
            found: Loaded = newest(run_dir, steps, read)[0]
            return found
        return read(_step_of(run_dir, checkpoint, steps))
