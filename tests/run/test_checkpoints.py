"""Storage that loses what it reports as written."""

import errno
import json
import os
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest

from resnet_jax.errors import CheckpointError, ConfigError
from resnet_jax.run.checkpoints import Checkpoints

STATE = {"params": {"w": np.arange(6, dtype=np.float32), "b": np.ones(2, np.float32)}}


@pytest.fixture
def opened(tmp_path):
    """Checkpoints that keep one, with step 1 saved."""
    checkpoints = Checkpoints(tmp_path, 1, {"devices": "1"})
    assert save(checkpoints, 1) is None
    yield checkpoints
    checkpoints.close()


def manifest(step):
    return {"config": {}, "data": {}, "metrics": [{"step": step}]}


def save(checkpoints, step):
    return checkpoints.save(step, STATE, manifest(step)) or checkpoints.wait()


def save_last(checkpoints, step):
    checkpoints.save_last(step, STATE, manifest(step), lambda: None)


def steps(run_dir):
    names = os.listdir(run_dir / "checkpoints")
    return sorted(int(name) for name in names if name.isdecimal())


def after_save(monkeypatch, spoil):
    """Calls `spoil` with the folder of each complete checkpoint."""
    wait = ocp.CheckpointManager.wait_until_finished

    def waited(self):
        wait(self)
        found = self.latest_step()
        if found != 1:
            spoil(self.directory / str(found))

    monkeypatch.setattr(ocp.CheckpointManager, "wait_until_finished", waited)


def test_a_store_that_keeps_nothing_costs_no_older_checkpoint(
    opened, tmp_path, monkeypatch, caplog
):
    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", lambda *args, **options: True)
        assert save(opened, 2) is not None
        assert f"{tmp_path}: a checkpoint could not be saved" in caplog.text
        message = (
            r"step 2 could not be saved .* run the same command to resume after step 1$"
        )
        with pytest.raises(CheckpointError, match=message):
            save_last(opened, 2)
    assert steps(tmp_path) == [1]
    np.testing.assert_array_equal(
        opened.restore(STATE)[0]["params"]["w"], STATE["params"]["w"]
    )
    save_last(opened, 2)
    assert steps(tmp_path) == [2]


def without_index(folder):
    (folder / "state" / "manifest.ocdbt").unlink()


def without_arrays(folder):
    shutil.rmtree(folder / "state")


def without_manifest(folder):
    shutil.rmtree(folder / "manifest")


def with_another_manifest(folder):
    path = folder / "manifest" / "metadata"
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, "metrics": [{"step": 7}]}))


@pytest.mark.parametrize(
    "spoil", [without_index, without_arrays, without_manifest, with_another_manifest]
)
def test_what_cannot_be_read_back_is_not_saved(
    spoil, opened, tmp_path, monkeypatch, caplog
):
    with monkeypatch.context() as patch:
        after_save(patch, spoil)
        assert save(opened, 2) is not None
        assert "a checkpoint could not be saved" in caplog.text
        assert steps(tmp_path) == [1] and opened.latest == 1
        with pytest.raises(CheckpointError, match="step 2 could not be saved"):
            save_last(opened, 2)
    assert opened.restore(STATE)[1]["metrics"] == [{"step": 1}]


def test_older_checkpoints_go_when_the_new_one_was_read_back(
    opened, tmp_path, monkeypatch
):
    seen = []
    after_save(monkeypatch, lambda folder: seen.append(steps(tmp_path)))
    opened.save(2, STATE, manifest(2))
    assert steps(tmp_path)[0] == 1
    assert opened.wait() is None
    assert seen == [[1, 2]] and steps(tmp_path) == [2]


@pytest.mark.process
def test_an_old_checkpoint_that_cannot_be_removed_stays(
    digits_run, monkeypatch, caplog
):
    def delete(manager, step):
        raise PermissionError(errno.EACCES, "Permission denied", "manifest")

    monkeypatch.setattr(ocp.CheckpointManager, "delete", delete)
    _, run_dir = digits_run(epochs=2, num_train=32, keep_checkpoints=1)
    found = {path.name for path in (run_dir / "checkpoints").iterdir()}
    assert {"1", "2"} <= found
    assert "checkpoint 1 was not removed: [Errno 13] Permission denied" in caplog.text


def test_checkpoints_that_are_no_folder_are_an_error_of_one_line(digits_run, tmp_path):
    (tmp_path / "run0").mkdir()
    (tmp_path / "run0" / "checkpoints").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="checkpoints cannot be written"):
        digits_run(epochs=1, num_train=32)


def test_lines_written_after_a_save_has_begun_are_not_in_it(tmp_path):
    """The manifest is written by another thread, at any time before the next save."""
    checkpoints = Checkpoints(tmp_path, 3, {"devices": "1"})
    for step in range(1, 6):
        records = [{"step": step}]
        manifest = {"metrics": records, "data": {}}
        assert checkpoints.save(step, STATE, manifest) is None
        records.append({"step": -1})
        assert checkpoints.wait() is None
    checkpoints.close()
