"""Runs the programs like a user; tests/processes covers the ways in which they end."""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from faults import AtStep, kill, terminate
from spawn import ROOT, digests, finish, lines, run, start, steps

from resnet_jax.models import list_models

SCRIPT = str(Path(sys.executable).with_name("resnet-jax"))
TRAIN = (
    *("train.py", "digits", "--model", "resnet8", "--max-train-samples", "64"),
    *("--max-test-samples", "32", "--epochs", "1", "--batch-size", "32"),
)


def shell(*command):
    """Returns (exit code, standard output, standard error)."""
    words = [sys.executable if word == "python" else str(word) for word in command]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(run directory, output) of an uninterrupted run."""
    run_dir = tmp_path_factory.mktemp("smoke") / "run"
    code, out, err = shell("python", *TRAIN, "--workdir", run_dir)
    assert code == 0, err
    first, *_, compiling, took, done = err.splitlines()  # no terminal, no bar
    assert first.startswith("network:  resnet8, 75,290 parameters")
    assert compiling == "compiling the training step ..."
    assert took.startswith("compiling the training step took ")
    assert done == f"done:     evaluate with `python evaluate.py {run_dir}`"
    return run_dir, out


def test_train_then_evaluate(trained):
    run_dir, printed = trained
    assert printed.startswith("epoch   1  step 2 ") and printed.count("\n") == 1
    assert steps(run_dir) == [2]
    config = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    assert config["model"]["model"] == "resnet8" and config["run"]["epochs"] == 1
    code, out, err = shell("python", "evaluate.py", run_dir)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].endswith(" n 360")


@pytest.mark.parametrize(
    "command",
    [
        ("train.py", "digits", "--help"),
        ("evaluate.py", "--help"),
        ("-m", "resnet_jax", "train", "digits", "--help"),
        ("-m", "resnet_jax", "data", "--help"),
    ],
)
def test_help_does_not_wake_jax(command):
    # -X importtime lists the imported modules.
    code, out, err = shell("python", "-X", "importtime", *command)
    assert code == 0 and "usage" in out
    imported = {line.rsplit("|", 1)[-1].strip() for line in err.splitlines()}
    assert "tyro" in imported
    assert not imported & {"jax", "flax", "sklearn", "tensorflow_datasets", "orbax"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """An uninterrupted run."""
    run_dir = tmp_path_factory.mktemp("smoke") / "alone"
    done = run(run_dir)
    assert done.returncode == 0, done.stderr
    return run_dir


@pytest.mark.parametrize(
    "action, code, saved", [(kill, -signal.SIGKILL, {5, 6}), (terminate, 75, {7})]
)
def test_killed_or_stopped_the_same_command_goes_on(
    action, code, saved, alone, tmp_path
):
    run_dir = tmp_path / "run"
    done = run(run_dir, faults=[AtStep(7, action)])
    assert done.returncode == code, done.stderr
    assert steps(run_dir)[-1] in saved
    again = run(run_dir)
    assert again.returncode == 0, again.stderr
    assert lines(run_dir) == lines(alone)
    assert digests(run_dir) == digests(alone)


def test_two_processes_are_one_run(alone, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    joining = ("--coordinator", address, "--num-processes", "2", "--process-id")
    started = [start(tmp_path / "run", *joining, number) for number in (0, 1)]
    codes, errors = finish(*started)
    assert codes == [0, 0], errors
    assert [process.stdout.count("epoch ") for process in started] == [2, 0]
    for line, other in zip(lines(tmp_path / "run"), lines(alone), strict=True):
        assert line["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)


def test_the_commands_that_look():
    code, out, err = shell(SCRIPT, "models", "list")
    assert (code, err) == (0, "") and out.split() == list_models()
    code, out, err = shell(SCRIPT, "doctor")
    assert code == 0, err
    for check in ("convolution", "batch norm", "reduction"):
        assert f"check: {check}" in out
    assert out.count("right, differs by") == 3


@pytest.mark.parametrize(
    "command, part",
    [
        (("python", "train.py", "digits", "--learning-rate", "1"), "--learning-rate"),
        ((SCRIPT, "nonsense"), "unknown command 'nonsense'"),
        ((SCRIPT, "predict"), "specify the image files"),
    ],
)
def test_bad_usage_is_exit_2(command, part):
    code, _, err = shell(*command)
    assert code == 2
    assert part in err and "Traceback" not in err
