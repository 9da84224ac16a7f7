import json
import os
from functools import partial

import jax
import numpy as np
import pytest
from configs import make_config
from PIL import Image

from resnet_jax import data, devices, models, training
from resnet_jax.commands import evaluate
from resnet_jax.commands.evaluate import EvaluateConfig
from resnet_jax.data.dataset import Dataset, Splits
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.report import predictions
from resnet_jax.report.subject import Subject
from resnet_jax.training import seeds as seeds_module
from resnet_jax.training.state import TrainState


def rows_of(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def make(one_block):
    """Returns (subject, preprocess, loader) for an untrained network and images."""

    def make(images, labels, names, seeds=1, **fields):
        cfg = make_config(
            **{
                **{"model": one_block, "dataset": "digits", "normalize": "half"},
                **{"eval_batch_size": 4, "num_seeds": seeds, **fields},
            }
        )
        shape = images.shape[1:]
        model = models.create_model(one_block, num_classes=len(names))
        each = [
            training.init_variables(model, shape, key=jax.random.key(i))
            for i in range(seeds)
        ]
        variables = each[0] if seeds == 1 else seeds_module.stack(each)
        state = TrainState(step=0, opt_state=(), ema=None, **variables)
        subject = Subject("a network", cfg, model, state, shape, names)
        whole = Dataset(images, labels, names)
        none = whole.take(slice(0))
        loader = data.Loader(
            devices.make_mesh(1), Splits(none, none, whole, {}), cfg.data
        )
        preprocess = data.make_preprocess(cfg.augment, shape)
        return subject, preprocess, loader, each

    return make


def test_a_row_says_all_of_an_image(make, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (11, 8, 8, 3), np.uint8)
    labels = rng.integers(0, 3, 11).astype(np.int32)
    names = ("ant", "bee", "T-shirt/top")
    path = tmp_path / "p.jsonl"
    monkeypatch.setattr(predictions, "_ROWS", 4)
    for seeds in (1, 2):
        *made, each = make(images, labels, names, seeds)
        assert predictions.write_predictions(path, *made) == 11
        rows = rows_of(path)
        x = np.float32((images / 255 - 0.5) / 0.25)
        apply = jax.jit(partial(made[0].model.apply, train=False))
        softmax = [jax.nn.softmax(apply(own, x)) for own in each]
        expected = np.mean(softmax, axis=0)
        assert list(rows[0]) == [
            *("index", "label", "class", "predicted", "predicted_class"),
            *("probability", "correct"),
            *(f"probability_{name}" for name in names),
        ]
        assert [row["index"] for row in rows] == list(range(11))
        assert [row["label"] for row in rows] == labels.tolist()
        assert [row["class"] for row in rows] == [names[y] for y in labels]
        predicted = expected.argmax(1)
        assert [row["predicted"] for row in rows] == predicted.tolist()
        assert [row["predicted_class"] for row in rows] == [names[p] for p in predicted]
        assert [row["correct"] for row in rows] == (predicted == labels).tolist()
        found = [[row[f"probability_{name}"] for name in names] for row in rows]
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        largest = [row["probability"] for row in rows]
        np.testing.assert_allclose(largest, expected.max(1), rtol=1e-4)


@pytest.mark.parametrize("num", [100, 101])
def test_of_more_than_100_classes_only_the_likeliest_is_there(num, make, tmp_path):
    names = tuple(f"class {index}" for index in range(num))
    labels = np.array([0, 1], np.int32)
    *made, _ = make(np.zeros((2, 8, 8, 3), np.uint8), labels, names)
    predictions.write_predictions(tmp_path / "p.jsonl", *made)
    found = [name for name in rows_of(tmp_path / "p.jsonl")[0] if "_class " in name]
    assert len(found) == (100 if num == 100 else 0)


@pytest.fixture
def folder(tmp_path):
    """A folder of two classes; one of its five test images cannot be read."""
    root = tmp_path / "pets"
    rng = np.random.default_rng(0)
    for split, count in (("train", 1), ("test", 3)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    (root / "test" / "cat" / "2.png").unlink()
    return root


@pytest.mark.parametrize("skips", [False, True])
def test_a_folder_s_images_have_their_paths(skips, folder, make, tmp_path):
    if skips:
        (folder / "test" / "cat" / "0.png").write_text("<html>")
    how = {"dataset": "folder", "data_dir": str(folder), "image_size": 8}
    how |= {"skip_bad_images": skips, "crop_pct": 1.0}
    test = data.load_test(make_config(**how).data).test
    *made, _ = make(test.images, test.labels, ("cat", "dog"), **how)
    predictions.write_predictions(tmp_path / "p.jsonl", *made)
    rows = rows_of(tmp_path / "p.jsonl")
    assert list(rows[0])[:3] == ["index", "path", "label"]
    names = ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png", "dog/2.png"]
    expected = [str(folder / "test" / name) for name in names[skips:]]
    assert [row["path"] for row in rows] == expected
    assert [row["class"] for row in rows] == [name[:3] for name in names[skips:]]

    for path in (folder / "test" / "dog").iterdir():
        path.unlink()
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(
            folder / "test" / "dog/n.png"
        )
    with pytest.raises(DataError, match=r"pets has \d test images now, but \d were sc"):
        predictions.write_predictions(tmp_path / "p.jsonl", *made)


def test_evaluate_writes_what_it_scored(digits_run, tmp_path, capsys):
    _, run_dir = digits_run(epochs=1)
    path, output = tmp_path / "p.csv", tmp_path / "o.json"
    options = {"run": str(run_dir), "output": str(output)}
    with pytest.raises(ConfigError, match="--predictions p.doc has no known suffix"):
        evaluate.main(EvaluateConfig(**options, predictions="p.doc"))
    assert not output.exists()
    capsys.readouterr()
    evaluate.main(EvaluateConfig(**options, predictions=str(path)))
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2] == f"predictions: {path}, 40 images"
    assert printed[-1].startswith("Acc@1 ")
    header, *rows = [line.split(",") for line in path.read_text().splitlines()]
    right = [row[header.index("correct")] for row in rows]
    assert len(right) == 40 and set(right) <= {"true", "false"}
    assert right.count("true") / 40 == json.loads(output.read_text())["accuracy"]
    assert os.listdir(tmp_path).count("p.csv") == 1


def test_images_of_shards_have_no_paths(tmp_path):
    from resnet_jax.config import DataConfig

    (tmp_path / "shards.json").touch()
    cfg = DataConfig(dataset="folder", data_dir=str(tmp_path))
    assert predictions._paths(cfg, 3) is None
    assert predictions._paths(DataConfig(), 3) is None
