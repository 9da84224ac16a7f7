"""A URL and its sha256 to a verified file: whole or not at all."""

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pooch
import requests
from tqdm import tqdm

from resnet_jax.errors import DataError
from resnet_jax.files import check_sha256, make_private


class _TooSlow(Exception):
    pass


class _Progress(tqdm):  # type: ignore[misc]
    """A progress bar that gives up on a download below `min_rate` bytes a second."""

    def __init__(self, name: str, min_rate: float, window: float) -> None:
        super().__init__(
            desc=name, unit="B", unit_scale=True, unit_divisor=1024, disable=None
        )
        self._min_bytes, self._window = min_rate * window, window
        self._since, self._bytes = time.monotonic(), 0

    def __bool__(self) -> bool:
        return True  # to pooch, that there is one; tqdm's asks for the total

    def update(self, n: float | None = 1) -> bool | None:
        self._bytes += int(n or 0)
        now = time.monotonic()
        if now - self._since >= self._window:
            if self._bytes < self._min_bytes:
                raise _TooSlow
            self._since, self._bytes = now, 0
        found: bool | None = super().update(n)
        return found


def answers(probe: Callable[[], object], seconds: float) -> bool:
    """Whether `probe` returns within `seconds`; looking up a name is bounded too."""
    done = threading.Event()

    def call() -> None:
        try:
            probe()
        except Exception:
            return
        done.set()

    # A daemon: where a name server hangs, nothing else could leave it behind.
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    return done.is_set()


def fetch(
    url: str,
    sha256: str,
    path: Path,
    *,
    timeout: float = 10.0,
    min_rate: float = 200e3,
    window: float = 15.0,
) -> None:
    """Downloads `url` to `path`, which appears only when it is whole and verified.

    Args:
      sha256: of the file; its first digits will do.
      timeout: seconds to connect, and of silence that end the download.
      min_rate: bytes per second, averaged over `window` seconds, below which it ends.

    Raises:
      DataError: out of reach, stalled, slower than min_rate, or not the right file.
    """
    host = urlsplit(url).netloc

    def probe() -> None:
        requests.head(url, timeout=timeout, allow_redirects=True).raise_for_status()

    if not answers(probe, timeout):
        raise DataError(f"{host} cannot be reached")
    pooch.get_logger().setLevel("WARNING")
    make_private(path.parent)
    try:
        with (
            tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as scratch,
            _Progress(path.name, min_rate, window) as progress,
        ):
            whole = pooch.retrieve(
                url,
                known_hash=None,  # ours may be a prefix
                fname=path.name,
                path=scratch,
                downloader=pooch.HTTPDownloader(
                    progressbar=progress, chunk_size=2**12, timeout=timeout
                ),
            )
            check_sha256(Path(whole), sha256)
            Path(whole).replace(path)
    except _TooSlow:
        raise DataError(
            f"{host} sends less than {min_rate / 1e3:g} kB a second"
        ) from None
    except requests.RequestException as error:
        raise DataError(f"{host} broke off ({type(error).__name__})") from None
    except DataError:
        raise DataError(f"{host} sent a file that is not {path.name}") from None
