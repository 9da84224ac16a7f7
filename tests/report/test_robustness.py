import json
import re
from functools import partial

import jax
import numpy as np
import pytest
from configs import make_config
from PIL import Image

from resnet_jax import data, devices, models, training
from resnet_jax.commands import evaluate
from resnet_jax.commands.evaluate import EvaluateConfig
from resnet_jax.data import corruptions
from resnet_jax.data.dataset import Dataset, Splits
from resnet_jax.report import robustness
from resnet_jax.report.subject import Subject
from resnet_jax.training import seeds as seeds_module
from resnet_jax.training.state import TrainState

NAMES = ("a", "b", "c")


@pytest.fixture
def found():
    """Returns a result of measure."""
    accuracy = {
        name: [0.9 - 0.01 * index - 0.1 * severity for severity in range(5)]
        for index, name in enumerate(corruptions.CORRUPTIONS)
    }
    mean = float(np.mean(list(accuracy.values())))
    return {
        **{"count": 10, "seed": 0, "severities": [1, 2, 3, 4, 5], "clean": 0.95},
        **{"accuracy": accuracy, "mean_accuracy": mean},
    }


@pytest.fixture
def make(one_block):
    """Returns (subject, preprocess, loader): `seeds` networks, 22 random images."""

    def make(seeds):
        cfg = make_config(
            **{"model": one_block, "dataset": "digits", "normalize": "half"},
            **{"eval_batch_size": 4, "num_seeds": seeds},
        )
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (22, 8, 8, 3), np.uint8)
        labels = rng.integers(0, 3, 22).astype(np.int32)
        model = models.create_model(one_block, num_classes=3)
        each = [
            training.init_variables(model, (8, 8, 3), key=jax.random.key(i))
            for i in range(seeds)
        ]
        variables = each[0] if seeds == 1 else seeds_module.stack(each)
        state = TrainState(step=0, opt_state=(), ema=None, **variables)
        subject = Subject("a network", cfg, model, state, (8, 8, 3), NAMES)
        whole = Dataset(images, labels, NAMES)
        splits = Splits(whole.take(slice(0)), whole.take(slice(0)), whole, {})
        loader = data.Loader(devices.make_mesh(1), splits, cfg.data)
        preprocess = data.make_preprocess(cfg.augment, (8, 8, 3))
        return (subject, preprocess, loader), each, whole

    return make


@pytest.mark.process
@pytest.mark.parametrize("seeds", [1, pytest.param(2, marks=pytest.mark.process)])
def test_each_corruption_is_scored_on_every_image(seeds, make, monkeypatch):
    monkeypatch.setattr(robustness, "_IMAGES", 9)  # two whole batches
    made, each, test = make(seeds)
    found = robustness.measure(*made, seed=3)
    assert found["count"] == 22 and found["seed"] == 3

    apply = jax.jit(partial(made[0].model.apply, train=False))

    def accuracy(images):
        x = np.float32((images / 255 - 0.5) / 0.25)
        logits = [np.asarray(apply(own, x)) for own in each]
        return np.mean([(one.argmax(-1) == test.labels).mean() for one in logits])

    assert found["clean"] == pytest.approx(accuracy(test.images))
    assert list(found["accuracy"]) == list(corruptions.CORRUPTIONS)
    for name, values in found["accuracy"].items():
        for severity, value in zip((1, 2, 3, 4, 5), values, strict=True):
            changed = corruptions.corrupt(name, test.images, severity, seed=3)
            assert value == pytest.approx(accuracy(changed)), (name, severity)
    mean = np.mean(list(found["accuracy"].values()))
    assert found["mean_accuracy"] == pytest.approx(mean)
    assert len({value for row in found["accuracy"].values() for value in row}) > 1


def test_the_table_has_the_means_of_rows_and_columns(found):
    header, *rows, last = robustness.text(found).splitlines()
    assert header.split() == ["severity", "1", "2", "3", "4", "5", "mean"]
    assert len(rows) == 8 and len({len(row) for row in (header, *rows)}) == 1
    assert rows[1].split() == [
        *("shot", "noise", "89.00", "79.00", "69.00", "59.00", "49.00", "69.00")
    ]
    assert rows[-1].split() == ["mean", "87.00", "77.00", "67.00", "57.00", "47.00"] + [
        "67.00"
    ]
    assert last == "mean corruption accuracy 67.000 (without corruption 95.000)"


@pytest.mark.parametrize("channels", [1, 3])
def test_the_pictures_show_every_corruption(channels, found, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        robustness.figures, "save_figure", lambda figure, path: drawn.append(figure)
    )
    robustness.plot_severities(found, tmp_path / "a.png")
    (axes,) = drawn[0].axes
    assert [line.get_label() for line in axes.lines] == list(corruptions.CORRUPTIONS)
    for line, values in zip(axes.lines, found["accuracy"].values(), strict=True):
        assert list(line.get_xdata()) == [0, 1, 2, 3, 4, 5]
        np.testing.assert_allclose(line.get_ydata(), [95, *(100 * x for x in values)])
    image = np.random.default_rng(0).integers(0, 256, (1, 16, 16, channels), np.uint8)
    robustness.plot_corruptions(image, 7, tmp_path / "b.png")
    grid = [axes for axes in drawn[1].axes if axes.images]
    assert len(grid) == 1 + 3 * 7
    shown = [np.asarray(axes.images[0].get_array()) for axes in grid]
    np.testing.assert_array_equal(shown[0].reshape(image[0].shape), image[0])
    names = list(corruptions.CORRUPTIONS)
    for place, severity in ((7, 1), (14, 3), (21, 5)):
        expected = corruptions.corrupt(names[6], image, severity, 7)[0]
        np.testing.assert_array_equal(shown[place].reshape(expected.shape), expected)


@pytest.mark.process  # because of its figures
def test_evaluate_prints_it_writes_it_and_shows_it(digits_run, tmp_path, capsys):
    _, run_dir = digits_run(epochs=1)
    output = tmp_path / "o.json"
    options = {"run": str(run_dir), "output": str(output), "report": True}
    evaluate.main(EvaluateConfig(**options, robustness=True))
    printed = capsys.readouterr().out
    said = json.loads(output.read_text())
    found = said["robustness"]
    assert robustness.text(found) in printed
    assert printed.splitlines()[-1].startswith("Acc@1 ")
    assert found["clean"] == said["accuracy"] and found["count"] == 40
    folder = run_dir / "report"
    assert json.loads((folder / "report.json").read_text())["robustness"] == found
    text = (folder / "index.html").read_text(encoding="utf-8")
    row = r'<h2>Robustness</h2>.*<th scope="row">pixelate</th>'
    assert re.search(row, text, re.DOTALL)
    for name in ("robustness", "corruptions"):
        with Image.open(folder / f"{name}.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 10

    evaluate.main(EvaluateConfig(**options))
    assert "corruption" not in capsys.readouterr().out
    assert "robustness" not in json.loads(output.read_text())
    assert "<h2>Robustness" not in (folder / "index.html").read_text(encoding="utf-8")
