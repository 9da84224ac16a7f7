"""Configures JAX's platform, determinism and compilation cache."""

import contextlib
import hashlib
import importlib.metadata
import logging
import os
import platform as machine
import stat
from collections.abc import Iterator
from pathlib import Path

import jax

from resnet_jax.config import DevicesConfig
from resnet_jax.errors import NonFiniteLossError
from resnet_jax.files import cache_dir, make_private

log = logging.getLogger(__name__)

_NVIDIA = ("/dev/nvidia0", "/proc/driver/nvidia")  # present if a driver is installed


@contextlib.contextmanager
def configured(cfg: DevicesConfig) -> Iterator[None]:
    """Context manager that configures JAX and its compilation cache.

    With `deterministic`, GPUs use algorithms that are reproducible bit for bit. The
    option sets an XLA flag, so the context must be entered before JAX creates its first
    array.

    Raises:
      NonFiniteLossError: if debug_nans finds a NaN; the message names the operation.
    """
    before = os.environ.get("XLA_FLAGS")
    if cfg.deterministic:
        flags = f"{before or ''} --xla_gpu_deterministic_ops=true"
        os.environ["XLA_FLAGS"] = flags.strip()
    prepare(cfg.platform, cfg.devices)
    try:
        with jax.debug_nans(cfg.debug_nans):
            yield
    except FloatingPointError as error:
        if not cfg.debug_nans:
            raise
        raise NonFiniteLossError(
            f"{_reason(error)}: this operation produced the first NaN; try a "
            "smaller --lr"
        ) from error
    finally:
        if cfg.deterministic:
            os.environ.pop("XLA_FLAGS")
            if before is not None:
                os.environ["XLA_FLAGS"] = before


def prepare(platform: str | None, num_devices: int | None) -> None:
    """Configures JAX's platform, number of CPU devices and compilation cache.

    The platform and the number of CPU devices have no effect once JAX has initialized
    its devices; mesh.make_mesh then raises an error if it needs devices that are not
    available.
    """
    with contextlib.suppress(RuntimeError):
        if platform is not None:
            jax.config.update("jax_platforms", platform)
        if num_devices is not None:
            jax.config.update("jax_num_cpu_devices", num_devices)
    _keep_compiled()


def missing_accelerator() -> str:
    """Returns why JAX may not have found an accelerator on this machine."""
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    has_plugin = any("cuda" in plugin.name for plugin in plugins)
    if not any(os.path.exists(path) for path in _NVIDIA):
        if has_plugin:
            return "none: JAX supports CUDA, but no NVIDIA driver was found"
        return (
            "none: run pip install -e '.[cuda]' (NVIDIA GPU) or '.[tpu]' (TPU) in a "
            "checkout to use one"
        )
    if has_plugin:
        return (
            "an NVIDIA GPU that JAX cannot use, although it supports CUDA: --platform "
            "cuda shows the reason"
        )
    return (
        "an NVIDIA GPU, but JAX lacks CUDA support: run pip install -e '.[cuda]' in a "
        "checkout"
    )


def _keep_compiled() -> None:
    """Makes JAX cache compiled programs in the user's cache folder.

    If a cache is already configured, this does nothing. Anyone who can write to the
    folder can make the user run arbitrary programs, so the user must own the folder,
    and nobody else may have access to it.
    """
    if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    try:
        # A compiled program may fail on other kinds of CPUs, and machines with
        # different CPUs may share the home folder.
        directory = cache_dir() / f"xla-{_cpu_kind()}"
        make_private(directory)
        directory = directory.resolve()
        status, exposed = directory.stat(), _exposed(directory)
    except OSError as error:
        where = error.filename or "a cache"
        log.warning(
            "compiled programs are not cached because %s is not available: %s",
            where,
            error.strerror,
        )
        return
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        log.warning(
            "%s is not used because other users can access it: run `chmod 700` on it",
            directory,
        )
        return
    if exposed is not None:
        log.warning(
            "%s is not used because other users can write to %s: run `chmod go-w` "
            "on that parent folder, or set RESNET_JAX_CACHE",
            directory,
            exposed,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(directory))
    # By default, JAX does not cache programs that compile in less than a second, such
    # as most programs of a small network.
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _exposed(directory: Path) -> Path | None:
    """Returns a parent folder that lets other users replace `directory`, or None."""
    for folder in directory.parents:
        status = folder.stat()
        # In a folder with the sticky bit set, such as /tmp, users cannot rename each
        # other's files.
        is_open = status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX
        if is_open or status.st_uid not in (os.getuid(), 0):
            return folder
    return None


def _cpu_kind() -> str:
    """Returns an identifier shared by CPUs with the same instruction set."""
    found = machine.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = [line for line in lines if line.startswith(("flags", "Features"))]
        found += " ".join(sorted(set(flags)))
    return hashlib.sha256(found.encode()).hexdigest()[:8]


def _reason(error: FloatingPointError) -> str:
    """Returns the first sentence of `error` and the failing line in this package."""
    where = ""
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if f"{os.sep}resnet_jax{os.sep}" in code.co_filename:
            where = f" ({os.path.basename(code.co_filename)}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return str(error).strip().splitlines()[0].split(". ")[0].rstrip(".") + where
