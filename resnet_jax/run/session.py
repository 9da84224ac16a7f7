"""Context manager for a run, from locking its directory to the end of the run."""

import contextlib
import logging
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

from resnet_jax import hosting
from resnet_jax.config import Config
from resnet_jax.devices import processes
from resnet_jax.devices.mesh import check_batch_size
from resnet_jax.errors import StoppedError, UserError
from resnet_jax.run.directory import check_resumable, claim, newest_step
from resnet_jax.run.run import Run
from resnet_jax.run.signals import Interrupted, Signals

log = logging.getLogger(__name__)


@contextlib.contextmanager
def open_run(cfg: Config) -> Iterator[Run]:
    """Opens a new run in cfg.run.workdir, or resumes the run that is there.

    With several processes, the first one owns the directory; the other processes use
    temporary directories.

    Raises:
      ConfigError: if the directory cannot be written, is in use, contains other files,
        or contains a run with another configuration; or if a device is not available.
      StoppedError: if a signal stopped the run. All completed steps have been saved.
    """
    with contextlib.ExitStack() as stack:
        workdir = run_dir = Path(cfg.run.workdir)
        if not processes.is_first():
            run_dir = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        run: Run | None = None
        try:
            stack.enter_context(claim(run_dir))
            signals = stack.enter_context(Signals())
            overridden = check_resumable(cfg, run_dir)
            run = Run(cfg, run_dir, signals, overridden)
            check_batch_size(
                cfg.data.batch_size, run.mesh.size, cfg.devices.grad_accum_steps
            )
            try:
                with run:
                    yield run
                if processes.is_first() and run.progress.times:
                    command = [*hosting.invocation("evaluate"), str(workdir)]
                    log.info("done:     evaluate with `%s`", shlex.join(command))
            except Interrupted:
                name = signals.received.name if signals.received else "a signal"
                place = _place(run)
                where = (
                    f", saved at step {place}; the same command resumes it"
                    if place
                    else " before its first step; the same command starts it again"
                )
                raise StoppedError(f"{workdir}: stopped by {name}{where}") from None
        except UserError as error:
            if run is not None and run.is_training:
                processes.keep_apart(error)
            raise


def _place(run: Run) -> str:
    """Returns the last saved step, such as "5 of 10", or "" before the first step."""
    step, total = newest_step(run.dir), run.progress.total_steps
    if not processes.is_first():  # the others stop only after the first one has saved
        step = run.progress.step
    if not step:
        return ""
    return f"{step} of {total}" if total else f"{step}"
