"""Progress on a terminal: a bar, or a clock if the total is unknown.

Either appears on stderr once a wait exceeds one second and is erased when the wait
ends. Neither is shown unless stderr is a terminal.
"""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

log = logging.getLogger(__name__)

T = TypeVar("T")
DELAY = 1.0  # seconds


def bar(
    total: int, what: str, unit: str = "image", *, disable: bool | None = None
) -> "tqdm[Any]":
    """Returns a progress bar over `total` units, as a context manager.

    Args:
      what: the work in progress, such as "decoding train".
      unit: the unit to count; bytes ("B") are shown with SI prefixes.
      disable: True shows nothing; None shows the bar only on a terminal.
    """
    return tqdm(
        total=total,
        desc=what,
        unit=unit,
        unit_scale=unit == "B",
        leave=False,
        delay=DELAY,
        disable=disable,
    )


def over(items: Iterable[T], total: int, what: str, unit: str = "image") -> Iterator[T]:
    """Yields the `total` items in `items` while showing a progress bar."""
    with bar(total, what, unit) as shown:
        for item in items:
            yield item
            shown.update()


def first(what: str, is_first: bool) -> contextlib.AbstractContextManager[None]:
    """Returns a clock if `is_first` is true: compilation delays the first batch."""
    return clock(f"{what}, first batch") if is_first else contextlib.nullcontext()


@contextlib.contextmanager
def clock(what: str) -> Iterator[None]:
    """Shows the time elapsed during `what`, the work inside the context."""
    if not sys.stderr.isatty():
        yield
        return
    begun, is_over = time.time(), threading.Event()

    def show() -> None:
        if is_over.wait(DELAY):
            return
        form, least = "{desc}: {elapsed}", 1e-9  # any delay skips the first display
        with tqdm(desc=what, bar_format=form, leave=False, delay=least) as shown:
            shown.start_t = begun
            shown.refresh()
            while not is_over.wait(1.0):
                shown.refresh()

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@contextlib.contextmanager
def logged(what: str, is_first: bool) -> Iterator[None]:
    """Shows a clock; if `is_first` is true, also logs `what` and how long it took."""
    say = log.info if is_first else log.debug
    begun = time.monotonic()
    say("%s ...", what)
    with clock(what):
        yield
    say("%s took %.0f s", what, time.monotonic() - begun)


class LogHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """A StreamHandler that does not write into a visible progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes `record` above the progress bars."""
        with tqdm.external_write_mode(file=sys.stderr):
            super().emit(record)
