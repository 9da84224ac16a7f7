import logging

import pytest

from resnet_jax import errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError, 2),
        (errors.DataError, 3),
        (errors.CheckpointError, 4),
        (errors.NonFiniteLossError, 5),
        (errors.StoppedError, 75),
    ],
)
def test_an_error_becomes_one_line_and_its_code(error, code, capsys):
    with pytest.raises(SystemExit) as caught, errors.command_line("train.py"):
        raise error("what, where,\n  what to do")
    assert caught.value.code == code
    assert capsys.readouterr().err == "train.py: what, where, what to do\n"


def test_a_bug_stays_a_traceback():
    with pytest.raises(ZeroDivisionError), errors.command_line("train.py"):
        raise ZeroDivisionError


def test_ctrl_c_before_the_first_step(capsys):
    with pytest.raises(SystemExit) as caught, errors.command_line("train.py"):
        raise KeyboardInterrupt
    assert caught.value.code == 130
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.fixture(autouse=True)
def _restore_logging():
    log = logging.getLogger("resnet_jax")
    before = log.handlers[:], log.level, log.propagate
    yield
    log.handlers[:], log.level, log.propagate = before
    logging.getLogger("absl").setLevel(logging.NOTSET)
