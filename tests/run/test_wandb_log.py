import json
import logging
import os
import signal
import sys
import types

import pytest
from configs import make_config

from resnet_jax import fields
from resnet_jax.commands import train
from resnet_jax.devices import processes
from resnet_jax.errors import ConfigError, StoppedError
from resnet_jax.run import logs, run, wandb_log

LINE = {"epoch": 1, "step": 5, "test_accuracy": 0.25, "test_accuracy_seeds": [0.2, 0.3]}


class Fake(types.ModuleType):
    """wandb, of which one function may fail."""

    def __init__(self, fails=""):
        super().__init__("wandb")
        self.fails, self.calls, self.logged = fails, [], []
        self.config = types.SimpleNamespace(update=self._note("update"))
        for name in ("define_metric", "finish", "mark_preempting"):
            setattr(self, name, self._note(name))
        self.Settings = dict

    def _note(self, name):
        def call(*args, **options):
            self.calls.append((name, args, options))
            if self.fails == name:
                raise OSError(f"{name} failed\nsecond line")

        return call

    def init(self, **options):
        self._note("init")(**options)
        return self

    def log(self, record):
        self._note("log")(record)
        self.logged.append(record)

    def called(self):
        return [name for name, *_ in self.calls]


@pytest.fixture
def fake(monkeypatch):
    def make(fails=""):
        module = Fake(fails)
        monkeypatch.setitem(sys.modules, "wandb", module)
        return module

    return make


def begin(run_dir, is_resumed=False):
    opened = wandb_log.WandbLog(
        run_dir, "pets", {"optim": {"lr": 0.5}}, is_resumed=is_resumed
    )
    opened.begin()
    return opened


def test_each_line_goes_to_the_project(fake, tmp_path):
    wandb = fake()
    opened = begin(tmp_path / "run")
    opened.write(LINE)
    opened.write(LINE | {"epoch": 2})
    opened.close()
    opened.close()
    assert wandb.called() == ["init", "define_metric", "update", "log", "log", "finish"]
    options = wandb.calls[0][2]
    assert options["project"] == "pets" and options["name"] == "run"
    assert options["resume"] == "allow" and options["dir"] == str(tmp_path / "run")
    assert options["settings"]["console"] == "off"
    assert wandb.calls[1][1:] == (("*",), {"step_metric": "epoch"})
    assert wandb.calls[2][1] == ({"optim": {"lr": 0.5}},)
    number = {name: LINE[name] for name in ("epoch", "step", "test_accuracy")}
    assert wandb.logged == [number, number | {"epoch": 2}]


def test_a_resumed_run_is_the_same_one_there(fake, tmp_path):
    wandb = fake()
    for is_resumed in (False, True, True, False):
        begin(tmp_path, is_resumed)
    ids = [options["id"] for name, _, options in wandb.calls if name == "init"]
    assert ids[0] == ids[1] == ids[2] != ids[3]
    (tmp_path / "wandb.json").unlink()  # begun without --wandb
    begin(tmp_path, is_resumed=True)
    assert wandb.calls[-3][2]["id"] not in ids


@pytest.mark.parametrize("fails", ["init", "define_metric", "update", "log", "finish"])
def test_a_failure_is_one_warning(fails, fake, tmp_path, caplog):
    wandb = fake(fails)
    opened = begin(tmp_path)
    opened.write(LINE)
    opened.write(LINE)
    opened.close()
    said = f"wandb: {fails} failed; the run goes on without it"
    assert caplog.messages == [said]
    assert wandb.called().count(fails) == 1


@pytest.mark.parametrize(
    ("code", "ending"), [(0, []), (5, []), (75, ["mark_preempting"])]
)
def test_how_a_run_ended_is_told(code, ending, fake, tmp_path):
    wandb = fake()
    opened = begin(tmp_path)
    opened.close(code)
    assert wandb.called()[3:] == [*ending, "finish"]
    assert wandb.calls[-1][2] == {"exit_code": code}


