import csv
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from configs import make_config
from flax import linen as nn
from PIL import Image

from resnet_jax import models, training
from resnet_jax.commands import predict as command
from resnet_jax.commands.predict import PredictConfig
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.report import predict
from resnet_jax.report.subject import Subject
from resnet_jax.training.state import TrainState


def test_a_map_is_the_weighted_sum_of_the_last_block(tiny, key):
    """The gradient is known for a network that ends in a mean and a linear layer."""
    model = models.create_model(tiny, num_classes=3)
    variables = training.init_variables(model, (8, 8, 3), key=key)
    x = jax.random.normal(key, (2, 8, 8, 3))
    classes = jnp.array([2, 0])
    heat = predict.grad_cam(model, variables, x, classes)
    _, state = model.apply(variables, x, train=False, mutable=["intermediates"])
    maps = state["intermediates"]["layer2"][0]  # [2, 4, 4, 8]
    weights = variables["params"]["fc"]["kernel"][:, classes] / 16
    expected = nn.relu(jnp.einsum("bhwc,cb->bhw", maps, weights))
    expected /= expected.max((1, 2), keepdims=True)
    np.testing.assert_allclose(heat, expected, atol=1e-5)
    assert heat.shape == (2, 4, 4) and float(heat.max()) == 1.0


def test_a_network_without_blocks_is_refused(key):
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return nn.Dense(3)(x.mean((1, 2)))

    model = Plain()
    x = jnp.zeros((1, 8, 8, 3))
    variables = model.init(key, x, train=False)
    with pytest.raises(ConfigError, match="residual blocks"):
        predict.grad_cam(model, variables, x, jnp.array([0]))


CLASSES = ("ant", "bee", "cat", "dog")


@pytest.fixture
def subject(one_block, key):
    """An untrained network with four classes."""
    cfg = make_config(model=one_block, dataset="digits", normalize="half")
    model = models.create_model(one_block, num_classes=4)
    variables = training.init_variables(model, (32, 32, 3), key=key)
    state = TrainState(step=0, opt_state=(), ema=None, **variables)
    return Subject("a network", cfg, model, state, (32, 32, 3), CLASSES)


@pytest.fixture
def images(tmp_path):
    """A folder of eleven images, each with its own brightness."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(11):
        pixels = rng.integers(0, 20 * index + 40, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
    return folder


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_file_has_a_row_for_each_image(subject, images, tmp_path, capsys):
    output = tmp_path / "p.csv"
    predict.predict_files(subject, [str(images)], None, output, top_k=3)
    assert capsys.readouterr() == (f"predictions: {output}, 11 images\n", "")
    rows = rows_of(output)
    names = ["path", "label", "class", "probability"]
    names += [f"{what}_{k}" for what in ("class", "probability") for k in (1, 2, 3)]
    assert list(rows[0]) == names
    assert [row["path"] for row in rows] == sorted(map(str, images.iterdir()))
    for row in rows:
        pixels = np.asarray(Image.open(row["path"]))[None]
        x = np.float32((pixels / 255 - 0.5) / 0.25)
        logits = subject.model.apply(subject.state.variables, x, train=False)
        expected = np.asarray(jax.nn.softmax(logits))[0]
        order = np.argsort(-expected)
        assert int(row["label"]) == order[0] and row["class"] == CLASSES[order[0]]
        assert [row[f"class_{k}"] for k in (1, 2, 3)] == [CLASSES[i] for i in order[:3]]
        found = [float(row[f"probability_{k}"]) for k in (1, 2, 3)]
        np.testing.assert_allclose(found, expected[order[:3]], rtol=1e-4)
        assert row["probability"] == row["probability_1"]

    predict.predict_files(subject, [str(images / "03.png")], top_k=2)
    path, *printed = capsys.readouterr().out.splitlines()
    assert path == rows[3]["path"] and [line.split()[2] for line in printed] == [
        rows[3]["class_1"], rows[3]["class_2"]
    ]  # fmt: skip
    predict.predict_files(subject, [str(images / "03.png")], None, output, top_k=9)
    (row,) = rows_of(output)
    assert "class_4" in row and "class_5" not in row
    assert capsys.readouterr().out == f"predictions: {output}, 1 image\n"


def test_an_image_s_row_does_not_depend_on_the_others(
    subject, images, tmp_path, monkeypatch
):
    def found(name, *paths):
        predict.predict_files(subject, list(map(str, paths)), None, tmp_path / name)
        return json.loads((tmp_path / name).read_text())

    whole = found("whole.json", images)
    monkeypatch.setattr(predict, "BATCH", 4)
    (images / "05.png").rename(images / "zz.png")
    for other in (found("fours.json", images), found("one.json", images / "03.png")):
        by_path = {row["path"]: row for row in whole}
        for row in other:
            expected = by_path.get(row["path"], whole[5])
            assert row["class"] == expected["class"]
            assert row["probability_3"] == pytest.approx(
                expected["probability_3"], rel=1e-4
            )


def test_batches_of_large_images_are_small(subject, images, tmp_path, monkeypatch):
    sizes = []
    read = predict.decoding.read_batches

    def note(paths, batch_size, **how):
        sizes.append(batch_size)
        return read(paths, batch_size, **how)

    monkeypatch.setattr(predict.decoding, "read_batches", note)
    for limit in (3 * 32 * 32 * 5 + 100, 1, 2**24):
        monkeypatch.setattr(predict, "_BATCH_SIZE", limit)
        predict.predict_files(subject, [str(images)], None, tmp_path / "p.jsonl")
        assert (tmp_path / "p.jsonl").read_text().count("\n") == 11
    assert sizes == [5, 1, 64]


def test_files_that_cannot_be_read_are_named_and_the_others_written(
    subject, images, tmp_path, capsys
):
    for name in ("00.png", "07.png"):
        (images / name).write_text("<html>")
    output = tmp_path / "p.csv"
    message = r"3 of 12 files cannot be read: .*00.png .cannot.*07.png .*, gone.png \("
    with pytest.raises(DataError, match=message):
        predict.predict_files(subject, [str(images), "gone.png"], None, output)
    assert capsys.readouterr().out == f"predictions: {output}, 9 images\n"
    assert len(rows_of(output)) == 9

    # If none is left, earlier files stay.
    before = output.read_bytes()
    with pytest.raises(DataError, match=r"1 of 1 files cannot be read: gone.png \("):
        predict.predict_files(subject, ["gone.png"], None, output)
    shutil.rmtree(images)
    images.mkdir()
    with pytest.raises(DataError, match=r"images: no images found"):
        predict.predict_files(subject, [str(images)], None, output)
    assert output.read_bytes() == before and capsys.readouterr().out == ""
    assert {"p.csv", "images"} == set(os.listdir(tmp_path)) - {"cache", "tfds"}


def test_an_output_is_refused_before_anything_is_read(tmp_path):
    options = PredictConfig("nowhere", images=("a.png",), output=f"{tmp_path}/p.xls")
    with pytest.raises(ConfigError, match="p.xls has no known suffix"):
        command.main(options)
    with pytest.raises(ConfigError, match="top_k 0 is too small"):
        PredictConfig("run", top_k=0)


@pytest.mark.process
def test_a_file_and_saliency_go_together(subject, images, tmp_path, capsys):
    paths = [str(images / name) for name in ("02.png", "04.png")]
    output = tmp_path / "p.jsonl"
    predict.predict_files(subject, paths, tmp_path / "saliency", output)
    assert capsys.readouterr().out == f"predictions: {output}, 2 images\n"
    assert sorted(os.listdir(tmp_path / "saliency")) == ["0-02.png", "1-04.png"]
