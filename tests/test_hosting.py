import logging
import os
import subprocess
import sys
import threading
import types
import warnings
from pathlib import Path

import pytest

from resnet_jax import hosting
from resnet_jax.commands import command_line
from resnet_jax.errors import ConfigError, StoppedError


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """Simulates a process started by `line`, whose __main__ is `file`."""
    monkeypatch.chdir(tmp_path)

    def begin(line, file):
        main = types.SimpleNamespace(__file__=file and str(tmp_path / file))
        monkeypatch.setitem(sys.modules, "__main__", main)
        monkeypatch.setattr(sys, "orig_argv", line.split(" "))

    return begin


@pytest.mark.parametrize(
    ("line", "file", "is_ours"),
    [
        ("python train.py digits", "train.py", True),
        ("python -X dev -W error train.py -m x", "train.py", True),
        ("python -u -Werror -Xdev evaluate.py runs/a", "evaluate.py", True),
        ("python -m resnet_jax train", "site/resnet_jax/__main__.py", True),
        ("python -X dev -m resnet_jax.__main__", "resnet_jax/__main__.py", True),
        ("python -um resnet_jax train", "site/resnet_jax/__main__.py", True),
        ("python -Imresnet_jax train", "site/resnet_jax/__main__.py", True),
        ("python -Bc pass", "train.py", False),
        ("python bin/resnet-jax train", "bin/resnet-jax", True),
        ("python -m ipykernel_launcher -f kernel.json", "ipykernel_launcher.py", False),
        ("python -m debugpy train.py", "train.py", False),
        ("python -m pdb train.py", "pdb.py", False),
        ("python -m resnet_jax_other", "resnet_jax_other.py", False),
        ("python -m", None, False),
        ("python other.py train.py", "other.py", False),
        ("python other/train.py", "train.py", False),
        ("python train.py", None, False),
        ("python -c import\\ resnet_jax train.py", None, False),
        ("python -cpass train.py", "train.py", False),
        ("python -", None, False),
        ("python", None, False),
    ],
)
def test_a_process_is_ours_if_it_was_begun_for_a_command(begun, line, file, is_ours):
    begun(line, file)
    assert hosting.owns_process() == is_ours


def test_a_command_that_another_script_runs_does_not_own_its_process(tmp_path):
    Path(tmp_path, "train.py").write_text(
        "from resnet_jax import hosting; print(hosting.owns_process())"
    )
    Path(tmp_path, "other.py").write_text(
        "import runpy; runpy.run_path('train.py', run_name='__main__')"
    )

    def owns(*arguments):
        root = str(Path(hosting.__file__).parents[1])
        command = [sys.executable, *arguments]
        environ = {**os.environ, "PYTHONPATH": root}
        return subprocess.check_output(command, cwd=tmp_path, env=environ, text=True)

    assert owns("-W", "ignore", "train.py") == "True\n"
    assert owns("other.py") == owns("other.py", "train.py") == "False\n"
    assert owns("-c", "import runpy; runpy.run_path('train.py')") == "False\n"


def settings():
    """Returns the state of the process that a command changes."""
    logs = [logging.getLogger(name) for name in ("resnet_jax", "absl", "asyncio")]
    return (
        *[(log.handlers[:], log.propagate, log.level) for log in logs],
        *(sys.stdout, sys.stderr, sys.unraisablehook, sys.excepthook),
        *(warnings.formatwarning, warnings.showwarning, warnings.filters[:]),
        *(threading.active_count(), dict(os.environ)),
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (ConfigError("a"), 2),
        (StoppedError("a"), 75),
        (KeyboardInterrupt, 130),
    ],
)
def test_a_process_of_another_is_left_as_it_was(error, code, monkeypatch):
    def refuse(*args):
        raise AssertionError("the process belongs to another program")

    for name in ("_exit", "execv", "execve"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setenv("JAX_NUMPY_DTYPE_PROMOTION", "strict")
    before = settings()
    with pytest.raises(SystemExit) as caught:
        with command_line.command_line("train.py", owns_process=False):
            assert settings() != before
            if error is not None:
                raise error
    assert caught.value.code == code
    assert settings() == before


def test_a_bug_leaves_it_as_it_was_too():
    before = settings()
    with pytest.raises(ZeroDivisionError):
        with command_line.command_line("train.py", owns_process=False):
            raise ZeroDivisionError
    assert settings() == before


@pytest.mark.parametrize(
    ("started", "words"),
    [
        ("train.py", "python evaluate.py"),
        ("/home/me/resnet_jax/train.py", "python evaluate.py"),
        ("resnet-jax train", "resnet-jax evaluate"),
        ("", "python evaluate.py"),
    ],
)
def test_a_command_is_named_as_this_one_was_started(started, words, monkeypatch):
    monkeypatch.setattr("sys.argv", [started])
    assert " ".join(hosting.invocation("evaluate")) == words
