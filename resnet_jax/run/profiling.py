"""A JAX profiler trace of some training steps."""

from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

_BEFORE = 5  # steps of this process: what is slow only once is over by then
_LEAST = 5  # steps that are traced; more where one call does more


class Trace:
    """The trace, left in `directory`, of the sixth to tenth step after `step`.

    It begins and ends between two calls, which may do many steps: with 20 for each it
    is of the second one's.
    """

    def __init__(self, directory: Path, step: int) -> None:
        self._directory = directory
        self._due = step + _BEFORE  # the step to begin after, and then to end after
        self._begun: int | None = None  # the step after which it began
        self._running = False

    def step(self, step: int, state: Any) -> None:
        """Begins or ends after `step`, whose `state` it then waits for."""
        is_over = self._begun is not None and not self._running
        if is_over or step < self._due:
            return
        jax.block_until_ready(state)
        if self._begun is None:
            jax.profiler.start_trace(str(self._directory))
            self._running = True
            self._begun, self._due = step, step + _LEAST
        else:
            self.close()
            tqdm.write(
                f"profile of steps {self._begun + 1} to {step} in {self._directory}"
            )

    def close(self) -> None:
        """Ends a trace that its run did not outlast."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
