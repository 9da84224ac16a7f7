import errno
import fcntl
import json
import os
import socket
import subprocess
import sys

import pytest

from resnet_jax import fields
from resnet_jax.config import Config, ModelConfig, OptimConfig
from resnet_jax.errors import ConfigError
from resnet_jax.run import directory


def hold_elsewhere(run_dir):
    """Starts a process that holds `run_dir` until its stdin is closed."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from resnet_jax.run import directory\n"
        "with directory.claim(Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(run_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_the_holder_says_who_it_is(tmp_path):
    with directory.claim(tmp_path / "run"):
        holder = json.loads((tmp_path / "run" / directory.HOLDER).read_text())
    assert holder["pid"] == os.getpid() and holder["host"] == socket.gethostname()
    assert not (tmp_path / "run").exists()  # because nothing was put there


def test_what_was_put_there_stays(tmp_path):
    with directory.claim(tmp_path / "run"):
        (tmp_path / "run" / "file").touch()
    assert (tmp_path / "run" / "file").exists()
    assert not (tmp_path / "run" / directory.HOLDER).exists()


def test_another_process_is_refused_until_it_ends(tmp_path):
    process = hold_elsewhere(tmp_path)
    with pytest.raises(ConfigError, match=f"in use by process {process.pid} on"):
        with directory.claim(tmp_path):
            raise AssertionError("two hold it")
    process.communicate()
    with directory.claim(tmp_path):
        pass


def test_a_lock_of_a_dead_process_is_taken_over(tmp_path, caplog):
    process = hold_elsewhere(tmp_path)
    process.kill()
    process.communicate()
    assert (tmp_path / directory.HOLDER).exists()
    with directory.claim(tmp_path):
        assert f"taken over from process {process.pid}" in caplog.text


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000, '{"pid": {"a": 1}}'])
def test_what_a_holder_left_may_be_anything(text, tmp_path):
    (tmp_path / directory.HOLDER).write_text(text)
    with directory.claim(tmp_path):
        pass


def test_scratch_of_a_dead_process_goes(tmp_path):
    (tmp_path / ".resnet_jax-x").mkdir()
    (tmp_path / ".resnet_jax-x" / "half").touch()
    (tmp_path / "mine").touch()
    with directory.claim(tmp_path):
        assert not (tmp_path / ".resnet_jax-x").exists()
    assert (tmp_path / "mine").exists()


def test_a_directory_that_became_read_only_does_not_hide_the_error(
    tmp_path, monkeypatch
):
    def refuse(path, missing_ok=False):
        raise OSError(errno.EROFS, "Read-only file system")

    with pytest.raises(ConfigError, match="mine"), directory.claim(tmp_path):
        monkeypatch.setattr(directory.Path, "unlink", refuse)
        raise ConfigError("mine")
    monkeypatch.undo()
    with directory.claim(tmp_path):  # it was released
        pass


def test_what_a_resume_may_change_is_said_by_the_fields():
    resume = {
        one.name: one.metadata.get("resume", "same") for one, _ in fields.flat(Config())
    }
    for group in (ModelConfig(), OptimConfig()):  # what is trained, and how
        assert {resume[one.name] for one, _ in fields.flat(group)} == {"same"}
    for name in ("dataset", "seed", "batch_size", "validation_split", "sync_bn"):
        assert resume[name] == "same"
    assert resume["epochs"] == resume["keep_checkpoints"] == "override"
    assert resume["workdir"] == resume["devices"] == resume["data_dir"] == "free"


def test_a_config_is_written_by_groups_and_read_back(tmp_path):
    cfg = fields.replace(Config(), lr=0.5, model="resnet8", lr_milestones=(3, 4))
    directory.write_config(tmp_path, cfg, ["a", "b"])
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["optim"]["lr"] == 0.5 and written["model"]["model"] == "resnet8"
    found = directory.read_run(tmp_path)
    assert found.run.workdir == os.path.abspath(cfg.run.workdir)
    assert fields.replace(found, workdir=cfg.run.workdir) == cfg
    assert directory.read_classes(tmp_path) == ("a", "b")


def _refuse_locks(monkeypatch, number):
    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_where_a_file_system_has_no_locks_a_file_is_one(tmp_path, monkeypatch):
    _refuse_locks(monkeypatch, errno.ENOLCK)
    with directory.claim(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock.soft").exists()
        with pytest.raises(ConfigError, match=f"in use by process {os.getpid()} on"):
            with directory.claim(tmp_path / "run"):
                pass
    with directory.claim(tmp_path / "run"):  # it was released
        pass
    assert not (tmp_path / "run").exists()  # nothing was put there


@pytest.mark.parametrize("number", [errno.EPERM, errno.ESTALE, errno.EDQUOT])
def test_a_lock_that_is_refused_is_an_error_of_one_line(number, tmp_path, monkeypatch):
    _refuse_locks(monkeypatch, number)
    message = rf"cannot be locked \({os.strerror(number)}\): choose another --workdir"
    with pytest.raises(ConfigError, match=message), directory.claim(tmp_path / "run"):
        pass
