"""How and where JAX is to compute, and what it keeps of its compiling."""

import contextlib
import hashlib
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


@contextlib.contextmanager
def configured(cfg: DevicesConfig) -> Iterator[None]:
    """A context in which JAX computes as `cfg` says, and compiled programs are kept.

    With `deterministic`, a GPU takes algorithms that give the same bits each time; that
    is said to XLA, so it must come before JAX's first array.

    Raises:
      NonFiniteLossError: debug_nans found one; it names the operation.
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
            f"{_reason(error)}: the first NaN is made there; try a smaller --lr"
        ) from error
    finally:
        if cfg.deterministic:
            os.environ.pop("XLA_FLAGS")
            if before is not None:
                os.environ["XLA_FLAGS"] = before


def prepare(platform: str | None, num_devices: int | None) -> None:
    """Asks JAX for a platform, so many devices where they are CPUs, and a cache.

    Does nothing once JAX has begun to use its devices: mesh.make_mesh then tells.
    """
    with contextlib.suppress(RuntimeError):
        if platform is not None:
            jax.config.update("jax_platforms", platform)
        if num_devices is not None:
            jax.config.update("jax_num_cpu_devices", num_devices)
    _keep_compiled()


def _keep_compiled() -> None:
    """Has JAX keep compiled programs in the user's cache, unless told where or not to.

    Whoever can write there can have this user run any program: it is nobody else's.
    """
    if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    try:
        # Programs for CPUs are for those of one kind, and homes are shared.
        directory = cache_dir() / f"xla-{_cpu_kind()}"
        make_private(directory)
        directory = directory.resolve()
        status, exposed = directory.stat(), _exposed(directory)
    except OSError as error:
        where = error.filename or "a cache"
        log.warning("compiled programs are not kept: %s: %s", where, error.strerror)
        return
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        log.warning("%s is not used: others could write there; chmod 700", directory)
        return
    if exposed is not None:
        log.warning(
            "%s is not used: others could write in %s; chmod go-w, or set "
            "RESNET_JAX_CACHE",
            directory,
            exposed,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(directory))
    # JAX leaves out what compiles in less than a second, as most programs of a small
    # network do, each time that a run begins.
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _exposed(directory: Path) -> Path | None:
    """The folder above `directory` in which others could put one in its place."""
    for folder in directory.parents:
        status = folder.stat()
        # In a sticky one, as /tmp is, nobody renames what is another's.
        is_open = status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX
        if is_open or status.st_uid not in (os.getuid(), 0):
            return folder
    return None


def _cpu_kind() -> str:
    """A name for processors with the same instructions."""
    found = machine.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = [line for line in lines if line.startswith(("flags", "Features"))]
        found += " ".join(sorted(set(flags)))
    return hashlib.sha256(found.encode()).hexdigest()[:8]


def _reason(error: FloatingPointError) -> str:
    """JAX's first sentence, and the line of ours that asked for the operation."""
    where = ""
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if f"{os.sep}resnet_jax{os.sep}" in code.co_filename:
            where = f" ({os.path.basename(code.co_filename)}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return str(error).strip().splitlines()[0].split(". ")[0].rstrip(".") + where
