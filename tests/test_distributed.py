"""Several processes as one program: real ones, joined on loopback."""

import signal
import socket
import time

import numpy as np
import pytest
from processes import KILL, TERM, at_step, lines, run, start, steps

from resnet_jax import distributed

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
    assert distributed.detect(environ) == launcher


def test_alone_nothing_is_waited_for():
    distributed.wait()
    distributed.agree()
    assert distributed.is_alone() and distributed.is_first()
    assert distributed.any_process(True) and not distributed.any_process(False)
    assert distributed.json_from_first({"a": [1, None]}) == {"a": [1, None]}


def test_joining_nobody_is_an_error_in_one_line(tmp_path):
    done = run(tmp_path / "run", "--distributed")
    assert done.returncode == 2
    assert done.stderr.startswith("train.py: this process cannot join others (")
    assert "--coordinator HOST:PORT" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_two(run_dir, *arguments, patches=("", "")):
    """Two processes of two devices each."""
    address = f"127.0.0.1:{free_port()}"
    joining = ("--coordinator", address, "--num-processes", "2", "--devices", "2")
    return [
        start(run_dir, *joining, "--process-id", str(i), *arguments, patch=patches[i])
        for i in (0, 1)
    ]


def finish(pair):
    """(exit codes, standard errors) of both, without what gloo says."""
    found = [each.communicate(timeout=300)[1] for each in pair]
    return [each.returncode for each in pair], found


def run_two(run_dir, *arguments, patches=("", "")):
    return finish(start_two(run_dir, *arguments, patches=patches))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("distributed") / "alone"
    assert run(run_dir).returncode == 0
    return run_dir


def assert_alike(run_dir, alone):
    """The same numbers, but for rounding, which a ReLU may make larger."""
    ours, theirs = lines(run_dir), lines(alone)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one["train_loss"], other["train_loss"], rtol=1e-3)
        np.testing.assert_allclose(one["test_loss"], other["test_loss"], rtol=2e-2)


def test_a_signal_to_one_stops_both_and_any_number_goes_on(alone, tmp_path):
    run_dir = tmp_path / "run"
    patch = at_step(3, TERM)
    codes, errors = run_two(run_dir, "--log-every-steps", "4", patches=("", patch))
    assert codes == [75, 75], errors
    assert "stopped by a signal, saved at step 4 of 10" in errors[0]
    assert steps(run_dir)[-1] == 4
    metrics = (run_dir / "metrics.jsonl").read_text()
    assert metrics == ""

    go_on = run(run_dir, "--log-every-steps", "4", "--max-steps", "10")
    assert go_on.returncode == 2  # max_steps is another configuration
    go_on = run(run_dir, "--log-every-steps", "4")
    assert go_on.returncode == 0, go_on.stderr
    assert "devices 4 -> 1, processes 2 -> 1, so bits may differ" in go_on.stderr
    assert_alike(run_dir, alone)


def test_a_run_of_one_goes_on_in_two_and_its_errors_are_both_s(alone, tmp_path):
    run_dir = tmp_path / "run"
    patch = at_step(7, TERM)
    assert run(run_dir, patch=patch).returncode == 75

    codes, errors = run_two(run_dir, "--seed", "1")
    assert codes == [2, 2], errors
    assert "holds a run of another configuration (seed 0 -> 1)" in errors[0]
    assert "seed 0 -> 1" in errors[1] and "(in another process)" in errors[1]

    fails = (
        "from resnet_jax import data, errors\n"
        "def load_dataset(*args, **options):\n"
        "    raise errors.DataError('no such disk here')\n"
        "data.load_dataset = load_dataset\n"
    )
    codes, errors = run_two(run_dir, patches=("", fails))
    assert codes == [3, 3], errors
    assert "no such disk here (in another process)" in errors[0]

    codes, errors = run_two(run_dir)
    assert codes == [0, 0], errors
    assert "devices 1 -> 4, processes 1 -> 2, so bits may differ" in errors[0]
    assert_alike(run_dir, alone)


def test_a_dead_process_ends_the_others_and_the_command_goes_on(alone, tmp_path):
    run_dir = tmp_path / "run"
    patch = at_step(7, KILL)
    begun = time.monotonic()
    codes, errors = run_two(run_dir, patches=("", patch))
    assert codes[1] == -signal.SIGKILL
    assert codes[0] not in (0, 75), errors[0]
    assert time.monotonic() - begun < 150  # the heartbeat is 100 s
    assert steps(run_dir)
    codes, errors = run_two(run_dir)
    assert codes == [0, 0], errors
    assert_alike(run_dir, alone)
