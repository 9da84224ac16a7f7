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
from jax.experimental import multihost_utils
from spawn import KILL, ROOT, TERM, at_step, finish, lines, start, steps

from resnet_jax import run as run_module
from resnet_jax.devices import processes as distributed
from resnet_jax.errors import DataError, UserError
from resnet_jax.run import saving
from resnet_jax.training import compiling, evaluation

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


PARTIAL = ("--max-train-samples", "150")  # the last batch of an epoch


def run(run_dir, *arguments, patch=""):
    codes, errors = finish(start(run_dir, *PARTIAL, *arguments, patch=patch))
    return codes[0], errors[0]


def test_joining_nobody_is_an_error_in_one_line(tmp_path):
    code, error = run(tmp_path / "run", "--distributed")
    assert code == 2
    assert error.startswith("train.py: this process cannot join others (")
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

    monkeypatch.setattr(distributed, "is_alone", lambda: False)
    monkeypatch.setattr(distributed, "wait", lambda: None)
    monkeypatch.setattr(multihost_utils, "process_allgather", gather)
    with pytest.raises(DataError) as own:
        distributed.agree(DataError(message))
    assert str(own.value) == message
    with pytest.raises(UserError) as theirs:
        distributed.agree()
    assert theirs.value.exit_code == 3
    text = str(theirs.value).removesuffix(" (in another process)")
    assert message.startswith(text) and len(text) >= 80


def test_an_error_is_told_to_others_but_while_they_compute(digits_run, monkeypatch):
    """is_training, wherever a process may fail by itself."""
    opened, seen = [], []

    def note(owner, name):
        function = getattr(owner, name)

        def noting(*args, **options):
            seen.append((name, opened[0].is_training))
            return function(*args, **options)

        monkeypatch.setattr(owner, name, noting)

    enter = run_module.Run.__enter__
    monkeypatch.setattr(
        run_module.Run, "__enter__", lambda self: opened.append(self) or enter(self)
    )
    sums = {"loss": np.ones(()), "correct": np.ones(()), "count": np.ones(())}

    def compile_step(*args):
        return lambda state, batch: (state, sums), 0.0

    monkeypatch.setattr(compiling, "compile_step", compile_step)
    monkeypatch.setattr(evaluation, "evaluate", lambda *args: sums)
    note(run_module.Run, "make_feed")
    note(compiling, "compile_step")
    note(run_module.Run, "step")
    note(evaluation, "evaluate")
    note(saving.Saver, "save")
    digits_run(epochs=2, max_train_samples=32)
    an_epoch = [("step", True), ("evaluate", True)]
    assert seen == [
        ("make_feed", False),
        ("compile_step", False),
        *(*an_epoch, ("save", True)),
        *(*an_epoch, ("save", False)),
    ]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_two(run_dir, *arguments, patches=("", "")):
    """Two processes of two devices each."""
    address = f"127.0.0.1:{free_port()}"
    joining = ("--coordinator", address, "--num-processes", "2", "--devices", "2")
    common = (*PARTIAL, *joining, *arguments)
    return [
        start(run_dir, *common, "--process-id", str(i), patch=patches[i])
        for i in (0, 1)
    ]


def run_two(run_dir, *arguments, patches=("", "")):
    return finish(*start_two(run_dir, *arguments, patches=patches))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("distributed") / "alone"
    code, error = run(run_dir)
    assert code == 0, error
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
    saved = "saved at step 4 of 10; the same command goes on from there"
    assert f"{run_dir}: stopped by a signal, {saved}" in errors[0]
    assert f"{run_dir}: stopped by SIGTERM, {saved}" in errors[1]
    assert steps(run_dir)[-1] == 4
    metrics = (run_dir / "metrics.jsonl").read_text()
    assert metrics == ""

    code, error = run(run_dir, "--log-every-steps", "4")
    assert code == 0, error
    assert "devices 4 -> 1, processes 2 -> 1, so bits may differ" in error
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
    fails = (
        "from resnet_jax import data, errors\n"
        "def load_dataset(*args, **options):\n"
        "    raise errors.DataError('no such disk here')\n"
        "data.load_dataset = load_dataset\n"
    )
    codes, errors = run_two(tmp_path / "run", patches=("", fails))
    assert codes == [3, 3], errors
    assert "no such disk here (in another process)" in errors[0]
    assert not (tmp_path / "run").exists()


