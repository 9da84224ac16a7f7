"""Handles SIGINT, SIGTERM and SIGHUP without losing completed steps."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Self

from resnet_jax.errors import StoppedError, UserError
from resnet_jax.hosting import owns_process

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# `timeout` signals a process and then its group, and systemd can add SIGHUP to SIGTERM.
# Signals within this many seconds of the first one count as one.
_APART = 0.5


class Interrupted(BaseException):
    """A request to stop, raised at a point where stopping is safe.

    This is not a subclass of Exception, so that libraries do not catch it as a failure.
    """


def exit_code(error: object) -> int:
    """Returns the exit code of a command that ends with `error`, or 0 if it is None."""
    if isinstance(error, Interrupted):
        return StoppedError.exit_code
    return error.exit_code if isinstance(error, UserError) else int(error is not None)


def _is_ignored(number: signal.Signals) -> bool:
    return signal.getsignal(number) is signal.SIG_IGN


class Signals:
    """Records the first signal inside a context; a later one ends the process.

    In a process that belongs to another program, such as Jupyter, a later signal
    raises KeyboardInterrupt. Python delivers all signals to the main thread; in other
    threads, the context does nothing.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._first = 0.0  # time of the first signal
        self._at_once = False
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _NUMBERS:
                if number == signal.SIGHUP and _is_ignored(number):
                    continue  # nohup makes the process ignore SIGHUP
                before = signal.signal(number, self._note)
                self._stack.callback(signal.signal, number, before)
            self._watch()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._first = signal.Signals(number), now
        elif now - self._first >= _APART and not owns_process():
            raise KeyboardInterrupt
        if self._at_once:
            raise Interrupted

    def _watch(self) -> None:
        """Ends the process on a later signal, even during compilation.

        Python runs signal handlers between bytecode instructions, and a whole
        compilation happens within one instruction. However, Python immediately writes
        the signal's number to a socket, from which another thread reads it.
        """
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

        def count() -> None:
            first: float | None = None
            with reader:
                while number := reader.recv(1):
                    if number[0] not in _NUMBERS:
                        continue
                    now = time.monotonic()
                    first = now if first is None else first
                    if now - first >= _APART and owns_process():
                        os._exit(130)

        def close() -> None:
            signal.set_wakeup_fd(before)
            writer.close()

        self._stack.callback(close)
        threading.Thread(target=count, daemon=True).start()

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Raises Interrupted if a signal has arrived or arrives in this context."""
        if self.received:
            raise Interrupted
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False
