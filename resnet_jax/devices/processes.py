"""Connects the processes of a run, and shares values and errors among them."""

import contextlib
import importlib.util
import itertools
import json
import logging
import os
from collections.abc import Iterator, Mapping
from glob import glob
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from resnet_jax.config import DevicesConfig
from resnet_jax.devices import platform
from resnet_jax.errors import ConfigError, UserError, first_line

_MESSAGE = 1024  # size in bytes of an error message sent between processes
_PATIENCE = 3600  # maximum wait, in seconds, while another process prepares data
_barriers = itertools.count()  # gives barriers the same names in all processes


def detect(environ: Mapping[str, str]) -> str | None:
    """Returns the name of the launcher that started this run's processes, or None."""
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    if all(name in environ for name in slurm):
        if int(environ.get("SLURM_STEP_NUM_TASKS", environ.get("SLURM_NTASKS", 1))) > 1:
            return "Slurm"
    if int(environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return "Open MPI"
    if "," in environ.get("TPU_WORKER_HOSTNAMES", ""):
        return "Cloud TPU"
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environ.keys():
        return "Kubernetes"
    # On a TPU virtual machine, the number of processes is not yet known here.
    has_tpu = glob("/dev/accel*") or glob("/dev/vfio/*")
    if has_tpu and importlib.util.find_spec("libtpu") is not None:
        return "Cloud TPU"
    return None


@contextlib.contextmanager
def start(cfg: DevicesConfig) -> Iterator[None]:
    """Context manager that configures JAX and connects processes according to `cfg`.

    An error in one process is raised in all processes unless keep_apart marked it.

    Raises:
      ConfigError: if the devices or the other processes are not available.
    """
    with platform.configured(cfg), joined(cfg):
        try:
            yield
        except UserError as error:
            if not is_shared(error) and "is_apart" not in error.__dict__:
                agree(error)
            raise


@contextlib.contextmanager
def joined(cfg: DevicesConfig) -> Iterator[None]:
    """Context manager that connects this process to the others, if there are any.

    The processes are specified by `cfg` or by a launcher; with num_processes=1, this
    process runs alone. Only the first process prints and logs. The context must be
    entered before JAX uses its devices.

    Raises:
      ConfigError: if the fields of `cfg` or the environment variables are incomplete,
        or if the other processes cannot be reached.
    """
    by_hand = (cfg.coordinator, cfg.num_processes, cfg.process_id)
    if cfg.num_processes == 1 or jax.distributed.is_initialized():
        yield
        return
    if not cfg.distributed and by_hand == (None, None, None):
        if detect(os.environ) is None:
            yield
            return
    # The run handles SIGTERM itself, so JAX must not install a handler of its own.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(*by_hand)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"this process cannot join the others ({first_line(error)[:150]}): pass "
            "--coordinator HOST:PORT --num-processes N --process-id I, or "
            "--num-processes 1 to run a single process"
        ) from None
    with contextlib.ExitStack() as stack:
        if not is_first():
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            logging.getLogger("resnet_jax").setLevel(logging.ERROR)
        try:
            yield
        except UserError as error:
            if is_shared(error):
                jax.distributed.shutdown()
            raise
        jax.distributed.shutdown()


def keep_apart(error: UserError) -> None:
    """Marks `error` as not to be shared, because other processes are busy computing."""
    error.__dict__["is_apart"] = True


def is_first() -> bool:
    """Returns whether this process is the one that writes results."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def is_alone() -> bool:
    """Returns whether this is the only process."""
    return not jax.distributed.is_initialized() or jax.process_count() == 1


def wait() -> None:
    """Waits until all processes have called this function.

    Without this barrier, a slow process would make the first collective operation time
    out after half a minute.
    """
    if not is_alone():
        everyone = set(range(jax.process_count()))
        name = f"resnet_jax-{next(_barriers)}"
        multihost.sync_global_processes(name, timeout=_PATIENCE, processes=everyone)


def any_process(value: bool) -> bool:
    """Returns whether `value` is true in any process; every process must call this."""
    if is_alone():
        return value
    return bool(multihost_utils.process_allgather(np.array(value)).any())


def agree(error: UserError | None = None) -> None:
    """Waits until all processes have called this function, and shares their errors.

    Raises:
      UserError: if any process passed an error. Every process then raises it.
    """
    if is_alone():
        if error is not None:
            raise error
        return
    wait()
    text = b"" if error is None else _to_bytes(error)
    mine = np.zeros(_MESSAGE, np.uint8)
    mine[: len(text)] = np.frombuffer(text, np.uint8)
    for theirs in multihost_utils.process_allgather(mine).reshape(-1, _MESSAGE):
        text = theirs.tobytes().rstrip(b"\0")
        if text:
            raise _shared(text, error)


def _to_bytes(error: UserError) -> bytes:
    """Encodes an error in fewer than _MESSAGE bytes, to be decoded by _shared."""
    message = str(error)[:_MESSAGE]
    # An escape sequence has up to six bytes and must not be cut in two.
    while len(text := json.dumps([error.exit_code, message])) >= _MESSAGE:
        message = message[:-1]
    return text.encode("ascii")


def _shared(text: bytes, own: UserError | None) -> UserError:
    exit_code, message = json.loads(text)
    error = own or UserError(f"{message} (in another process)")
    error.exit_code = exit_code if own is None else own.exit_code
    error.__dict__["is_shared"] = True
    return error


def is_shared(error: UserError) -> bool:
    """Returns whether the other processes raise `error` as well."""
    found: bool = error.__dict__.get("is_shared", False)
    return found


def from_first(tree: Any) -> Any:
    """Returns the first process's `tree` of arrays.

    The arrays must have the same shapes in all processes.
    """
    return tree if is_alone() else multihost_utils.broadcast_one_to_all(tree)


def json_from_first(value: Any) -> Any:
    """Returns the first process's `value`, which must be JSON-serializable."""
    if is_alone():
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(from_first(np.array(len(text))))
    mine = text if is_first() else np.zeros(size, np.uint8)
    return json.loads(np.asarray(from_first(mine)).tobytes().decode())
