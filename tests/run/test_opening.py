import logging
import re

import numpy as np
import pytest
from configs import make_config

from resnet_jax.commands import train
from resnet_jax.data.dataset import Dataset, Splits
from resnet_jax.data.loader import Loader
from resnet_jax.devices import make_mesh
from resnet_jax.run import opening


def describe(params, trainable=None, **chosen):
    cfg = make_config(model="resnet8", batch_size=4, epochs=3, **chosen)
    images = np.zeros((10, 8, 8, 3), np.uint8)
    whole = Dataset(images, np.zeros(10, np.int32), ("a", "b"))
    splits = Splits(whole, whole.take(slice(2)), whole.take(slice(3)), {})
    mesh = make_mesh(1)
    order = lambda num, sizes, epoch: []  # noqa: E731
    loader = Loader(mesh, splits, cfg.data, order, epochs=3)
    return opening.describe(cfg, mesh, params, loader, trainable)


def test_what_is_trained_is_told_in_a_few_lines():
    params = {"fc": {"bias": np.zeros(2), "kernel": np.zeros((5, 2))}}
    lines = describe(params)
    assert lines == [
        "network:  resnet8, 12 parameters",
        "images:   cifar10, 10 training, 2 validation and 3 test images of size 8x8x3, "
        "in 2 classes",
        "steps:    9 in total, 4 images per step, 3 steps per epoch",
        "devices:  1 x cpu, float32",
        "output:   runs/hresnet",
    ]


def test_what_is_frozen_is_not_counted_as_trained():
    params = {"fc": {"bias": np.zeros(2), "kernel": np.zeros((5, 2))}}
    (network, *_) = describe(params, lambda name: name == "fc.bias", pretrained="w.pth")
    assert (
        network == "network:  resnet8, 12 parameters, 2 of them trainable, from w.pth"
    )


def test_each_of_several_seeds_has_the_parameters_of_one():
    (network, *_) = describe({"fc": {"bias": np.zeros((3, 2))}}, num_seeds=3, seed=4)
    assert (
        network == "network:  resnet8, 2 parameters; 3 such networks, with seeds 4 to 6"
    )


@pytest.mark.process
def test_a_run_says_it_before_it_compiles(tmp_path, caplog):
    cfg = make_config(
        model="resnet8",
        dataset="digits",
        max_train_samples=8,
        max_test_samples=8,
        batch_size=8,
        max_steps=1,
        workdir=str(tmp_path / "run"),
    )
    with caplog.at_level(logging.INFO, "resnet_jax"):
        train.main(cfg)
    said = [message.split(":")[0] for message in caplog.messages]
    first = said.index("network")
    expected = ["network", "images", "steps", "devices", "output"]
    compiling = "compiling the training step"
    assert said[first : first + 6] == [*expected, f"{compiling} ..."]
    assert re.fullmatch(rf"{compiling} took \d+ s", said[first + 6])


def test_only_the_first_process_says_it(monkeypatch, caplog):
    monkeypatch.setattr(opening.processes, "is_first", lambda: False)
    with caplog.at_level(logging.INFO, "resnet_jax"):
        opening.announce(make_config(), make_mesh(1), {}, None)
    assert caplog.messages == []