# Two processes of two devices, joined once, train again and again. A patch is in force
# in the process of its number; None is both.
PAIR = """
import contextlib, dataclasses, itertools, json, logging, os, signal, sys
from pathlib import Path
from unittest import mock

import jax
import tyro
from jax.experimental import multihost_utils

sys.path.insert(0, "tests")
import spawn, train
from resnet_jax.training import compiling, evaluation
from resnet_jax import data, run
from resnet_jax.data import loader as feed
from resnet_jax.run import store
from resnet_jax.weights import hub
from resnet_jax.devices import mesh as parallel
from resnet_jax.errors import DataError, UserError
from resnet_jax.recipes import RECIPES

index, address, root = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_enable_preemption_service", False)
jax.distributed.initialize(address, 2, index)
exec(spawn.SMALL)
args = [*spawn.ARGUMENTS, *sys.argv[4:]]
recipe = tyro.extras.overridable_config_cli(RECIPES, args=args)
found = {}
told, counts, held = [], [], []
listener = logging.Handler()
listener.emit = lambda record: told.append(record.getMessage())
logging.getLogger("resnet_jax").addHandler(listener)


def scenario(name, *patches, run_dir=None, **fields):
    print(name, file=sys.stderr, flush=True)
    for notes in (told, counts, held):
        notes.clear()
    cfg = dataclasses.replace(recipe, workdir=str(root / (run_dir or name)), **fields)
    code, message = 0, ""
    with contextlib.ExitStack() as stack:
        for process, patch in patches:
            if process in (index, None):
                stack.enter_context(patch)
        try:
            train.main(cfg)
        except UserError as error:
            code, message = error.exit_code, str(error)
    found[name] = {
        "code": code, "message": message, "told": list(told), "counts": list(counts),
        "held": list(held),
    }


def fails(owner, name, message):
    return mock.patch.object(owner, name, side_effect=DataError(message))


def signalled(owner, name, number):
    # SIGTERM before the call of this number.
    function, numbers = getattr(owner, name), itertools.count(1)

    def signalling(*args, **options):
        if next(numbers) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*args, **options)

    return mock.patch.object(owner, name, signalling)


evaluate, make_feed, step = evaluation.evaluate, feed.make_feed, run.Run.step
compile_step, compiled = compiling.compile_step, {}


def counting(*args):
    sums = evaluate(*args)
    counts.append(int(sums["count"]))
    return sums


def noting(*args, **options):
    made = make_feed(*args, **options)
    held.append(made._held)
    return made


def poisoned(self, state, sums):
    if self._progress.step == 3:
        bad = jax.tree.map(lambda x: x * float("nan"), state.params)
        state = state.replace(params=bad)
    step(self, state, sums)


def compile_once(step, state, examples, source, key):
    # All train the same, with data that are held or are not.
    if bool(source) not in compiled:
        compiled[bool(source)] = compile_step(step, state, examples, source, key)
    return compiled[bool(source)]


evaluation.evaluate, feed.make_feed = counting, noting
compiling.compile_step = compile_once
kept = mock.patch.object(hub, "adopt", lambda variables, *args, **options: variables)
no_room = mock.patch.object(store.Store, "save", lambda self, *args: "no room")
small = mock.patch.object(parallel, "fits", lambda *args: False)

scenario("describe", (1, fails(data, "describe", "no such folder")))
scenario("prepare", (1, signalled(multihost_utils, "process_allgather", 1)))
scenario("adopt", (0, kept), (1, fails(hub, "adopt", "no such weights")),
         pretrained="weights")
scenario("compile", (1, signalled(compiling, "compile_step", 1)))
scenario("poisoned", (None, mock.patch.object(run.Run, "step", poisoned)))
scenario("full", (0, no_room), (1, signalled(run.Run, "step", 3)), log_every_steps=4)
scenario("apart", (1, small), max_steps=3, max_test_samples=41, eval_batch_size=16,
         log_every_steps=2, save_every_steps=None,
         save_every_minutes=[1e9, 0.0][index])
scenario("seed", run_dir="four", seed=1)
scenario("four")
(root / f"{index}.json").write_text(json.dumps(found))
jax.distributed.shutdown()
"""


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """A run on four devices of one process, stopped in its first epoch."""
    run_dir = tmp_path_factory.mktemp("distributed") / "four"
    code, error = run(run_dir, "--devices", "4", patch=at_step(3, TERM))
    assert code == 75, error
    assert steps(run_dir)[-1] == 3
    return run_dir


@pytest.fixture(scope="module")
def pair(four, tmp_path_factory):
    """(Folder of the runs, scenario -> what both say) of PAIR."""
    root = tmp_path_factory.mktemp("pair")
    shutil.copytree(four, root / "four")
    address = f"127.0.0.1:{free_port()}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PAIR, str(index), address, str(root), *PARTIAL],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in (0, 1)
    ]
    codes, errors = finish(*started)
    assert codes == [0, 0], errors
    one, other = (json.loads((root / f"{i}.json").read_text()) for i in (0, 1))
    return root, {name: (one[name], other[name]) for name in one}


@pytest.mark.parametrize(
    "name, code, part",
    [
        ("describe", 3, "no such folder"),
        ("adopt", 3, "no such weights"),
        ("seed", 2, "holds a run of another configuration (seed 0 -> 1)"),
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
        assert "(last good checkpoint here: 2)" in both[0]["message"]
        assert steps(root / name) == [2]


def test_each_picture_is_counted_once_and_all_feed_and_save_alike(pair):
    """Where one process has no room for the data, and its clock says to save."""
    root, found = pair
    for one in found["apart"]:
        assert one["code"] == 0, one
        assert one["counts"] == [41] and one["held"] == [False]
    assert steps(root / "apart") == [2, 3]


def test_a_run_on_four_devices_goes_on_on_one_and_on_two_by_two(
    four, pair, alone, tmp_path
):
    one_device = tmp_path / "run"
    shutil.copytree(four, one_device)
    code, error = run(one_device)
    assert code == 0, error
    assert "devices 4 -> 1, so bits may differ" in error
    assert_alike(one_device, alone)

    root, found = pair
    for process, one in enumerate(found["four"]):
        assert one["code"] == 0 and one["counts"] == [40, 40], one
        assert one["held"] == [True]
        said = any("processes 1 -> 2, so bits may differ" in t for t in one["told"])
        assert said == (process == 0)
    assert_alike(root / "four", alone)


@pytest.mark.parametrize("dead", [0, 1])
def test_a_dead_process_ends_the_others_and_the_command_goes_on(dead, alone, tmp_path):
    run_dir = tmp_path / "run"
    impatient = (  # JAX's own patience is 100 s
        "import functools, jax\n"
        "jax.distributed.initialize = functools.partial(\n"
        "    jax.distributed.initialize, heartbeat_timeout_seconds=20)\n"
    )
    patches = [impatient, impatient]
    patches[dead] += at_step(7, KILL)
    options = () if dead else ("--drop-last",)  # one program less to compile
    begun = time.monotonic()
    codes, errors = run_two(run_dir, *options, patches=patches)
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
