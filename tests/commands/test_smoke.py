"""The programs as a user starts them; tests/processes has the many ways they end."""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from spawn import ROOT, digests, lines, steps

from resnet_jax.models import list_models

SCRIPT = str(Path(sys.executable).with_name("resnet-jax"))
TRAIN = (
    *("train.py", "digits", "--model", "resnet8", "--max-train-samples", "64"),
    *("--max-test-samples", "32", "--epochs", "1", "--batch-size", "32"),
)
# A script, after faults.
FAULTY = """
import runpy, sys
sys.path.insert(1, "tests")
from faults import *
for fault in [{faults}]:
    fault()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def begin(*command):
    words = [sys.executable if word == "python" else str(word) for word in command]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(words, cwd=ROOT, text=True, **pipes)


def end(process):
    """(exit code, standard output, standard error)"""
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    return process.returncode, out, err


def shell(*command):
    return end(begin(*command))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(Run directory, what was printed) of a run that nothing happened to."""
    run_dir = tmp_path_factory.mktemp("smoke") / "run"
    code, out, err = shell("python", *TRAIN, "--workdir", run_dir)
    assert (code, err) == (0, "")
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
        ("-m", "resnet_jax", "train", "--help"),
    ],
)
def test_help_does_not_wake_jax(command):
    # What -X importtime lists is what was imported.
    code, out, err = shell("python", "-X", "importtime", *command)
    assert code == 0 and "usage" in out
    imported = {line.rsplit("|", 1)[-1].strip() for line in err.splitlines()}
    assert "tyro" in imported
    assert not imported & {"jax", "flax", "sklearn", "tensorflow_datasets", "orbax"}


def test_stopped_then_killed_the_same_command_goes_on_to_the_same_end(
    trained, tmp_path
):
    command = (*TRAIN, "--save-every-steps", "1", "--workdir", tmp_path / "run")

    def train_with(*faults):
        return shell("python", "-c", FAULTY.format(faults=", ".join(faults)), *command)

    code, out, err = train_with("AtStep(1, terminate)")
    assert code == 75 and out == "" and err.count("\n") == 1
    assert "stopped by SIGTERM, saved at step 1 of 2" in err
    assert steps(tmp_path / "run") == [1]

    code, out, err = train_with("know_managers", "AtStep(2, kill_after_saves)")
    assert code == -signal.SIGKILL
    assert "goes on after step 1 of 2" in out and steps(tmp_path / "run") == [1]

    code, out, err = shell("python", *command)
    assert code == 0 and "taken over from process" in err
    assert "goes on after step 1 of 2" in out
    assert lines(tmp_path / "run") == lines(trained[0])
    assert digests(tmp_path / "run") == digests(trained[0])


def test_two_processes_are_one_run(trained, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    joining = ("--coordinator", address, "--num-processes", "2", "--process-id")
    both = [
        begin("python", *TRAIN, "--workdir", tmp_path / "run", *joining, number)
        for number in (0, 1)
    ]
    (code, out, err), (other_code, other_out, other_err) = map(end, both)
    assert (code, other_code) == (0, 0), (err, other_err)
    assert (out.count("epoch "), other_out.count("epoch ")) == (1, 0)  # Gloo talks, too
    (ours,), (theirs,) = lines(tmp_path / "run"), lines(trained[0])
    assert ours["step"] == theirs["step"] == 2
    assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-3)


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
        ((SCRIPT, "nonsense"), "no command 'nonsense'"),
        ((SCRIPT, "predict"), "name files of images"),
    ],
)
def test_bad_usage_is_exit_2(command, part):
    code, _, err = shell(*command)
    assert code == 2
    assert part in err and "Traceback" not in err
