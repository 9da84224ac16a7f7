"""How JAX is to compute: the same bits each time, or with a look-out for NaNs."""

import contextlib
import os
from collections.abc import Iterator

import jax

from resnet_jax.errors import NonFiniteLossError


@contextlib.contextmanager
def configured(*, deterministic: bool, debug_nans: bool) -> Iterator[None]:
    """A context in which JAX computes so.

    Args:
      deterministic: a GPU takes algorithms that give the same bits each time, which
        others need not. Said to XLA, so it must come before JAX's first array.
      debug_nans: a NaN stops the program at the operation that made it; slow.

    Raises:
      NonFiniteLossError: debug_nans found one; it names the operation.
    """
    before = os.environ.get("XLA_FLAGS")
    if deterministic:
        flags = f"{before or ''} --xla_gpu_deterministic_ops=true"
        os.environ["XLA_FLAGS"] = flags.strip()
    try:
        with jax.debug_nans(debug_nans):
            yield
    except FloatingPointError as error:
        if not debug_nans:
            raise
        raise NonFiniteLossError(
            f"{_reason(error)}: the first NaN is made there; try a smaller --lr"
        ) from error
    finally:
        if deterministic:
            os.environ.pop("XLA_FLAGS")
            if before is not None:
                os.environ["XLA_FLAGS"] = before


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
