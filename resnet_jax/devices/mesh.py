"""The device mesh, and the sharding of batches and states."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from resnet_jax import limits
from resnet_jax.errors import ConfigError

AXIS = "data"  # the only axis of the mesh; the rows of a batch are split along it


def make_mesh(num_devices: int | None = None, platform: str | None = None) -> Mesh:
    """Returns a mesh of all devices, or of the first `num_devices` of each process.

    Raises:
      ConfigError: if this process has fewer than `num_devices` devices, or if the
        platform cannot be used.
    """
    try:
        found = jax.devices(platform)
    except (RuntimeError, AssertionError) as error:  # jax 0.10 raises AssertionError
        reason = (str(error) or "JAX finds no such device here").splitlines()[0]
        # Omit JAX's own advice and its report about backends that were not requested.
        reason = reason.partition(" (set JAX_PLATFORMS")[0].rstrip(".")[:150]
        if "is not in the list of known backends" in reason:
            reason = "JAX finds no such device here"
        name = platform or jax.config.values["jax_platforms"]
        raise ConfigError(
            f"platform {name} cannot be used ({reason}): choose another --platform, or "
            f"install JAX for it{_installation(str(name))}"
        ) from None
    here = [d for d in found if d.process_index == jax.process_index()]
    if num_devices is not None and num_devices > len(here):
        raise ConfigError(
            f"devices {num_devices} is too large: JAX has {len(here)} "
            f"{here[0].platform} device(s) in this process"
        )
    chosen = [
        device
        for process in range(jax.process_count())
        for device in [d for d in found if d.process_index == process][:num_devices]
    ]
    # With an Auto axis, programs are written for the whole batch, and XLA partitions
    # them.
    return Mesh(np.array(chosen), (AXIS,), axis_types=(AxisType.Auto,))


def _installation(platform: str) -> str:
    """Returns a hint on installing JAX for `platform`, or "" if it has no pip extra."""
    extra = {"cuda": "cuda", "gpu": "cuda", "tpu": "tpu"}.get(platform)
    return f" (in a checkout: pip install -e '.[{extra}]')" if extra else ""


def layout(mesh: Mesh) -> dict[str, str]:
    """Returns a dict of the device properties that affect a run's exact results."""
    return {
        "platform": mesh.devices.flat[0].platform,
        "devices": str(mesh.size),
        "processes": str(jax.process_count()),
    }


def check_batch_size(
    batch_size: int, num_devices: int, grad_accum_steps: int = 1
) -> None:
    """Raises ConfigError unless `batch_size` can be split evenly.

    The batch size must be divisible by the number of devices times the number of
    micro-batches.
    """
    parts = num_devices * grad_accum_steps
    if batch_size % parts:
        below = batch_size // parts * parts
        near = min(
            (n for n in (below, below + parts) if n),
            key=lambda n: (abs(n - batch_size), n),
        )
        times = (
            f" times --grad-accum-steps {grad_accum_steps}"
            if grad_accum_steps > 1
            else ""
        )
        raise ConfigError(
            f"batch_size {batch_size} is not divisible by {num_devices} devices"
            f"{times}: the nearest size that is divisible is {near}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns a sharding that places the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def spread(mesh: Mesh, num_rows: int, *, axis: int = 0) -> NamedSharding:
    """Returns a sharding that splits the rows along `axis` over the devices.

    If the rows cannot be split evenly, as in the last batch of an epoch, the sharding
    replicates them, so that each device computes the whole batch. The results are
    then the same as on one device, whereas padding would change BatchNorm's output.
    """
    if num_rows % mesh.size:
        return replicated(mesh)
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))


def local_rows(sharding: NamedSharding, num_rows: int) -> slice:
    """Returns the slice of rows that are on this process's devices."""
    rows = sharding.addressable_devices_indices_map((num_rows,)).values()
    bounds = [part[0].indices(num_rows) for part in rows if part is not None]
    return slice(min(b[0] for b in bounds), max(b[1] for b in bounds))


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Copies `tree`, which must be equal in all processes, to all devices of the mesh.

    The tree may contain PRNG keys.
    """
    everywhere = replicated(mesh)

    def put(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(
            leaf.dtype, jax.dtypes.prng_key
        ):
            found: jax.Array = jax.random.wrap_key_data(put(jax.random.key_data(leaf)))
            return found
        whole = np.array(leaf)
        return jax.make_array_from_callback(whole.shape, everywhere, whole.__getitem__)

    return jax.tree.map(put, tree)


def local(tree: Any) -> Any:
    """Returns the replicated `tree` as arrays on this process's first device."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def local_statistics(
    loss_fn: Callable[..., Any], mesh: Mesh
) -> Callable[..., tuple[jax.Array, tuple[jax.Array, Any]]]:
    """Wraps `loss_fn` (training/step.py) to process each device's rows separately.

    BatchNorm then uses the statistics of those rows, like torch's BatchNorm2d under
    DistributedDataParallel (DDP). The loss and the new running statistics are averaged
    over the devices, whereas DDP keeps the running statistics of the first process.
    """

    def of_part(
        params: Any, batch_stats: Any, images: Any, targets: Any, key: Any
    ) -> Any:
        # This explicit cast is needed: without it, gradients of functions with a custom
        # transpose (linear_map) would not be summed over devices.
        params = jax.lax.pcast(params, AXIS, to="varying")
        own_key = jax.random.fold_in(key, jax.lax.axis_index(AXIS))
        loss, (logits, moved) = loss_fn(params, batch_stats, images, targets, own_key)
        # Average the changes instead of the statistics, so that frozen statistics stay
        # bit-for-bit identical. Gradients are already summed over devices.
        moves = jax.tree.map(jnp.subtract, moved, batch_stats)
        moved = jax.tree.map(jnp.add, batch_stats, jax.lax.pmean(moves, AXIS))
        return jax.lax.pmean(loss, AXIS), (logits, moved)

    rows, whole = PartitionSpec(AXIS), PartitionSpec()
    by_device = jax.shard_map(
        of_part,
        mesh=mesh,
        in_specs=(whole, whole, rows, rows, whole),
        out_specs=(whole, (rows, whole)),
    )

    def of_batch(params: Any, batch_stats: Any, images: Any, *args: Any) -> Any:
        if len(images) % mesh.size:
            raise ConfigError(
                f"no-sync-bn cannot split a batch of {len(images)} images evenly "
                f"across {mesh.size} devices: use --drop-last or --sync-bn"
            )
        return by_device(params, batch_stats, images, *args)

    return of_batch


def fits(num_bytes: int, mesh: Mesh) -> bool:
    """Returns whether each device has room for `num_bytes` beyond what training needs.

    CPU devices share the machine's memory, half of which is reserved for data on the
    host.
    """
    share = limits.memory() / 2 / len(mesh.local_devices)
    rooms = [
        (device.memory_stats() or {}).get("bytes_limit", share)
        for device in mesh.local_devices
    ]
    found: bool = num_bytes <= 0.4 * min(rooms)
    return found
