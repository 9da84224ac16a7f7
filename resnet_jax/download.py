"""Downloads files atomically and verifies them."""

import math
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pooch
import requests
from tqdm import tqdm

from resnet_jax.errors import DataError, first_line
from resnet_jax.files import file_digest, make_private

MIN_RATE = 200e3  # bytes per second


class _TooSlow(Exception):
    """Raised if a download is too slow; the argument is the rate in bytes/second."""


class _Progress(tqdm):  # type: ignore[misc]
    """A progress bar that aborts a download slower than `min_rate` bytes per second.

    The rate is averaged over `window` seconds. A download that would finish within
    another window is not aborted.
    """

    def __init__(self, name: str, min_rate: float, window: float) -> None:
        super().__init__(
            desc=name, unit="B", unit_scale=True, unit_divisor=1024, disable=None
        )
        self._min_rate, self._window = min_rate, window
        self._since, self._bytes, self.received = time.monotonic(), 0, 0

    def __bool__(self) -> bool:
        return True  # pooch evaluates bool(bar), for which tqdm needs the total

    def update(self, n: float | None = 1) -> bool | None:
        self._bytes += int(n or 0)
        self.received += int(n or 0)
        now = time.monotonic()
        if now - self._since >= self._window:
            rate = self._bytes / (now - self._since)
            left = (self.total or math.inf) - self.received
            if rate < self._min_rate and left > rate * self._window:
                raise _TooSlow(rate)
            self._since, self._bytes = now, 0
        found: bool | None = super().update(n)
        return found


def answers(probe: Callable[[], object], seconds: float) -> bool:
    """Returns whether `probe` succeeds within `seconds`, even if name servers hang."""
    done = threading.Event()

    def call() -> None:
        try:
            probe()
        except Exception:
            return
        done.set()

    # Use a daemon thread, because name resolution cannot be interrupted.
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    return done.is_set()


def fetch(
    url: str,
    digest: str,
    path: Path,
    *,
    timeout: float = 10.0,
    min_rate: float = MIN_RATE,
    window: float = 15.0,
) -> None:
    """Downloads `url` to `path`, which appears only when it is complete and verified.

    Args:
      digest: the sha256 of the file, the first digits of the sha256, or "md5:DIGEST";
        "" leaves verification to the caller.
      timeout: number of seconds without a connection or data after which the download
        is aborted.
      min_rate: minimum rate in bytes per second, averaged over `window` seconds. A
        slower download is aborted unless the rest would arrive within another window.
        0 allows any rate.

    Raises:
      DataError: if the host is unreachable, stalls or is too slow, or if the file does
        not match the digest.
    """
    host = urlsplit(url).netloc
    _check_answers(url, host, timeout)
    pooch.get_logger().setLevel("WARNING")
    make_private(path.parent)
    try:
        with (
            tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as scratch,
            _Progress(path.name, min_rate, window) as progress,
        ):
            whole = pooch.retrieve(
                url,
                known_hash=None,  # the expected digest may be a prefix
                fname=path.name,
                path=scratch,
                downloader=pooch.HTTPDownloader(
                    progressbar=progress, chunk_size=2**12, timeout=timeout
                ),
            )
            if not _matches(Path(whole), digest):
                raise DataError(
                    f"{host} sent a file that is not {path.name}: its digest is wrong"
                )
            Path(whole).replace(path)
    except _TooSlow as error:
        (rate,) = error.args
        raise DataError(
            f"{host} is too slow: it sends less than {min_rate / 1e3:g} kB/s "
            f"({rate / 1e3:.0f} kB/s)"
        ) from None
    except requests.RequestException as error:
        raise DataError(
            f"{host} interrupted the download after {progress.received / 1e6:.1f} MB "
            f"({_reason(error)})"
        ) from None


def _matches(path: Path, digest: str) -> bool:
    algorithm, _, expected = digest.rpartition(":")
    return file_digest(path, algorithm or "sha256").startswith(expected)


def _check_answers(url: str, host: str, timeout: float) -> None:
    """Raises DataError if the host does not answer within `timeout` seconds."""
    reasons = [f"no answer within {timeout:g} seconds"]

    def probe() -> None:
        try:
            # Redirects count as answers: their targets may accept only GET.
            requests.head(url, timeout=timeout).raise_for_status()
        except requests.RequestException as error:
            reasons.append(_reason(error))
            raise

    if not answers(probe, timeout):
        raise DataError(f"{host} cannot be reached ({reasons[-1]})")


def _reason(error: requests.RequestException) -> str:
    """Returns why a request failed: the HTTP status, or the type of the error."""
    if error.response is None:
        return type(error).__name__
    return first_line(f"{error.response.status_code} {error.response.reason}")
