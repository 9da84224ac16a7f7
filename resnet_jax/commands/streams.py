"""Standard streams that can fail or be closed without making the command fail."""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

from resnet_jax.paths import shown


class Stream:
    """A text stream that records its first error instead of raising it.

    Text that is written after the error is dropped.

    Args:
      is_own: whether this program may close the stream's descriptor.
    """

    def __init__(self, stream: Any, *, is_own: bool = True) -> None:
        self._stream, self._is_own = stream, is_own
        self.failure: OSError | None = None
        # The stream's encoding may lack some characters.
        if is_own and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Writes `text` if possible; returns its length."""
        with self._noting():
            self._stream.write(shown(text))
        return len(text)

    def flush(self) -> None:
        """Flushes the stream if possible."""
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
                # Discard the buffered text, which Python would otherwise write at exit.
                with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
                    os.dup2(nowhere.fileno(), self._stream.fileno())
            self.failure = self.failure or error
        except ValueError:  # the stream is closed
            self.failure = self.failure or OSError(errno.EBADF, "closed")

    @property
    def is_lost(self) -> bool:
        """Whether output was lost for a reason other than a closed pipe."""
        return self.failure is not None and self.failure.errno != errno.EPIPE


def open_missing() -> None:
    """Opens /dev/null in place of each closed file descriptor from 0 to 2.

    Otherwise, the next file that is opened would get one of these descriptors, and code
    that writes to standard error, such as XLA, could write to that file.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