def test_a_run_that_a_signal_stops_is_none_that_finished(fake, digits_run, monkeypatch):
    wandb = fake()
    of_run = run.Run.record

    def record(self, state, sums):
        of_run(self, state, sums)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(run.Run, "record", record)
    with pytest.raises(StoppedError):
        digits_run(epochs=2, wandb="pets")
    assert wandb.called()[-2:] == ["mark_preempting", "finish"]
    assert wandb.calls[-1][2] == {"exit_code": 75}


def test_a_damaged_id_is_one_warning(fake, tmp_path, caplog):
    wandb = fake()
    (tmp_path / "wandb.json").write_text("{")
    begin(tmp_path, is_resumed=True).write(LINE)
    assert len(caplog.messages) == 1 and not wandb.calls


def test_without_its_package(tmp_path, monkeypatch, digits_run):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        ConfigError, match=r"--wandb needs wandb: pip install -e '.\[wa"
    ):
        digits_run(workdir=str(tmp_path / "run"), wandb="pets")
    assert not (tmp_path / "run").exists()


def test_of_several_processes_the_first_has_it(fake, tmp_path, monkeypatch):
    wandb = fake()
    for is_first in (False, True):
        monkeypatch.setattr(processes, "is_first", lambda first=is_first: first)
        opened = logs.open_logs(make_config(wandb="pets"), tmp_path, [], 0)
        opened.begin()
        opened.write(LINE)
        opened.close()
        assert len(wandb.logged) == is_first


@pytest.mark.process
def test_a_run_resumed_with_it_goes_on_there(fake, digits_run):
    wandb = fake()
    cfg, run_dir = digits_run(epochs=1, wandb="pets")
    assert [line["epoch"] for line in wandb.logged] == [1]
    config = next(args[0] for name, args, _ in wandb.calls if name == "update")
    assert config["optim"]["lr"] == cfg.optim.lr and config["run"]["wandb"] == "pets"
    train.main(cfg)  # finished: there is nothing to tell
    assert wandb.called().count("init") == 1
    more = fields.replace(cfg, epochs=2, override=True)
    train.main(more)
    ids = [options["id"] for name, _, options in wandb.calls if name == "init"]
    assert len(ids) == 2 and ids[0] == ids[1]
    lines = [
        json.loads(x) for x in (run_dir / "metrics.jsonl").read_text().split("\n")[:-1]
    ]
    assert wandb.logged == lines
    assert wandb.called()[-1] == "finish"
    # A run may be given it, or be without it, when it goes on.
    train.main(fields.replace(more, epochs=3, wandb=None))
    assert len(wandb.logged) == 2


@pytest.fixture
def real(monkeypatch):
    """The package itself, which reads its environment again."""
    wandb = pytest.importorskip("wandb", reason="pip install -e '.[wandb]' brings it")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.mark.process  # a program of wandb's own is started
def test_the_real_package_offline(real, digits_run, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "offline")
    caplog.set_level(logging.WARNING)
    cfg, run_dir = digits_run(epochs=1, wandb="pets")
    train.main(fields.replace(cfg, epochs=2, override=True))
    assert not caplog.messages
    name = json.loads((run_dir / "wandb.json").read_text())["id"]
    files = sorted((run_dir / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))
    assert len(files) == 2  # of one run, which `wandb sync` puts together
    line = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[1])
    content = files[1].read_bytes()
    for key in ("test_accuracy", "train_loss", "lr"):
        assert key.encode() in content
    assert json.dumps(line["train_loss"]).encode() in content
    assert b"weight_decay" in content and b"pets" in content


@pytest.mark.process
def test_the_real_package_without_a_key(
    real, digits_run, monkeypatch, caplog, tmp_path
):
    monkeypatch.setenv("HOME", str(tmp_path))  # no .netrc
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    _, run_dir = digits_run(epochs=1, wandb="pets")
    (said,) = [message for message in caplog.messages if message.startswith("wandb:")]
    assert "No API key configured" in said and "goes on without it" in said
    assert len((run_dir / "metrics.jsonl").read_text().splitlines()) == 1
