"""SIGINT and SIGTERM, remembered until it is safe to stop."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def noted() -> Iterator[list[signal.Signals]]:
    """A list that receives the first SIGINT or SIGTERM; a second one acts at once.

    Outside the main thread, where Python delivers no signals, the list stays empty.
    """
    received: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))
        restore()

    before = {number: signal.getsignal(number) for number in _NUMBERS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in _NUMBERS:
        signal.signal(number, note)
    try:
        yield received
    finally:
        restore()


_NUMBERS = (signal.SIGINT, signal.SIGTERM)
