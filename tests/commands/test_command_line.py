import subprocess
import sys

import pytest

from resnet_jax import errors
from resnet_jax.commands import command_line


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError, 2),
        (errors.DataError, 3),
        (errors.CheckpointError, 4),
        (errors.NonFiniteLossError, 5),
    ],
)
def test_an_error_becomes_one_line_and_its_code(error, code, capsys):
    with pytest.raises(SystemExit) as caught, command_line.command_line("train.py"):
        raise error("what, where,\n  what to do")
    assert caught.value.code == code
    assert capsys.readouterr().err == "train.py: what, where, what to do\n"


def test_a_stop_ends_the_process_without_pythons_end(capsys, monkeypatch):
    ended = []

    def end(code):
        ended.append(code)
        raise SystemExit(code)

    monkeypatch.setattr(command_line.os, "_exit", end)
    with pytest.raises(SystemExit) as caught, command_line.command_line("train.py"):
        raise errors.StoppedError("what, where")
    assert caught.value.code == 75 and ended == [75]
    assert capsys.readouterr().err == "train.py: what, where\n"


@pytest.mark.parametrize(("ending", "code"), [("pass", 0), ("raise DataError('x')", 3)])
def test_threads_that_never_end_do_not_keep_the_process(ending, code):
    program = (
        "import threading, time\n"
        "from resnet_jax import errors\n"
        "from resnet_jax.commands import command_line\n"
        "from resnet_jax.errors import DataError\n"
        "command_line.time.sleep = lambda seconds: None\n"
        "threading.Thread(target=threading.Event().wait).start()\n"
        "with command_line.command_line('train.py'):\n"
        f"    {ending}\n"
    )
    done = subprocess.run([sys.executable, "-c", program], timeout=60)
    assert done.returncode == code


def test_names_that_are_not_text_are_shown_escaped():
    program = (
        "from resnet_jax import errors\n"
        "from resnet_jax.commands import command_line\n"
        "with command_line.command_line('train.py'):\n"
        "    print('a\\udcff')\n"
        "    raise errors.DataError('b\\udcff')\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "a\\xff\n")
    assert done.stderr == "train.py: b\\xff\n"


def test_a_bug_stays_a_traceback():
    with pytest.raises(ZeroDivisionError), command_line.command_line("train.py"):
        raise ZeroDivisionError


def test_ctrl_c_before_the_first_step(capsys):
    with pytest.raises(SystemExit) as caught, command_line.command_line("train.py"):
        raise KeyboardInterrupt
    assert caught.value.code == 130
    assert len(capsys.readouterr().err.splitlines()) == 1
