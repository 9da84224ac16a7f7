import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from resnet_jax.run.signals import Interrupted, Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_handlers_come_back(number):
    before = signal.getsignal(number)
    with Signals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), number)
        assert signals.received == number
    assert signal.getsignal(number) is before


def test_at_once_a_signal_raises_and_so_does_one_that_came_before():
    with Signals() as signals:
        with pytest.raises(Interrupted), signals.at_once():
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("not interrupted")
        with pytest.raises(Interrupted), signals.at_once():
            raise AssertionError("not interrupted")
    assert not issubclass(Interrupted, Exception)


def test_after_at_once_a_signal_is_noted_again():
    with Signals() as signals:
        with signals.at_once():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGTERM


@pytest.mark.parametrize(
    ("first", "second", "pause", "exit_code"),
    [
        ("SIGINT", "SIGTERM", 1, 130),
        ("SIGTERM", "SIGTERM", 1, 130),
        ("SIGINT", "SIGINT", 0, 0),  # `timeout` signals the process and its group
        ("SIGTERM", "SIGHUP", 0, 0),  # systemd can add SIGHUP
    ],
)
def test_a_later_signal_ends_the_process_at_once(first, second, pause, exit_code):
    code = (
        "import os, signal, time\n"
        "from resnet_jax.run import signals\n"
        "signals.owns_process = lambda: True\n"
        "with signals.Signals() as noted:\n"
        f"    os.kill(os.getpid(), signal.{first})\n"
        "    print(noted.received.name, flush=True)\n"
        f"    time.sleep({pause})\n"
        f"    os.kill(os.getpid(), signal.{second})\n"
        "    time.sleep(2)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (exit_code, f"{first}\n", "")


def test_in_another_program_the_second_signal_is_its_ctrl_c():
    with Signals() as noted:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)  # at the same time, so the same request
        time.sleep(1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert noted.received == signal.SIGTERM


@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_closes_is_noted_unless_nohup_said_so(ignored):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with Signals() as noted:
            os.kill(os.getpid(), signal.SIGHUP)
        assert noted.received == (None if ignored else signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_nothing_is_noted():
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def work():
        with Signals() as signals:
            found.append((signals.received, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(None, before)]
