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
    try:
        return manager.restore(step, args=ocp.args.Composite(**items))
    except Exception as error:  # orbax raises of every kind
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise CheckpointError(
            f"checkpoint {step} of {run_dir} is damaged or of another model: "
            f"{reason[:200]}"
        ) from error


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
