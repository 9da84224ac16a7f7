import hashlib
import http.server
import threading
import time

import pytest

from resnet_jax import download
from resnet_jax.errors import DataError

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(404 if self.path == "/missing" else 200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        if self.path == "/half":
            self.wfile.write(CONTENT[: len(CONTENT) // 2])
        elif self.path == "/stalls":
            self.wfile.write(CONTENT[: len(CONTENT) // 2])
            self.server.stopping.wait(20)
        elif self.path == "/crawls":
            for start in range(0, len(CONTENT), 2**14):
                self.wfile.write(CONTENT[start : start + 2**14])
                if self.server.stopping.wait(0.2):
                    return
        elif self.path == "/page":
            self.wfile.write(b"x" * len(CONTENT))
        else:
            self.wfile.write(CONTENT)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.stopping = threading.Event()
    server.handle_error = lambda *args: None
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.stopping.set()
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_download_is_verified(server, tmp_path):
    download.fetch(f"{server}/file", SHA256, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/missing", "127.0.0.1:[0-9]+ cannot be reached"),
        ("/half", "interrupted the download"),
        ("/stalls", "interrupted the download"),
        ("/crawls", "sends less than 200 kB/s"),
        ("/page", "sent a file that is not file"),
    ],
)
def test_a_download_that_fails_leaves_nothing(server, tmp_path, path, message):
    start = time.monotonic()
    with pytest.raises(DataError, match=message):
        download.fetch(server + path, SHA256, tmp_path / "file", timeout=2, window=1.0)
    assert time.monotonic() - start < 15  # /crawls would take 13 s, and /stalls 20
    assert list(tmp_path.iterdir()) == []


def test_nobody_there(tmp_path):
    with pytest.raises(DataError, match="127.0.0.1:9 cannot be reached"):
        download.fetch("http://127.0.0.1:9/file", SHA256, tmp_path / "file")


def test_a_probe_that_hangs_is_left():
    hang = threading.Event()
    start = time.monotonic()
    assert not download.answers(hang.wait, 0.2)
    assert time.monotonic() - start < 5
    hang.set()
    assert download.answers(lambda: None, 5.0)


@pytest.mark.parametrize(
    ("total", "is_left"),
    [(2.0e6, True), (1.9e6, False), (None, True)],
)
def test_a_download_is_left_unless_it_ends_soon(monkeypatch, total, is_left):
    """At 66 kB per second, 990 kB arrive in a window of 15 seconds."""
    clock = iter([0.0, 5.0, 15.0, 16.0])
    monkeypatch.setattr(download.time, "monotonic", lambda: next(clock))
    with download._Progress("file", 100e3, 15.0) as progress:
        progress.total = total
        progress.update(330e3)
        if is_left:
            with pytest.raises(download._TooSlow, match="^66000.0$"):
                progress.update(660e3)
        else:
            progress.update(660e3)
            progress.update(1e3)


def test_a_download_that_is_fast_enough_goes_on(monkeypatch):
    clock = iter([0.0, 15.0, 30.0])
    monkeypatch.setattr(download.time, "monotonic", lambda: next(clock))
    with download._Progress("file", 100e3, 15.0) as progress:
        progress.total = 1e9
        progress.update(1.6e6)
        with pytest.raises(download._TooSlow):
            progress.update(1.4e6)


def test_an_md5_will_do_and_so_will_no_digest(server, tmp_path):
    md5 = hashlib.md5(CONTENT).hexdigest()
    for digest in (f"md5:{md5}", ""):
        download.fetch(f"{server}/file", digest, tmp_path / "file")
        assert (tmp_path / "file").read_bytes() == CONTENT
    with pytest.raises(DataError, match="sent a file that is not file"):
        download.fetch(f"{server}/page", f"md5:{md5}", tmp_path / "file")
