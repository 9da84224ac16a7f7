"""A run of one process or of several: what is made ready for it, and how it ends."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from resnet_jax.config import Config
from resnet_jax.devices import platform as numerics
from resnet_jax.devices import processes
from resnet_jax.devices.mesh import check_batch_size
from resnet_jax.errors import ConfigError, DataError, StoppedError, UserError
from resnet_jax.run import Run
from resnet_jax.run.directory import check_resumable
from resnet_jax.run.lock import claim
from resnet_jax.run.signals import Interrupted, Signals


@contextlib.contextmanager
def open_run(cfg: Config) -> Iterator[Run]:
    """The run in cfg.workdir, begun or to be resumed, computed as cfg.numerics says.

    Of several processes the first has cfg.workdir, the others a folder that goes.

    Raises:
      ConfigError: the directory cannot be written, is in use, holds something else, or
        holds a run of another configuration; devices or processes are not there.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(numerics.configured(**cfg.numerics))
        stack.enter_context(processes.joined(**cfg.processes))
        workdir = run_dir = Path(cfg.workdir)
        if not processes.is_first():
            run_dir = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        run: Run | None = None
        try:
            stack.enter_context(claim(run_dir))
            signals = stack.enter_context(Signals())
            check_resumable(cfg, run_dir)
            run = Run(cfg, run_dir, signals)
            check_batch_size(cfg.batch_size, run.mesh.size, cfg.accumulate)
            try:
                with run:
                    yield run
            except Interrupted:
                name = signals.received.name if signals.received else "a signal"
                where = (
                    f", saved at step {run.place}; the same command goes on from there"
                    if run.place
                    else " before its first step; the same command begins it"
                )
                raise StoppedError(f"{workdir}: stopped by {name}{where}") from None
        except UserError as error:
            apart = run is not None and run.is_training
            if not apart and not processes.is_shared(error):
                processes.agree(error)
            raise


@contextlib.contextmanager
def shared_errors(cfg: Config) -> Iterator[None]:
    """A context, before open_run, in which a DataError of one process is that of all.

    What is wrong with the command each finds out for itself, without the others.
    """
    try:
        yield
    except DataError as error:
        with contextlib.ExitStack() as stack:
            if not cfg.summary:
                stack.enter_context(contextlib.suppress(ConfigError))
                stack.enter_context(numerics.configured(**cfg.numerics))
                stack.enter_context(processes.joined(**cfg.processes))
                processes.agree(error)
        raise
