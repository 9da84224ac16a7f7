"""Several processes as one program: real ones, joined on loopback."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from faults import AtStep, DataFail, Impatient, kill, terminate
from jax.experimental import multihost_utils
from spawn import ROOT, finish, lines, start, steps

from resnet_jax import training
from resnet_jax.devices import processes
from resnet_jax.errors import DataError, UserError
from resnet_jax.run.checkpoints import Checkpoints
from resnet_jax.run.run import Run
from resnet_jax.training import evaluation

pytestmark = pytest.mark.process

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_TASKS": "2",
}


@pytest.mark.parametrize(
    "environ, launcher",
    [
        ({}, None),
        (SLURM, "Slurm"),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, None),  # sbatch without srun
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "Open MPI"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "Cloud TPU"),
        ({"TPU_WORKER_HOSTNAMES": "a"}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
        (
            {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"},
            "Kubernetes",
        ),
    ],
)
def test_a_launcher_is_known_by_what_it_sets(environ, launcher):
    assert processes.detect(environ) == launcher


def test_alone_nothing_is_waited_for():
    processes.wait()
    processes.agree()
    assert processes.is_alone() and processes.is_first()
    assert processes.any_process(True) and not processes.any_process(False)
    assert processes.json_from_first({"a": [1, None]}) == {"a": [1, None]}


PARTIAL = ("--max-train-samples", "150")  # the last batch of an epoch


def run(run_dir, *arguments, faults=()):
    codes, errors = finish(start(run_dir, *PARTIAL, *arguments, faults=faults))
    return codes[0], errors[0]


def test_joining_nobody_is_an_error_in_one_line(tmp_path):
    code, error = run(tmp_path / "run", "--distributed")
    assert code == 2
    assert error.startswith("train.py: this process cannot join the others (")
    assert "--coordinator HOST:PORT" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "message", ["no disk " * 300, "kein Gerät " * 150, "\U0001f4be" * 99]
)
def test_a_long_error_of_another_process_keeps_its_exit_code(message, monkeypatch):
    told = []

    def gather(mine):
        told.append(mine)
        return np.stack([mine, told[0]])

    monkeypatch.setattr(processes, "is_alone", lambda: False)
    monkeypatch.setattr(processes, "wait", lambda: None)
    monkeypatch.setattr(multihost_utils, "process_allgather", gather)
    with pytest.raises(DataError) as own:
        processes.agree(DataError(message))
    assert str(own.value) == message
    with pytest.raises(UserError) as theirs:
        processes.agree()
    assert theirs.value.exit_code == 3
    text = str(theirs.value).removesuffix(" (in another process)")
    assert message.startswith(text) and len(text) >= 80


def test_an_error_is_told_to_others_but_while_they_compute(digits_run, monkeypatch):
    """Tracks is_training wherever a process may fail by itself."""
    opened, seen = [], []

    def note(owner, name):
        function = getattr(owner, name)

        def noting(*args, **options):
            seen.append((name, opened[0].is_training))
            return function(*args, **options)

        monkeypatch.setattr(owner, name, noting)

    enter = Run.__enter__
    monkeypatch.setattr(Run, "__enter__", lambda run: opened.append(run) or enter(run))
    sums = {"loss": np.ones(()), "correct": np.ones(()), "count": np.ones(())}

    def compile_step(*args):
        return lambda state, batch: (state, sums), 0.0

    monkeypatch.setattr(training, "compile_step", compile_step)
    monkeypatch.setattr(evaluation, "evaluate", lambda *args: sums)
    note(Run, "restore")
    note(training, "compile_step")
    note(Run, "record")
    note(evaluation, "evaluate")
    note(Checkpoints, "save")
    digits_run(epochs=2, max_train_samples=32)
    an_epoch = [("record", True), ("evaluate", True)]
    assert seen == [
        ("restore", False),
        ("compile_step", False),
        *(*an_epoch, ("save", True)),
        *(*an_epoch, ("save", False)),
    ]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_two(run_dir, *arguments, faults=((), ())):
    """Two processes of two devices each."""
    address = f"127.0.0.1:{free_port()}"
    joining = ("--coordinator", address, "--num-processes", "2", "--devices", "2")
    common = (*PARTIAL, *joining, *arguments)
    return [
        start(run_dir, *common, "--process-id", str(i), faults=faults[i])
        for i in (0, 1)
    ]


def run_two(run_dir, *arguments, faults=((), ())):
    return finish(*start_two(run_dir, *arguments, faults=faults))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("distributed") / "alone"
    code, error = run(run_dir)
    assert code == 0, error
    return run_dir


def assert_alike(run_dir, alone):
    """Compares metrics up to rounding, which a ReLU may enlarge."""
    ours, theirs = lines(run_dir), lines(alone)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one["train_loss"], other["train_loss"], rtol=1e-3)
        np.testing.assert_allclose(one["test_loss"], other["test_loss"], rtol=2e-2)


def test_a_signal_to_one_stops_both_and_any_number_goes_on(alone, tmp_path):
    run_dir = tmp_path / "run"
    stops = [AtStep(3, terminate)]
    codes, errors = run_two(run_dir, "--log-every-steps", "4", faults=((), stops))
    assert codes == [75, 75], errors
    saved = "saved at step 4 of 10; the same command resumes it"
    assert f"{run_dir}: stopped by a signal, {saved}" in errors[0]
    assert f"{run_dir}: stopped by SIGTERM, {saved}" in errors[1]
    assert steps(run_dir)[-1] == 4
    metrics = (run_dir / "metrics.jsonl").read_text()
    assert metrics == ""

    code, error = run(run_dir, "--log-every-steps", "4")
    assert code == 0, error
    assert "devices 4 -> 1, processes 2 -> 1, so results may no longer be" in error
    assert_alike(run_dir, alone)


def test_seeds_on_two_devices_are_the_runs_of_each(alone, tmp_path):
    run_dir = tmp_path / "run"
    code, error = run(run_dir, "--devices", "2", "--num-seeds", "2")
    assert code == 0, error
    assert len(lines(run_dir)) == len(lines(alone))
    for both, own in zip(lines(run_dir), lines(alone), strict=True):
        one, other = both["train_loss_seeds"]
        np.testing.assert_allclose(one, own["train_loss"], rtol=1e-3)
        assert one != other


def test_an_error_of_one_is_the_end_of_both(tmp_path):
    fails = [DataFail("no such disk here")]
    codes, errors = run_two(tmp_path / "run", faults=((), fails))
    assert codes == [3, 3], errors
    assert "no such disk here (in another process)" in errors[0]
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """A run on four devices of one process, stopped in its first epoch."""
    run_dir = tmp_path_factory.mktemp("distributed") / "four"
    code, error = run(run_dir, "--devices", "4", faults=[AtStep(3, terminate)])
    assert code == 75, error
    assert steps(run_dir)[-1] == 3
    return run_dir


@pytest.fixture(scope="module")
def pair(four, tmp_path_factory):
    """(folder of the runs, {scenario: results of both}) of pair.py."""
    root = tmp_path_factory.mktemp("pair")
    shutil.copytree(four, root / "four")
    address = f"127.0.0.1:{free_port()}"
    started = [
        subprocess.Popen(
            [sys.executable, "tests/pair.py", str(index), address, str(root), *PARTIAL],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in (0, 1)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], errors
    one, other = (json.loads((root / f"{i}.json").read_text()) for i in (0, 1))
    return root, {name: (one[name], other[name]) for name in one}


@pytest.mark.parametrize(
    "name, code, part",
    [
        ("describe", 3, "no such folder"),
        ("adopt", 3, "no such weights"),
        ("seed", 2, "contains a run with another configuration (seed 0 -> 1)"),
        ("full", 4, "checkpoint of step 4 could not be saved (no room)"),
        ("poisoned", 5, "a parameter is not finite at step 4"),
        ("prepare", 75, "before its first step"),
        ("compile", 75, "before its first step"),
    ],
)
def test_two_end_alike(name, code, part, pair):
    root, found = pair
    both = found[name]
    assert [one["code"] for one in both] == [code, code], both
    assert all(part in one["message"] for one in both), both
    if code in (5, 75):  # each says it of the run, not of a folder of its own
        assert all(one["message"].startswith(str(root / name)) for one in both)
    if name == "poisoned":
        assert "(last good checkpoint: 2)" in both[0]["message"]
        assert steps(root / name) == [2]


def test_each_image_is_counted_once_and_all_feed_and_save_alike(pair):
    """One process has no room for the data, and its clock asks for a save."""
    root, found = pair
    for one in found["apart"]:
        assert one["code"] == 0, one
        assert one["counts"] == [41] and one["held"] == [False]
    assert steps(root / "apart") == [2, 3]


def test_each_process_augments_its_own_images_as_one_alone_would(pair, tmp_path):
    """One process reads images by a thread, the other by a worker."""
    root, found = pair
    for one in found["cropped"]:
        assert one["code"] == 0, one
    own = tmp_path / "run"
    code, error = run(own, "--random-resized-crop", "--max-steps", "3")
    assert code == 0, error
    assert_alike(root / "cropped", own)


def test_a_run_on_four_devices_goes_on_on_one_and_on_two_by_two(
    four, pair, alone, tmp_path
):
    one_device = tmp_path / "run"
    shutil.copytree(four, one_device)
    code, error = run(one_device)
    assert code == 0, error
    assert "devices 4 -> 1, so results may no longer be bitwise identical" in error
    assert_alike(one_device, alone)

    root, found = pair
    for process, one in enumerate(found["four"]):
        assert one["code"] == 0 and one["counts"] == [40, 40], one
        assert one["held"] == [True]
        said = any("processes 1 -> 2, so results may no" in t for t in one["told"])
        assert said == (process == 0)
    assert_alike(root / "four", alone)


@pytest.mark.parametrize("dead", [0, 1])
def test_a_dead_process_ends_the_others_and_the_command_goes_on(dead, alone, tmp_path):
    run_dir = tmp_path / "run"
    faults = [[Impatient(20)], [Impatient(20)]]
    faults[dead].append(AtStep(7, kill))
    options = () if dead else ("--drop-last",)  # one program less to compile
    begun = time.monotonic()
    codes, errors = run_two(run_dir, *options, faults=faults)
    assert codes[dead] == -signal.SIGKILL
    assert codes[1 - dead] not in (0, 75), errors
    assert time.monotonic() - begun < 100
    assert steps(run_dir)
    codes, errors = run_two(run_dir, *options)
    assert codes == [0, 0], errors
    if options:
        assert [line["step"] for line in lines(run_dir)] == [4, 8]
    else:
        assert_alike(run_dir, alone)
