"""The seconds of training, and apart from them those of compilation."""

import time
from typing import Any

import jax


class CompileClock:
    """Counts the seconds in which JAX traced, lowered or compiled in this process."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []  # disjoint, in order
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            end = time.monotonic()
            start = end - duration
            # An event comes at its end: one that contains others comes after them.
            while self._spans and self._spans[-1][0] >= start:
                self._spans.pop()
            if self._spans:
                start = max(start, self._spans[-1][1])
            self._spans.append((start, end))

    def seconds_since(self, start: float) -> float:
        """Of the time from `start` on, a reading of time.monotonic()."""
        spans = [(max(begin, start), end) for begin, end in self._spans]
        return sum((end - begin for begin, end in spans if end > begin), 0.0)


# JAX keeps listeners for good, so one serves the whole process.
compile_clock = CompileClock()


class Stopwatch:
    """Seconds from its making to `stop`, those of compilation apart."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def stop(self) -> tuple[float, float]:
        """(seconds without compilation, seconds of compilation)."""
        compiling = compile_clock.seconds_since(self._start)
        return time.monotonic() - self._start - compiling, compiling
