import errno
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_jax.errors import ConfigError
from resnet_jax.run import logs

LINE = {
    **{"epoch": 1, "step": 5, "lr": 0.1, "train_loss": 2.3, "train_accuracy": 0.1},
    **{"val_loss": 2.2, "val_accuracy": 0.2, "test_loss": 2.1, "test_accuracy": 0.3},
    **{"seconds": 1.5, "images_per_second": 100.0, "compile_seconds": 0.0},
}


def write(run_dir, *lines):
    text = "".join(f"{line}\n" for line in lines)
    (run_dir / "metrics.jsonl").write_text(text, encoding="utf-8")


def test_lines_are_read_as_they_are(tmp_path):
    assert logs.read_metrics(tmp_path) == []
    write(tmp_path, json.dumps(LINE), json.dumps(LINE | {"step": 10}))
    assert logs.read_metrics(tmp_path) == [LINE, LINE | {"step": 10}]


def test_other_programs_need_no_step(tmp_path):
    foreign = {k: v for k, v in LINE.items() if k not in ("step", "lr")}
    write(tmp_path, json.dumps(foreign))
    assert logs.read_metrics(tmp_path, of_ours=False) == [foreign]
    with pytest.raises(ConfigError, match="line 1: step is None"):
        logs.read_metrics(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2, is not a record"),
        ("[1]", "line 2, is not a record .not an object"),
        ("[" * 100_000, "line 2, is not a record .*nested too deeply"),
        (json.dumps(LINE | {"step": "5"}), "line 2: step is 5"),
        (json.dumps(LINE | {"step": True}), "line 2: step is True"),
        (json.dumps(LINE | {"val_accuracy": None}), "line 2: val_accuracy is None"),
        (json.dumps(LINE | {"test_loss": float("nan")}), "line 2: test_loss is nan"),
        (json.dumps(LINE | {"seconds": 10**400}), "line 2: seconds is 1000"),
        ("{}", "line 2: epoch is None"),
    ],
)
def test_what_is_no_line_is_named(tmp_path, line, message):
    write(tmp_path, json.dumps(LINE), line)
    with pytest.raises(ConfigError, match=message):
        logs.read_metrics(tmp_path)


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(ConfigError, match="metrics.jsonl cannot be read"):
        logs.read_metrics(tmp_path)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)
records = st.fixed_dictionaries({}, optional={name: values for name in LINE})


@given(lines=st.lists(records | values, max_size=4), ours=st.booleans())
def test_any_lines_are_read_or_named(tmp_path_factory, lines, ours):
    run_dir = tmp_path_factory.mktemp("run")
    write(run_dir, *map(json.dumps, lines))
    try:
        found = logs.read_metrics(run_dir, of_ours=ours)
    except ConfigError as error:
        assert "\n" not in str(error) and "metrics.jsonl" in str(error)
    else:
        for record, line in zip(found, lines, strict=True):
            assert record == line
            assert all(abs(record[name]) < 1e30 for name in logs._FORM)


finite = st.floats(-1e9, 1e9)


