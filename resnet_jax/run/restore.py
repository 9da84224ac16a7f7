"""A run's checkpoints: orbax's store, and what is kept of it and read from it."""

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from resnet_jax.devices import processes
from resnet_jax.errors import CheckpointError, ConfigError
from resnet_jax.run.directory import CHECKPOINTS
from resnet_jax.run.logs import Record, read_metrics

log = logging.getLogger(__name__)

# Of several processes the first writes, and the others do not wait for it.
_ALONE: dict[str, Any] = {}
_FIRST: dict[str, Any] = {
    "create": False,
    "multiprocessing_options": ocp.options.MultiprocessingOptions(
        primary_host=0, active_processes={0}, barrier_sync_key_prefix="first"
    ),
}

Best = Callable[[Iterable[int]], int | None]  # of some steps, the best
Manifest = dict[str, Any]  # what lies beside the arrays, see store.py


class _Keep(policies.PreservationPolicy):
    """The last ones, and the best."""

    def __init__(self, last: int, best: Best) -> None:
        self._last, self._best = last, best

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: Any
    ) -> Sequence[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*sorted(steps)[-self._last :], self._best(steps)}
        return [step in kept for step in steps]


def make_manager(
    run_dir: Path, keep: int | None = None, best: Best | None = None
) -> ocp.CheckpointManager:
    """orbax's manager, to read; or to write, keeping the last `keep` and the best."""
    if keep is not None and not processes.is_alone():
        (run_dir / CHECKPOINTS).mkdir(exist_ok=True)  # which orbax will not for one
    options = ocp.CheckpointManagerOptions(
        read_only=keep is None,
        cleanup_tmp_directories=keep is not None,
        preservation_policy=_Keep(keep, best) if keep and best else policies.LatestN(),
        **_ALONE if processes.is_alone() else _FIRST,
    )
    return ocp.CheckpointManager((run_dir / CHECKPOINTS).absolute(), options=options)


def best_step(
    records: Iterable[Record], among: Iterable[int] | None = None
) -> int | None:
    """The step of the best validation accuracy, `among` these; None without any."""
    scores = {r["step"]: r["val_accuracy"] for r in records if "val_accuracy" in r}
    steps = scores.keys() if among is None else scores.keys() & set(among)
    return max(sorted(steps), key=lambda step: scores[step], default=None)


def digests(tree: Any) -> dict[str, str]:
    """The sha256 of each array of `tree`, its type and shape included, by its path."""

    def digest(leaf: Any) -> str:
        array = np.asarray(leaf)
        found = hashlib.sha256(f"{array.dtype} {array.shape} ".encode())
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        return found.hexdigest()

    return {
        jax.tree_util.keystr(path, simple=True, separator="."): digest(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    }


def seal(manifest: Manifest) -> Manifest:
    """`manifest` with a sha256 of its own."""
    return {**manifest, "sha256": _sha256(manifest)}


def _sha256(manifest: Manifest) -> str:
    text = json.dumps({k: v for k, v in manifest.items() if k != "sha256"})
    return hashlib.sha256(text.encode()).hexdigest()


def restore(
    manager: ocp.CheckpointManager, run_dir: Path, step: int, state: Any
) -> tuple[Any, Manifest]:
    """What orbax's restore arguments `state` say of checkpoint `step`; its manifest.

    Raises:
      CheckpointError: it is damaged, by a bit even, or does not fit them.
    """
    try:
        items = ocp.args.Composite(state=state, manifest=ocp.args.JsonRestore())
        restored = manager.restore(step, args=items)
        manifest = restored["manifest"]
        if manifest["sha256"] != _sha256(manifest) or manifest["step"] != step:
            raise ValueError("its manifest is not what was written")
        for name, digest in digests(restored["state"]).items():
            if manifest["digests"].get(name) != digest:
                raise ValueError(f"{name} is not what was written, by its sha256")
    except Exception as error:  # orbax raises of every kind
        raise _unfit(run_dir, step, error) from error
    return restored["state"], manifest


def newest(
    run_dir: Path, steps: Iterable[int], read: Callable[[int], Any]
) -> tuple[Any, list[int]]:
    """read(step) of the last of `steps` that is sound, and the damaged ones after it.

    Raises:
      CheckpointError: none is sound; it tells of the last.
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
            log.warning("%s: skipped, step %d is used", first, step)
        return found, damaged
    raise first or CheckpointError(f"{run_dir} has no checkpoint yet: train it first")


def _unfit(run_dir: Path, step: int, reason: Any) -> CheckpointError:
    reason = (str(reason).strip() or repr(reason)).splitlines()[0]
    return CheckpointError(
        f"checkpoint {step} of {run_dir} is damaged or of another model: {reason[:200]}"
    )


def _check_fits(run_dir: Path, step: int, variables: dict[str, Any]) -> None:
    """Raises CheckpointError unless the checkpoint has just these names and shapes.

    orbax's partial restore passes over what is missing on either side.
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
            path = (run_dir / CHECKPOINTS / str(step) / "state").absolute()
            metadata = reader.metadata(path).item_metadata
        if metadata is None:
            raise ValueError("no arrays can be read from it")
        stored = shapes(metadata.tree)
    except Exception as error:  # orbax raises of every kind
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
            f"{len(differ)} arrays differ, the first {name}: "
            f"{stored.get(name, 'missing')} there, {expected.get(name, 'none')} here",
        )


def load_variables(
    run_dir: Path,
    checkpoint: str,
    variables: dict[str, Any],
    *,
    averaged: bool = False,
) -> tuple[dict[str, Any], int]:
    """(variables, step) of a checkpoint: "last", "best" or a step.

    Of "last", a damaged one is named and the one before it is taken.

    Args:
      variables: what the model's init gives, or its shapes (jax.eval_shape).
      averaged: those of the state's moving average, see training.average.

    Raises:
      ConfigError: `checkpoint` is none of those.
      CheckpointError: no such checkpoint, a damaged one, or one of another model.
    """
    if not (run_dir / CHECKPOINTS).is_dir():
        raise CheckpointError(f"{run_dir} has no checkpoint yet: train it first")
    wanted = {"ema": variables} if averaged else variables
    with contextlib.closing(make_manager(run_dir)) as manager:
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), wanted
        )
        placed = ocp.checkpoint_utils.construct_restore_args(target)
        part = ocp.args.PyTreeRestore(target, placed, partial_restore=True)

        def read(step: int) -> tuple[dict[str, Any], int]:
            _check_fits(run_dir, step, wanted)
            found = restore(manager, run_dir, step, part)[0]
            return found["ema"] if averaged else found, step

        steps = sorted(manager.all_steps())
        if not steps or checkpoint == "last":
            return newest(run_dir, steps, read)[0]
        if checkpoint == "best":
            step = best_step(read_metrics(run_dir), steps)
            if step is None:
                raise CheckpointError(
                    f"{run_dir} has no best checkpoint: best is by validation "
                    "accuracy, so train with --validation-split"
                )
        elif checkpoint.isdecimal():
            step = int(checkpoint)
        else:
            raise ConfigError(f"checkpoint {checkpoint!r}: last, best or a step")
        if step not in steps:
            raise CheckpointError(
                f"{run_dir} has no checkpoint of step {step}: "
                f"it has {', '.join(map(str, steps))}"
            )
        return read(step)
