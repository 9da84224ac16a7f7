import contextlib
import hashlib
import io
import logging
import sys
import time

import pytest

from resnet_jax import files, waiting


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(waiting, "DELAY", 0.01)


def slowly(items):
    for item in items:
        time.sleep(0.03)
        yield item


def test_a_wait_has_a_bar_on_a_terminal():
    with contextlib.redirect_stderr(Terminal()) as terminal:
        found = list(waiting.over(slowly(range(20)), 20, "decoding train"))
    assert found == list(range(20))
    assert "decoding train" in terminal.getvalue() and "/20" in terminal.getvalue()


def test_a_wait_with_no_known_end_has_a_clock():
    with contextlib.redirect_stderr(Terminal()) as terminal:
        with waiting.clock("compiling"):
            time.sleep(0.2)
    assert "compiling: 00:00" in terminal.getvalue()


def test_a_clock_stops_at_an_error():
    with contextlib.redirect_stderr(Terminal()) as terminal:
        with pytest.raises(ZeroDivisionError), waiting.clock("compiling"):
            raise ZeroDivisionError
        time.sleep(0.05)
    assert "compiling" not in terminal.getvalue()


def test_a_short_wait_shows_nothing(monkeypatch):
    monkeypatch.setattr(waiting, "DELAY", 60)
    with contextlib.redirect_stderr(Terminal()) as terminal:
        assert len(list(waiting.over(slowly(range(5)), 5, "x"))) == 5
        with waiting.clock("y"):
            pass
    assert "x" not in terminal.getvalue() and "y" not in terminal.getvalue()


def test_what_is_no_terminal_gets_nothing():
    with contextlib.redirect_stderr(io.StringIO()) as pipe:
        assert len(list(waiting.over(slowly(range(5)), 5, "x"))) == 5
        with waiting.clock("y"):
            time.sleep(0.05)
    assert pipe.getvalue() == ""


def test_a_log_line_does_not_run_into_a_bar():
    with contextlib.redirect_stderr(Terminal()) as terminal:
        handler = waiting.LogHandler(sys.stderr)
        with waiting.bar(3, "x") as bar:
            time.sleep(0.02)
            bar.refresh()
            handler.emit(logging.makeLogRecord({"msg": "said"}))
    before, _ = terminal.getvalue().split("said\n")
    assert "0/3" in before and before.endswith("\r")  # the bar was erased


def test_a_digest_of_several_parts(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(bytes(range(256)) * 2**15)
    whole = path.read_bytes()
    assert files.file_digest(path) == hashlib.sha256(whole).hexdigest()
    assert files.file_digest(path, "md5") == hashlib.md5(whole).hexdigest()


def test_a_first_batch_has_a_clock_and_others_have_none():
    with contextlib.redirect_stderr(Terminal()) as terminal:
        with waiting.first("evaluation", False):
            time.sleep(0.05)
        assert terminal.getvalue() == ""
        with waiting.first("evaluation", True):
            time.sleep(0.2)
    assert "evaluation, first batch: 00:00" in terminal.getvalue()
