"""Runs whose images are changed, moved or given other classes afterwards."""

import json

import numpy as np
import pytest
from PIL import Image

from resnet_jax import data, fields
from resnet_jax.commands import evaluate, train
from resnet_jax.commands.evaluate import EvaluateConfig
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.report import figures, subject
from resnet_jax.report.options import SubjectConfig

NOTE = "test images differ from those of the training run"


def draw(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def trained(digits_run, tmp_path):
    """(cfg, run directory, folder) of a run on a folder of two classes, both in a/."""
    root = tmp_path / "a" / "pets"
    for split, count in (("train", 4), ("test", 3)):
        for label, name in enumerate(("cat", "dog")):
            for index in range(count):
                draw(root / split / name / f"{index}.png", 10 * label + index)
    cfg, run_dir = digits_run(
        **{"dataset": "folder", "data_dir": str(root), "image_size": 8, "epochs": 1},
        **{"batch_size": 8, "max_test_samples": 4},
        workdir=str(tmp_path / "a" / "run"),
    )
    return cfg, run_dir, root


def printed(capsys, run, **options):
    capsys.readouterr()
    evaluate.main(EvaluateConfig(run=str(run), **options))
    return capsys.readouterr().out.splitlines()


@pytest.mark.process
def test_images_that_are_not_those_of_training_are_said_to_be_others(
    trained, tmp_path, capsys, monkeypatch
):
    def save(figure, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((1, 1, 3), np.uint8)).save(path)

    monkeypatch.setattr(figures, "save_figure", save)
    _, run_dir, root = trained
    output = tmp_path / "scores.json"

    def texts(name):
        """Returns all outputs of an evaluation, to look for the note in each."""
        exported = tmp_path / name
        options = {"output": str(output), "report": True, "export": str(exported)}
        lines = printed(capsys, run_dir, **options)
        return exported, [
            lines[0],
            lines[-1],
            json.loads(output.read_text())["scored"],
            (run_dir / "report" / "index.html").read_text(encoding="utf-8"),
            (exported / "README.md").read_text(encoding="utf-8"),
        ]

    exported, said = texts("same")
    assert [NOTE in text for text in said] == [False] * 5
    assert NOTE not in printed(capsys, exported, data_dir=str(root))[-1]
    for index in range(3):
        draw(root / "test" / "dog" / f"{index}.png", 100 + index)
    before = exported
    exported, said = texts("others")
    assert [NOTE in text for text in said] == [True] * 5
    assert said[1].endswith(f" n 6 ({NOTE})")
    assert f"On the 6 test images ({NOTE}), it has an accuracy of" in said[-1]
    # An exported network knows which images its scores belong to.
    assert NOTE in printed(capsys, before, data_dir=str(root))[-1]
    assert NOTE not in printed(capsys, exported, data_dir=str(root))[-1]


@pytest.mark.process
def test_a_run_that_moved_with_its_images_finds_them(trained, tmp_path, capsys):
    _, run_dir, _ = trained
    last = printed(capsys, run_dir)[-1]
    (tmp_path / "a").rename(tmp_path / "b")
    assert printed(capsys, tmp_path / "b" / "run")[-1] == last
    (tmp_path / "b" / "pets").rename(tmp_path / "pets")
    with pytest.raises(DataError, match=f"{tmp_path / 'a' / 'pets' / 'train'} is no"):
        printed(capsys, tmp_path / "b" / "run")
    moved = {"data_dir": str(tmp_path / "pets")}
    assert printed(capsys, tmp_path / "b" / "run", **moved)[-1] == last


def test_a_relative_run_that_moved_with_its_images_finds_them(
    trained, tmp_path, capsys, monkeypatch
):
    cfg, _, _ = trained
    monkeypatch.chdir(tmp_path / "a")
    cfg = fields.replace(cfg, workdir="other", data_dir="pets")
    train.main(cfg)
    last = printed(capsys, "other")[-1]
    (tmp_path / "a").rename(tmp_path / "b")
    monkeypatch.chdir(tmp_path / "b")
    assert printed(capsys, "other")[-1] == last
    monkeypatch.chdir(tmp_path)
    assert printed(capsys, "b/other")[-1] == last


@pytest.mark.process
def test_a_run_that_moved_with_its_class_names_finds_them(trained, tmp_path, capsys):
    cfg, _, _ = trained
    names = tmp_path / "a" / "names.txt"
    names.write_text("cat tom\ndog rex\n")
    workdir = str(tmp_path / "a" / "named")
    train.main(fields.replace(cfg, workdir=workdir, class_names=str(names)))
    lines = printed(capsys, workdir)
    assert lines[1].startswith("tom ") and lines[2].startswith("rex ")
    (tmp_path / "a").rename(tmp_path / "b")
    assert printed(capsys, tmp_path / "b" / "named")[1:] == lines[1:]
    (tmp_path / "b" / "names.txt").unlink()
    with pytest.raises(DataError, match="names.txt: class names cannot be read"):
        printed(capsys, tmp_path / "b" / "named")


def test_class_names_are_shown_where_they_differ(trained, capsys):
    cfg, run_dir, root = trained
    for split in ("train", "test"):
        (root / split / "dog").rename(root / split / "hound")
    difference = r"\(class 1 was 'dog' and is now 'hound'\)"
    with pytest.raises(
        DataError, match=f"differ from those of the data {difference}: choose"
    ):
        printed(capsys, run_dir)
    with pytest.raises(
        ConfigError, match=f"started with different classes {difference}: "
    ):
        train.main(fields.replace(cfg, epochs=2, override=True))
    for split in ("train", "test"):
        draw(root / split / "ant" / "0.png", 0)
        (root / split / "hound").rename(root / split / "dog")
    with pytest.raises(
        DataError, match=r"\(class 0 was 'cat' and is now 'ant', with 2 classes"
    ):
        printed(capsys, run_dir)


def test_of_resized_images_nothing_is_said(trained, capsys):
    _, run_dir, _ = trained
    assert printed(capsys, run_dir, image_size=16)[-1].endswith("n 6")


def test_images_that_training_did_not_hold_are_known_by_their_number_and_labels(
    trained, capsys
):
    cfg, run_dir, root = trained
    test = data.load_test(fields.replace(cfg.data, max_test_samples=None)).test
    found = subject.load(SubjectConfig(run=str(run_dir)))
    scored = data.subset(test, 4)
    then = {"test data": data.digest(scored, unread=True)}
    assert subject.check_data(found._replace(data=then), test) == ""
    fewer = test.take(np.array([1, 1, 1, 1, 1, 1]))
    assert subject.check_data(found._replace(data=then), fewer) == NOTE
