"""Standard streams that may be closed, full, or gone: no work depends on them."""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

from resnet_jax.paths import shown


class Stream:
    """A text stream whose failure is noted, and not raised; what follows is dropped.

    Args:
      is_own: whether its descriptor is this program's to give up.
    """

    def __init__(self, stream: Any, *, is_own: bool = True) -> None:
        self._stream, self._is_own = stream, is_own
        self.failure: OSError | None = None
        # It may not have all characters.
        if is_own and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Writes `text`, where that can be done."""
        with self._noting():
            self._stream.write(shown(text))
        return len(text)

    def flush(self) -> None:
        """Hands on what was written, where that can be done."""
        with self._noting():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self.failure is None and self._is_own:
                # For what is in buffers: at its end Python tries to write that.
                with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
                    os.dup2(nowhere.fileno(), self._stream.fileno())
            self.failure = self.failure or error
        except ValueError:  # it was closed
            self.failure = self.failure or OSError(errno.EBADF, "closed")

    @property
    def is_lost(self) -> bool:
        """Whether somebody misses what was written: not who closed a pipe."""
        return self.failure is not None and self.failure.errno != errno.EPIPE


def open_missing() -> None:
    """Opens what of descriptors 0 to 2 is closed, to nowhere.

    Else the next file that is opened would have the number, and whatever writes to
    standard error, as XLA does, would write into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it has the lowest number that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
