"""Balanced sampling, from labels to the batches of a run."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from parts import make_loader

from resnet_jax import data, fields
from resnet_jax.commands import train
from resnet_jax.data import sources, stream
from resnet_jax.data.dataset import balanced_order
from resnet_jax.data.loader import Loader
from resnet_jax.errors import ConfigError, StoppedError
from resnet_jax.run import restore
from resnet_jax.training import seeds

LABELS = np.repeat([0, 1], [27, 5]).astype(np.int32)


def numbers_of(indices):
    return indices.astype(np.uint8).reshape(-1, 1, 1, 1)


def numbered(form):
    """Makes a data set in which each image is filled with its index."""
    images = numbers_of(np.arange(len(LABELS)))
    if form == "streamed":
        images = stream.Images(numbers_of, np.arange(len(LABELS)), (1, 1, 1))
    return data.Dataset(images, LABELS, ("a", "b"))


@pytest.mark.parametrize("form", ["held", "in memory", "streamed"])
def test_a_loader_gives_the_examples_that_were_drawn(form):
    if form == "streamed":
        pytest.importorskip("grain", reason="streams are grain's")
    dataset = numbered(form)
    loader = make_loader(
        dataset,
        order=seeds.make_order(3, 1, dataset.labels),
        held=form == "held",
        **{"epochs": 2, "batch_size": 10, "workers": 0},
    )
    for epoch, start in ((0, 0), (1, 0), (1, 2)):
        batches = list(loader.train(epoch, start))
        drawn = balanced_order(LABELS, seed=3, epoch=epoch)
        if form == "held":
            found = np.concatenate([batch["indices"] for batch in batches])
        else:
            found = np.concatenate([b["images"].reshape(-1) for b in batches])
            labels = np.concatenate([batch["labels"] for batch in batches])
            np.testing.assert_array_equal(labels, LABELS[found])
        np.testing.assert_array_equal(found, drawn[10 * start :])
        assert len(set(found.tolist())) < len(found)  # with replacement
    loader.close()


def test_each_seed_draws_its_own():
    order = seeds.make_order(5, 3, LABELS)
    batches = order(len(LABELS), (20, 12), 4)
    assert [rows.shape for rows in batches] == [(3, 20), (3, 12)]
    for index, rows in enumerate(np.concatenate(batches, 1)):
        expected = balanced_order(LABELS, seed=5 + index, epoch=4)
        np.testing.assert_array_equal(rows, expected)


def test_features_are_drawn_as_their_images_are():
    dataset = numbered("held")
    order = seeds.make_order(3, 1, dataset.labels)
    loader = make_loader(dataset, order=order, batch_size=10)
    features = np.zeros((len(LABELS), 4), np.float32)
    cached = data.Dataset(features, LABELS, ("a", "b"))
    again = loader.with_splits(loader.splits._replace(train=cached))
    for batch, other in zip(loader.train(0), again.train(0), strict=True):
        np.testing.assert_array_equal(batch["indices"], other["indices"])


def labels_of(run_dir):
    """Returns the metrics and the last state of a run."""
    text = (Path(run_dir) / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line)["train_loss"] for line in text.splitlines()]
    with restore.reading(Path(run_dir)) as manager:
        return lines, manager.restore(8)["state"]


@pytest.mark.process  # whole runs
def test_a_run_draws_its_training_split_and_resumes_to_the_bit(digits_run, monkeypatch):
    whole, served = Loader.train, []

    def noted(*args):
        for batch in whole(*args):
            served.append(np.asarray(batch["indices"]))
            yield batch

    monkeypatch.setattr(Loader, "train", noted)
    options = {"sampler": "balanced", "epochs": 2, "validation_split": 0.2}
    cfg, run_dir = digits_run(**options)
    train_set = data.hold_out(sources.describe(cfg.data).load()[0], 0.2)[0]
    drawn = [balanced_order(train_set.labels, seed=0, epoch=e) for e in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(served), np.concatenate(drawn))
    expected = labels_of(run_dir)

    def cut(*args):
        for batch in whole(*args):
            yield batch
            served.append(batch)
            if len(served) == 6:
                raise StoppedError("cut")

    workdir = f"{cfg.run.workdir}-cut"
    again = fields.replace(cfg, workdir=workdir, save_every_steps=2)
    served.clear()
    monkeypatch.setattr(Loader, "train", cut)
    with pytest.raises(StoppedError):
        train.main(again)
    monkeypatch.setattr(Loader, "train", whole)
    train.main(again)
    jax.tree.map(np.testing.assert_array_equal, expected, labels_of(workdir))
    with pytest.raises(ConfigError, match="sampler"):
        train.main(fields.replace(again, sampler="shuffle"))
