"""What a run survives, with real processes and files."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import faults
import jax
import numpy as np
import pytest
from faults import AtStep, SignalIn, SignalInData, SpoilStep, kill, terminate
from spawn import (
    Started,
    describe_server,
    digests,
    evaluate,
    lines,
    manifest_of,
    run,
    said,
    start,
    steps,
)

from resnet_jax.data import cifar, tfds

pytestmark = pytest.mark.process


def assert_same_end(run_dir, alone):
    assert lines(run_dir) == lines(alone)
    assert digests(run_dir) == digests(alone)


@pytest.fixture(scope="session")
def alone(tmp_path_factory):
    """An undisturbed run."""
    run_dir = tmp_path_factory.mktemp("faults") / "alone"
    done = run(run_dir)
    assert done.returncode == 0, done.stderr
    assert steps(run_dir) == [8, 10]
    return run_dir


def test_what_processes_are_forked_from_has_imported_jax_and_not_woken_it():
    process = Started(describe_server)
    assert process.wait() == 0, process.stderr
    assert json.loads(process.stdout) == {"has_jax": True, "threads": 1}


@pytest.mark.parametrize("number", [1, 7])
def test_kill_9_between_two_steps(number, alone, tmp_path):
    run_dir = tmp_path / "run"
    assert run(run_dir, faults=[AtStep(number, kill)]).returncode == -signal.SIGKILL
    saved = steps(run_dir)
    assert (saved[-1] if saved else 0) >= number - 3  # the interval is 2
    again = run(run_dir)
    assert again.returncode == 0, again.stderr
    assert_same_end(run_dir, alone)


def test_kill_9_inside_a_save(alone, tmp_path):
    run_dir = tmp_path / "run"
    assert run(run_dir, faults=[faults.kill_in_a_save]).returncode == -signal.SIGKILL
    (left,) = (run_dir / "checkpoints").glob("6*tmp*")  # it was in the middle of it
    shutil.copytree(left, left.with_name(left.name.replace("6", "4")))
    assert 5 in steps(run_dir)
    (run_dir / ".resnet_jax-left").mkdir()
    again = run(run_dir)
    assert again.returncode == 0, again.stderr
    assert_same_end(run_dir, alone)
    names = {path.name for path in run_dir.iterdir()}
    assert names == {path.name for path in alone.iterdir()}
    assert steps(run_dir) == steps(alone)
    assert not list((run_dir / "checkpoints").glob("*tmp*"))


@pytest.mark.parametrize(
    "fault",
    [
        SignalInData(signal.SIGTERM),
        SignalIn("resnet_jax.training", "compile_step", signal.SIGINT),
        SignalIn("resnet_jax.training.evaluation", "evaluate", signal.SIGTERM),
        SignalIn("resnet_jax.training.evaluation", "evaluate", signal.SIGINT),
    ],
)
def test_a_signal_outside_of_steps(fault, alone, tmp_path):
    run_dir = tmp_path / "run"
    is_evaluation = getattr(fault, "name", "") == "evaluate"
    number = signal.Signals(fault.number).name
    done = run(run_dir, faults=[fault])
    assert done.returncode == 75, done.stderr
    saved = "saved at step 5 of 10" if is_evaluation else "before its first step"
    (line,) = said(done.stderr)
    assert f"stopped by {number}" in line and saved in line
    assert run_dir.exists() == is_evaluation
    again = run(run_dir)
    assert again.returncode == 0, again.stderr
    assert_same_end(run_dir, alone)


def test_a_second_signal_ends_it_at_once(tmp_path):
    process = start(tmp_path / "run", faults=[faults.stick_in_compiling])
    while "stuck" not in process.stdout:
        time.sleep(0.05)
    time.sleep(1)  # until it is in C
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    time.sleep(1)
    assert process.returncode is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 130
    assert time.monotonic() - begun < 30


def test_three_signals_in_the_middle_of_epochs(alone, tmp_path):
    run_dir = tmp_path / "run"
    for number in (1, 3, 8):
        done = run(run_dir, faults=[AtStep(number, terminate)])
        assert done.returncode == 75
        assert f"saved at step {number} of 10" in done.stderr
        assert steps(run_dir)[-1] == number
    assert run(run_dir).returncode == 0
    assert_same_end(run_dir, alone)


@pytest.fixture(scope="session")
def stopped(tmp_path_factory):
    """A run that stopped after step 8, with the checkpoints 6 and 8."""
    run_dir = tmp_path_factory.mktemp("faults") / "stopped"
    assert run(run_dir, faults=[AtStep(8, terminate)]).returncode == 75
    assert steps(run_dir) == [6, 8]
    return run_dir


def files_of(checkpoint_dir):
    return sorted(path for path in checkpoint_dir.rglob("*") if path.is_file())


def damage(path, how):
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        flipped = bytes([content[middle] ^ 1])
        path.write_bytes(content[:middle] + flipped + content[middle + 1 :])


@pytest.mark.parametrize("how", ["missing", "truncated", "flipped"])
def test_a_damaged_checkpoint_is_named_and_skipped(how, stopped, alone, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(stopped, run_dir)
    largest = max(
        files_of(run_dir / "checkpoints" / "8"), key=lambda p: p.stat().st_size
    )
    damage(largest, how)
    again = run(run_dir)
    assert again.returncode == 0, again.stderr
    assert re.search(
        "checkpoint 8 of .* is damaged.*; using step 6 instead", again.stderr
    )
    assert "resumes after step 6 of 10" in again.stdout
    assert (run_dir / "damaged" / "8").is_dir()
    assert_same_end(run_dir, alone)


# In a process of its own, for what orbax had begun to read complains when collected.
def read_each(names):
    from spawn import make_small

    from resnet_jax import models, training
    from resnet_jax.run import restore

    make_small()
    model = models.create_model("small", num_classes=10)
    template = training.variable_shapes(model, (32, 32, 3))
    for name in names:
        variables, step, _ = restore.load_variables(Path(name), "last", template)
        print(json.dumps([step, restore.digests(variables)]))


def test_no_file_of_a_checkpoint_can_be_damaged_unnoticed(stopped, tmp_path):
    # Noticed, or without any effect: the arrays are those that were saved.
    damaged = []
    for number, path in enumerate(files_of(stopped / "checkpoints" / "8")):
        for how in ("missing", "truncated", "flipped"):
            damaged.append(tmp_path / f"{number}-{how}")
            shutil.copytree(stopped, damaged[-1])
            damage(damaged[-1] / path.relative_to(stopped), how)
    done = Started(read_each, [*map(str, damaged)])
    assert done.wait() == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(damaged)
    for step, digests_found in found:
        saved = manifest_of(stopped, step)["digests"]
        assert digests_found.items() <= saved.items()
    assert {step for step, _ in found} <= {6, 8}
    assert [step for step, _ in found].count(6) >= 6


def test_all_checkpoints_damaged_is_exit_4_and_nothing_is_moved(stopped, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(stopped, run_dir)
    for step in (6, 8):
        shutil.rmtree(run_dir / "checkpoints" / str(step) / "state")
    done = run(run_dir)
    assert done.returncode == 4
    assert re.fullmatch("train.py: checkpoint 8 of .* is damaged.*\n", done.stderr)
    read = Started(evaluate, run_dir)
    assert read.wait() == 4
    assert re.fullmatch("evaluate.py: checkpoint 8 of .* is damaged.*\n", read.stderr)
    assert steps(run_dir) == [6, 8]


def test_a_damaged_checkpoint_that_was_asked_for_is_exit_4(stopped, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(stopped, run_dir)
    damage(run_dir / "checkpoints" / "8" / "manifest" / "metadata", "flipped")
    asked = Started(evaluate, run_dir, "--checkpoint", "8")
    assert asked.wait() == 4
    assert re.fullmatch("evaluate.py: checkpoint 8 of .* damaged.*\n", asked.stderr)
    last = Started(evaluate, run_dir)
    assert last.wait() == 0 and "; using step 6 instead" in last.stderr


def test_a_full_disk_while_saving(alone, tmp_path):
    run_dir = tmp_path / "run"
    late = run_dir / "checkpoints" / "5.orbax-checkpoint-tmp"  # a thread's of orbax
    happens = [
        AtStep(3, faults.limit_files, (2_000,)),
        AtStep(7, faults.limit_files, (-1,)),
        AtStep(9, faults.leave_a_half_written_save, (str(late),)),
    ]
    done = run(run_dir, faults=happens)
    assert done.returncode == 0, done.stderr
    assert "a checkpoint could not be saved" in done.stderr
    assert_same_end(run_dir, alone)
    assert steps(run_dir) == [8, 10]
    assert not list((run_dir / "checkpoints").glob("*tmp*"))


def test_a_disk_that_stays_full_is_exit_4_and_the_old_checkpoints_are_sound(
    alone, tmp_path
):
    run_dir = tmp_path / "run"
    full = AtStep(5, faults.limit_after_saves, (2_000,))
    done = run(run_dir, faults=[faults.know_managers, full])
    assert done.returncode == 4, done.stderr
    assert "the checkpoint of step 10 could not be saved" in done.stderr
    assert steps(run_dir) == [2, 4]
    again = run(run_dir)
    assert again.returncode == 0, again.stderr
    assert "resumes after step 4 of 10" in again.stdout
    assert_same_end(run_dir, alone)


def test_a_full_disk_at_the_metrics(alone, tmp_path):
    run_dir = tmp_path / "run"
    full, empty = (
        AtStep(number, faults.limit_files, (size,))
        for number, size in ((5, 10), (7, -1))
    )
    done = run(run_dir, faults=[full, empty])
    assert done.returncode == 0, done.stderr
    assert "the line will be written later" in done.stderr
    assert_same_end(run_dir, alone)


def test_a_loss_that_explodes_keeps_the_last_good_checkpoint(tmp_path):
    run_dir = tmp_path / "run"
    done = run(run_dir, "--log-every-steps", "1", faults=[SpoilStep(7, "loss")])
    assert done.returncode == 5, done.stderr
    assert "the training loss is nan at step 7, lr 0.0345491: try" in done.stderr
    assert "--debug-nans to locate the cause (last good checkpoint: 6)" in done.stderr
    assert steps(run_dir) == [5, 6]
    for step in (5, 6):
        assert np.isfinite(manifest_of(run_dir, step)["train_sums"]["loss"])


def test_debug_nans_names_the_operation(tmp_path):
    # Without a save before it, which would say that a parameter is infinite.
    arguments = ("--lr", "1e30", "--debug-nans", "--save-every-steps", "100")
    done = run(tmp_path / "run", *arguments)
    assert done.returncode == 5
    assert re.search(r"nan.*(encountered|in) .*\w+.*\(\w+\.py, line \d+\)", done.stderr)


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
    run_dir = tmp_path / "run"
    spoiled = SpoilStep(4, "parameters")
    done = run(run_dir, "--keep-checkpoints", "1", faults=[spoiled])
    assert done.returncode == 5
    assert "a parameter is not finite at step 4" in done.stderr
    assert steps(run_dir) == [2]


def test_other_data_are_refused(tmp_path):
    # All of the images, so that the one is among them.
    whole = ("--max-train-samples", "200")
    stopped = run(tmp_path / "a", *whole, faults=[AtStep(2, terminate)])
    assert stopped.returncode == 75
    done = run(tmp_path / "a", *whole, faults=[faults.flip_a_pixel])
    assert done.returncode == 2
    assert "was started with different training data: restore" in done.stderr


def test_another_version_is_said(stopped, alone, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(stopped, run_dir)
    done = run(run_dir, faults=[faults.another_jax])
    assert done.returncode == 0, done.stderr
    notice = f"{run_dir}: jax {jax.__version__} -> 99, so results may no longer be"
    (line,) = said(done.stderr)
    assert notice in line
    assert lines(run_dir) == lines(alone)


def test_a_second_process_is_told_who_holds_the_run(tmp_path):
    run_dir = tmp_path / "run"
    first = start(run_dir, faults=[AtStep(3, faults.say_and_sleep)])
    while "here" not in first.stdout:
        time.sleep(0.05)
    second = run(run_dir)
    assert second.returncode == 2
    assert re.search(
        rf"is in use by process {first.pid} on \S+ since \d{{4}}-\d\d-\d\dT",
        second.stderr,
    )
    assert second.stderr.count("\n") == 1
    first.kill()
    first.wait()
    third = run(run_dir)
    assert third.returncode == 0, third.stderr
    assert f"taken over from process {first.pid}" in third.stderr


def test_a_run_directory_that_vanishes(tmp_path):
    run_dir = tmp_path / "run"
    for number in (3, 5):  # before a save in the middle, before the line of an epoch
        vanishes = AtStep(number, faults.remove_after_saves, (str(run_dir),))
        done = run(run_dir, faults=[faults.know_managers, vanishes])
        assert done.returncode == 2, done.stderr
        assert done.stderr.splitlines()[-1].startswith(f"train.py: {run_dir}")
        assert "Traceback" not in done.stderr
        assert not run_dir.exists()


def test_order_is_by_step_and_not_by_the_clock(stopped, alone, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(stopped, run_dir)
    for path in (run_dir / "checkpoints" / "8").rglob("*"):
        os.utime(path, (1, 1))
    os.utime(run_dir / "checkpoints" / "8", (1, 1))
    again = run(run_dir, faults=[faults.clock_goes_back])
    assert again.returncode == 0, again.stderr
    assert "resumes after step 8 of 10" in again.stdout
    assert_same_end(run_dir, alone)


def test_save_every_minutes(tmp_path):
    run_dir = tmp_path / "run"
    arguments = ("--save-every-minutes", "0", "--save-every-steps", "100")
    killed = run(run_dir, *arguments, faults=[AtStep(7, kill)])
    assert killed.returncode == -signal.SIGKILL
    assert steps(run_dir)[-1] >= 5


def test_the_manifest_says_what_a_checkpoint_is(alone):
    manifest = manifest_of(alone, 10)
    with open(alone / "config.json", encoding="utf-8") as file:
        assert manifest["config"] == json.load(file)
    assert manifest["step"] == 10 and manifest["versions"]["jax"] == jax.__version__
    assert manifest["train_sums"]["count"] == 160
    assert set(manifest["data"]) == {"classes", "training data", "test data"}
    assert len(manifest["metrics"]) == 2
    assert all(re.fullmatch("[0-9a-f]{64}", d) for d in manifest["digests"].values())


@pytest.fixture
def published_here(small_cifar, prepared_dir, tmp_path):
    """(a fault that makes conftest's images the published CIFAR-10, their folder)."""
    shutil.copytree(prepared_dir, tmp_path / "data")
    known = cifar.CIFAR10
    return faults.Published(known.num_examples, known.sha256), tmp_path / "data"


def spoil(directory, arrays, fault):
    """Damages a prepared folder, or writes one of other images."""
    (path,) = directory.glob("cifar10/*/*train.array_record*")
    images, labels = arrays.train
    if fault == "flipped byte":
        damage(path, "flipped")
    elif fault == "missing file":
        path.unlink()
    elif fault == "label out of range":
        from array_record.python.array_record_module import (
            ArrayRecordReader,
            ArrayRecordWriter,
        )

        reader = ArrayRecordReader(str(path))
        records = reader.read_all()
        reader.close()
        label = b"label\x12\x05\x1a\x03\n\x01"  # in a tf.train.Example; a byte follows
        (head, tail) = records[7].split(label)
        records[7] = head + label + bytes([10]) + tail[1:]
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
    else:
        shutil.rmtree(directory / "cifar10")
        if fault == "wrong count":
            train = images[1:], labels[1:]
        else:
            train = images, np.where(np.arange(50) == 7, (labels + 1) % 10, labels)
        tfds.write_cifar10(arrays._replace(train=train), directory)


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ("flipped byte", "is damaged"),
        ("missing file", "is damaged"),
        ("wrong count", r"train images are uint8 .49, 32, 32, 3."),
        ("other label", "the train labels do not have the published sha256"),
        ("label out of range", "train labels range from 0 to 10"),
    ],
)
def test_spoilt_data_are_refused_before_the_first_step(
    fault, what, published_here, small_cifar, tmp_path
):
    published, directory = published_here
    spoil(directory, small_cifar, fault)
    arguments = ("--dataset", "cifar10", "--data-dir", str(directory))
    done = run(tmp_path / "run", *arguments, faults=[published])
    assert done.returncode == 3, done.stderr
    error = done.stderr.splitlines()[-1]
    assert re.match(f"train.py: {directory}/cifar10/3.0.2 is damaged", error)
    assert re.search(what, error) and "--rebuild-data" in error
    assert not (tmp_path / "run").exists()


def test_a_run_directory_that_cannot_be_written():
    run_dir = Path("/proc/run")  # where root cannot write, either
    done = run(run_dir)
    assert done.returncode == 2
    assert re.fullmatch(
        "train.py: run directory /proc/run cannot be written .*: "
        "choose another --workdir\n",
        done.stderr,
    )
