"""Directory names that a library could misinterpret."""

import json
import os
import shlex
import shutil
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_jax import data, fields
from resnet_jax.commands import evaluate, train
from resnet_jax.commands.evaluate import EvaluateConfig
from resnet_jax.commands.streams import Stream
from resnet_jax.report import figures
from resnet_jax.run import session

NAMES = [
    *("pets [v2]", "a*?", os.fsdecode(b"\xff\xfe"), " ü 日本", "-n\nq'\"\\x"),
    *("%41#?a=b:{a}$HOME", "../up", "a.__lock"),
]
SMALL = {"epochs": 1, "num_train": 32}


def last_metrics(run_dir):
    lines = Path(run_dir, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads(lines[-1])


def steps(run_dir):
    return {int(path.name) for path in (run_dir / "checkpoints").iterdir()}


def score(run_dir, capsys, **options):
    """Returns the last line of evaluate.py."""
    capsys.readouterr()
    evaluate.main(EvaluateConfig(run=str(run_dir), **options))
    return capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_run_directory_may_have_any_name(
    name, digits_run, tmp_path, capsys, monkeypatch
):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    told = []  # not by caplog: pytest-xdist cannot send surrogates
    record = lambda text, *args: told.append(text % args)  # noqa: E731
    monkeypatch.setattr(session.log, "info", record)
    with redirect_stdout(Stream(sys.stdout)):  # as in commands
        cfg, run_dir = digits_run(workdir=name, keep_checkpoints=1, **SMALL)
        assert steps(here / name) == {1}
        train.main(fields.replace(cfg, epochs=2, override=True))
        assert steps(here / name) == {2}
        scores = score(run_dir, capsys).split()
    (command,) = {m.split("`")[1] for m in told if m.startswith("done:")}
    assert shlex.split(command) == ["python", "evaluate.py", name]
    last = last_metrics(run_dir)
    assert last["epoch"] == last["step"] == 2
    assert float(scores[1]) == pytest.approx(100 * last["test_accuracy"])
    assert float(scores[5]) == pytest.approx(last["test_loss"], abs=1e-5)


def test_the_path_of_a_run_may_begin_with_two_slashes(digits_run, tmp_path, capsys):
    workdir = f"/{tmp_path}/run"
    digits_run(workdir=workdir, **SMALL)
    assert steps(tmp_path / "run") == {1}
    scores = score(workdir, capsys).split()
    last = last_metrics(workdir)
    assert float(scores[1]) == pytest.approx(100 * last["test_accuracy"])


@pytest.mark.process
def test_what_is_asked_for_lies_in_the_folder_with_brackets(
    digits_run, tmp_path, capsys, monkeypatch
):
    def save(figure, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((1, 1, 3), np.uint8)).save(path)

    monkeypatch.setattr(figures, "save_figure", save)
    run_dir = tmp_path / "pets [v2]"
    digits_run(workdir=str(run_dir), **SMALL)
    output, exported = run_dir / "scores.json", run_dir / "exported"
    line = score(run_dir, capsys, report=True, output=str(output), export=str(exported))
    assert json.loads(output.read_text())["count"] == 40
    assert (run_dir / "report" / "index.html").is_file()
    assert score(exported, capsys) == line
    assert not list(tmp_path.glob("pets v*")) and not list(tmp_path.glob("pets 2*"))


def test_a_folder_of_images_may_have_brackets(tmp_path):
    root = tmp_path / "data [1]"
    for split in ("train", "test"):
        for name in ("cat [a]", "dog*"):
            directory = root / split / name
            directory.mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(directory / "x [0].png")
    train_split, test_split = data.load_dataset("folder", root, image_size=4)
    assert train_split.class_names == ("cat [a]", "dog*")
    assert len(train_split) == len(test_split) == 2


def test_a_prepared_directory_may_have_what_tfds_takes_for_splits(
    prepared_dir, small_cifar, tmp_path
):
    root = tmp_path / "tfds [1]@2:3"
    shutil.copytree(prepared_dir, root)
    train_split, test_split = data.load_dataset("cifar10", root)
    np.testing.assert_array_equal(train_split.images, small_cifar.train[0])
    np.testing.assert_array_equal(test_split.labels, small_cifar.test[1])
