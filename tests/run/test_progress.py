import io
import json
import logging
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.run.progress import Progress, Trace


class Failed(Exception):
    pass


def fail(what, step):
    raise Failed(f"{what} at step {step}")


class Clock:
    def __init__(self, now):
        self.now = now

    def monotonic(self):
        return self.now


def sums(loss, count=2):
    return {"loss": jnp.asarray(loss), "count": jnp.asarray(count)}


def make(step=0, steps_per_epoch=4, total_steps=10):
    progress = Progress(fail)
    progress.step = step
    progress.steps_per_epoch, progress.total_steps = steps_per_epoch, total_steps
    return progress


@pytest.mark.parametrize(
    ("step", "epoch", "count"), [(0, 0, 4), (5, 1, 3), (8, 2, 2), (9, 2, 1), (10, 2, 0)]
)
def test_an_epoch_ends_where_the_run_does(step, epoch, count):
    progress = make(step)
    first = step - 4 * epoch
    progress.note_scored(None if step == 10 else step)
    assert progress.epoch == epoch
    assert progress.steps == range(first, first + count)
    for _ in progress.batches(iter(progress.steps)):
        assert progress.add(sums(1.0)) == 1
    assert progress.at_epoch_end and progress.epochs_begun == epoch + 1


def test_a_call_of_many_steps_is_as_many():
    progress = make(step=2)
    for _ in progress.batches(iter(range(1))):
        pair = {"loss": jnp.array([0.5, 1.0]), "count": jnp.array([2, 3])}
        assert progress.add(pair) == 2
    assert progress.step == 4 and progress.sums == {"loss": 1.5, "count": 5.0}
    assert progress.passed(3, 2) and progress.passed(4, 2) and not progress.passed(5, 2)


def test_only_the_last_steps_may_still_be_computing():
    class Computing(np.ndarray):
        def block_until_ready(self):
            waited.append(int(self))

    waited = []
    progress = make()
    for step in progress.batches(iter(range(4))):
        loss = np.array(step).view(Computing)
        progress.add({"loss": loss, "count": np.array(1)})
        assert waited == list(range(step))


def test_sums_are_added_from_where_they_were():
    progress = make(step=1)
    progress.sums = {"loss": 0.5, "count": 3.0}
    for _ in progress.batches(iter(range(3))):
        progress.add(sums(0.25))
        progress.collect()
    assert progress.sums == {"loss": 1.25, "count": 9.0}
    assert progress.times["images_per_second"] > 0


def test_the_seconds_of_an_epoch_are_of_all_its_steps_though_it_stopped(monkeypatch):
    clock = Clock(100.0)
    monkeypatch.setattr("resnet_jax.run.progress.time", clock)

    def train(place=None, steps=4):
        """Runs steps of two images, each of which takes ten seconds."""
        progress = make()
        if place is not None:
            progress.go_to(json.loads(json.dumps(place)))
        left = progress.steps[:steps]
        for _ in progress.batches(iter(left)):
            clock.now += 10
            progress.add(sums(1.0))
            progress.collect()
            middle = progress.place
        clock.now += 1000  # later time does not belong to the epoch
        return progress, middle if left else place

    progress, _ = train()
    assert progress.times == {"seconds": 40.0, "images_per_second": 0.2}
    _, middle = train(steps=3)
    assert middle["train_seconds"] == 30.0
    assert train(middle)[0].times == progress.times
    assert train(progress.place)[0].times == progress.times  # during evaluation
    progress.note_scored(progress.step)
    assert progress.place["train_seconds"] == 0.0


def test_a_loss_that_is_not_finite_is_told_with_its_step():
    progress = make()
    with pytest.raises(Failed, match="the training loss is nan at step 2"):
        for number, _ in enumerate(progress.batches(iter(range(4)))):
            progress.add(sums(float("nan") if number else 1.0))


@pytest.fixture
def noted(monkeypatch):
    """Records calls of the profiler instead of profiling."""
    told = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda path: told.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: told.append("stop"))
    return told


def go(trace, noted, steps):
    """Returns {profiler call: step after which it was made}."""
    found = {}
    for step in steps:
        before = len(noted)
        trace.step(step, None)
        found |= dict.fromkeys(noted[before:], step)
    return found


@pytest.mark.parametrize(
    "together, begin, end",
    [(1, 5, 10), (2, 6, 12), (5, 5, 10), (6, 6, 12), (20, 20, 40)],
)
def test_a_trace_is_of_whole_calls(noted, tmp_path, capsys, together, begin, end):
    trace = Trace(tmp_path)
    trace.begin_after(300)
    found = go(trace, noted, range(300 + together, 500, together))
    trace.close()
    assert found == {"start": 300 + begin, "stop": 300 + end}
    assert noted == ["start", "stop"]
    told = f"trace of steps {300 + begin + 1} to {300 + end} saved in {tmp_path}"
    assert capsys.readouterr().out.strip() == told


def test_a_trace_that_the_run_does_not_outlast_is_ended(noted, tmp_path):
    trace = Trace(tmp_path)
    assert go(trace, noted, range(1, 5)) == {}
    assert go(trace, noted, range(5, 8)) == {"start": 5}
    trace.close()
    assert noted == ["start", "stop"]


@pytest.mark.parametrize("is_first", [True, False])
def test_without_a_terminal_a_line_a_minute_tells_the_progress(
    is_first, monkeypatch, caplog
):
    clock = Clock(0.0)
    monkeypatch.setattr("resnet_jax.run.progress.time", clock)
    monkeypatch.setattr("resnet_jax.devices.processes.is_first", lambda: is_first)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    progress = make(step=10, steps_per_epoch=9, total_steps=17)
    progress.go_to({"step": 10, "train_sums": sums(50.0, 100), "train_seconds": 25.0})
    with caplog.at_level(logging.INFO, "resnet_jax"):
        for _ in progress.batches(iter(progress.steps)):
            clock.now += 25
            progress.add(sums(50.0, 100))
            progress.collect()
    lines = [f"epoch   2  step {n} of 8  loss 0.5000  4 images/s" for n in (4, 7)]
    assert caplog.messages == (lines if is_first else [])


def test_on_a_terminal_the_bar_tells_the_progress(monkeypatch, caplog):
    monkeypatch.setattr("resnet_jax.run.progress.LOG_SECONDS", 0.0)
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = make()
    with caplog.at_level(logging.INFO, "resnet_jax"):
        for _ in progress.batches(iter(progress.steps)):
            progress.add(sums(1.0))
            progress.collect()
    assert "epoch 1/3" in terminal.getvalue() and not caplog.messages
