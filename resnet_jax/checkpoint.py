"""A run's checkpoints: orbax's store, and what is kept of it and read from it."""

import contextlib
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from resnet_jax.errors import CheckpointError, ConfigError

CHECKPOINTS = "checkpoints"  # the folder in the run directory


def _best(scores: dict[str, float]) -> float:
    return scores["val_accuracy"]


def make_manager(run_dir: Path, keep: int | None = None) -> ocp.CheckpointManager:
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
    return ocp.CheckpointManager((run_dir / CHECKPOINTS).absolute(), options=options)


def restore(
    manager: ocp.CheckpointManager, run_dir: Path, step: int, **items: Any
) -> Any:
    """`items`, orbax's restore arguments by name, of checkpoint `step`.

    Raises:
      CheckpointError: it is damaged, or does not fit them.
    """
    try:
        return manager.restore(step, args=ocp.args.Composite(**items))
    except Exception as error:  # orbax raises of every kind
        raise _unfit(run_dir, step, error) from error


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
    run_dir: Path, checkpoint: str, variables: dict[str, Any]
) -> tuple[dict[str, Any], int]:
    """(variables, step) of a checkpoint: "last", "best" or a step.

    Args:
      variables: what the model's init gives, or its shapes (jax.eval_shape).

    Raises:
      ConfigError: `checkpoint` is none of those.
      CheckpointError: no such checkpoint, a damaged one, or one of another model.
    """
    if not (run_dir / CHECKPOINTS).is_dir():
        raise CheckpointError(f"{run_dir} has no checkpoint yet: train it first")
    with contextlib.closing(make_manager(run_dir)) as manager:
        steps = sorted(manager.all_steps())
        if not steps:
            raise CheckpointError(f"{run_dir} has no checkpoint yet: train it first")
        if checkpoint == "last":
            step = steps[-1]
        elif checkpoint == "best":
            scored = [s for s in steps if manager.metrics(s)]
            if not scored:
                raise CheckpointError(
                    f"{run_dir} has no best checkpoint: best is by validation "
                    "accuracy, so train with --validation-split"
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
        _check_fits(run_dir, step, variables)
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), variables
        )
        placed = ocp.checkpoint_utils.construct_restore_args(target)
        restored = restore(
            manager,
            run_dir,
            step,
            state=ocp.args.PyTreeRestore(target, placed, partial_restore=True),
        )
        return restored["state"], step