@given(
    losses=st.lists(finite, min_size=1, max_size=6),
    step=st.integers(0, 7),
    cut=st.integers(0, 40),
)
def test_a_log_goes_on_after_its_checkpoint(tmp_path_factory, losses, step, cut):
    """Records written after the checkpoint are removed, even incomplete ones."""
    run_dir = tmp_path_factory.mktemp("run")
    lines = [
        LINE | {"epoch": n, "step": n, "train_loss": loss}
        for n, loss in enumerate(losses, start=1)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    path = run_dir / "metrics.jsonl"
    path.write_text(text[: len(text) - cut], encoding="utf-8")
    kept = [line for line in lines if line["step"] <= step]
    opened = logs.Logs(run_dir, kept, step=step, tensorboard=False, layers=False)
    assert opened.last_step == (kept[-1]["step"] if kept else None)
    opened.write(LINE | {"epoch": 9, "step": 9})
    assert logs.read_metrics(run_dir) == [*kept, LINE | {"epoch": 9, "step": 9}]


def test_the_line_of_the_checkpoints_own_step_stays(tmp_path):
    """If a signal stopped the evaluation, the record follows the checkpoint."""
    lines = [LINE, LINE | {"epoch": 2, "step": 10}, LINE | {"epoch": 3, "step": 15}]
    write(tmp_path, *map(json.dumps, lines))
    kept = [*lines[:1], *logs.last_line(tmp_path, lines[:1], 10)]
    opened = logs.Logs(tmp_path, kept, step=10, tensorboard=False, layers=False)
    assert opened.records == lines[:2] == logs.read_metrics(tmp_path)
    assert logs.last_line(tmp_path, lines[:2], 10) == []


def test_a_spoilt_file_is_written_anew(tmp_path, caplog):
    write(tmp_path, json.dumps(LINE), "spoilt", json.dumps(LINE | {"step": 10}))
    assert logs.last_line(tmp_path, [LINE], 5) == []
    logs.Logs(tmp_path, [LINE], step=5, tensorboard=False, layers=False)
    assert logs.read_metrics(tmp_path) == [LINE]
    assert "line 2" in caplog.text and "rewritten from the checkpoint" in caplog.text


LAYERS = {"conv1": {"gradient": 0.5}}


def reopen(run_dir, records, step):
    return logs.Logs(run_dir, records, step=step, tensorboard=False, layers=True)


def layer_steps(run_dir):
    text = (run_dir / "layers.jsonl").read_text(encoding="utf-8")
    return [json.loads(line)["step"] for line in text.splitlines()]


def test_no_line_of_layers_is_there_twice(tmp_path):
    first = reopen(tmp_path, [], 0)
    first.write_layers({"epoch": 0, "step": 0}, LAYERS)
    # Killed before a checkpoint: the line of step 0 is written again.
    again = reopen(tmp_path, [], 0)
    again.write_layers({"epoch": 0, "step": 0}, LAYERS)
    again.write_layers({"epoch": 1, "step": 5}, LAYERS)
    assert layer_steps(tmp_path) == [0, 5]
    # Killed after the checkpoint of step 5 and before the line of metrics.
    third = reopen(tmp_path, [], 5)
    third.write_layers({"epoch": 1, "step": 5}, LAYERS)
    third.write(LINE)
    assert layer_steps(tmp_path) == [0, 5]
    reopen(tmp_path, [LINE], 5)
    assert layer_steps(tmp_path) == [0, 5]


def test_layers_without_their_step_are_named(tmp_path):
    (tmp_path / "layers.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match="layers.jsonl has a line without a step"):
        reopen(tmp_path, [LINE], 5)


class FullDisk:
    """Simulates a disk that is full after `room` bytes."""

    def __init__(self, monkeypatch, room):
        self.room = room
        write = io.FileIO.write
        disk = self

        class File(io.FileIO):
            def write(self, content):
                if disk.room == 0:
                    raise OSError(errno.ENOSPC, "No space left on device")
                done = write(self, content[: disk.room])
                disk.room -= done
                return done

        def opened(path, mode, buffering=-1):
            assert (mode, buffering) == ("r+b", 0)
            return File(path, "r+")

        monkeypatch.setattr(logs.Path, "open", opened)


def test_what_a_full_disk_took_of_a_line_is_not_left(tmp_path, monkeypatch, caplog):
    opened = logs.Logs(tmp_path, [LINE], step=5, tensorboard=False, layers=False)
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    disk = FullDisk(monkeypatch, room=40)
    opened.write(LINE | {"step": 10})
    assert "No space left on device; the line will be written later" in caplog.text
    disk.room = 30
    assert opened.flush() == "No space left on device"
    disk.room = 10**6
    opened.write(LINE | {"step": 15})
    monkeypatch.undo()
    assert (tmp_path / "metrics.jsonl").read_bytes().startswith(whole)
    assert [line["step"] for line in logs.read_metrics(tmp_path)] == [5, 10, 15]


def test_a_file_that_vanished_ends_the_run(tmp_path):
    opened = logs.Logs(tmp_path, [], step=0, tensorboard=False, layers=False)
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(ConfigError, match="metrics.jsonl cannot be written .No such"):
        opened.write(LINE)


def test_tensorboard_has_the_numbers_of_each_line(tmp_path):
    pytest.importorskip("tensorboardX")
    opened = logs.Logs(tmp_path, [], step=0, tensorboard=True, layers=False)
    opened.write(LINE | {"test_accuracy_seeds": [0.2, 0.4]})
    opened.write(LINE | {"step": 10})
    opened.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert (
        content.count(b"test_accuracy") == 2 and b"test_accuracy_seeds" not in content
    )
    assert b"epoch" not in content
    assert len(logs.read_metrics(tmp_path)) == 2
