"""A JAX profiler trace of some training steps."""

from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

_STEPS = (5, 10)  # of this process, from and to: what is slow only once is over by then


class Trace:
    """The trace, left in `directory`, of the fifth to tenth step after `step`."""

    def __init__(self, directory: Path, step: int) -> None:
        self._directory = directory
        self._begin, self._end = (step + offset for offset in _STEPS)
        self._running = False

    def step(self, step: int, state: Any) -> None:
        """Begins or ends after `step`, whose `state` it then waits for."""
        if step == self._begin:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._directory))
            self._running = True
        elif step == self._end:
            jax.block_until_ready(state)
            self.close()
            tqdm.write(
                f"profile of steps {self._begin + 1} to {self._end} in "
                f"{self._directory}"
            )

    def close(self) -> None:
        """Ends a trace that its run did not outlast."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
