import os
import signal
import subprocess
import sys
import threading

import pytest

from resnet_jax import signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_handlers_come_back(number):
    before = signal.getsignal(number)
    with signals.noted() as received:
        os.kill(os.getpid(), number)
        assert received == [number]
    assert signal.getsignal(number) is before


def test_the_second_signal_acts_at_once():
    code = (
        "import os, signal\n"
        "from resnet_jax import signals\n"
        "with signals.noted():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('first', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('never')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGTERM
    assert done.stdout == "first\n"


def test_outside_the_main_thread_nothing_is_noted():
    results = []

    def work():
        with signals.noted() as received:
            results.append(received)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [[]]
