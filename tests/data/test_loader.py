import functools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_jax import data
from resnet_jax.config import DataConfig
from resnet_jax.data import stream
from resnet_jax.data.loader import Loader
from resnet_jax.devices import mesh as devices
from resnet_jax.devices.mesh import make_mesh


def numbered(count):
    """Makes a data set in which each image is filled with its index."""
    images = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1)
    return data.Dataset(images, np.arange(count, dtype=np.int32), ("a",))


def make_loader(train, *, test=None, mesh=None, held=None, epochs=1, **fields):
    """Returns a loader of `train` with DataConfig fields, in the order of seed 1."""
    none = train.take(slice(0))
    splits = data.Splits(train, none, none if test is None else test, {})
    order = functools.partial(data.epoch_batches, seed=1)
    cfg = DataConfig(**fields)
    mesh = mesh or make_mesh(1)
    return Loader(mesh, splits, cfg, order=order, epochs=epochs, held=held)


def seen(loader, dataset, batches):
    """Returns the indices of the examples in `batches`, by images and labels."""
    # Equivalent to fetch, which XLA would compile for each shape.
    source = {name: np.asarray(whole) for name, whole in loader.source(dataset).items()}
    found = []
    for batch in batches:
        if "indices" in batch:
            rows = np.asarray(batch["indices"])
            batch = {name: whole[rows] for name, whole in source.items()}
        numbers = np.asarray(batch["labels"])
        np.testing.assert_array_equal(batch["images"][..., 0, 0, 0], numbers)
        found.append(numbers.reshape(-1))
    return found


@pytest.mark.parametrize("held", [True, False])
@given(
    count=st.integers(1, 60),
    batch_size=st.integers(1, 70),
    start=st.integers(0, 9),
    epoch=st.integers(0, 2**31),
    together=st.integers(1, 4),
)
def test_training_sees_every_example_once_from_any_start(
    held, count, batch_size, start, epoch, together
):
    dataset = numbered(count)
    sizes = data.batch_sizes(count, batch_size)
    start = min(start, len(sizes) - 1)
    fields = {"batch_size": batch_size, "steps_per_call": together}
    loader = make_loader(dataset, held=held, epochs=epoch + 1, **fields)
    assert loader.sizes == tuple(sizes) and loader.steps_per_epoch == len(sizes)
    batches = loader.train(epoch, start)
    order = data.epoch_order(count, seed=1, epoch=epoch)
    found = np.concatenate(seen(loader, dataset, batches))
    np.testing.assert_array_equal(found, order[sum(sizes[:start]) :])


@pytest.mark.parametrize("held", [True, False])
def test_there_is_an_example_of_each_form(held):
    loader = make_loader(numbered(23), held=held, batch_size=5, steps_per_call=2)
    examples = loader.examples()
    name = "indices" if held else "labels"
    assert [batch[name].shape for batch in examples] == [(3,), (5,), (2, 5)]


def test_streamed_images_come_and_are_compiled_for_one_step_at_a_time():
    pytest.importorskip("grain")
    dataset = numbered(23)
    images = stream.Images(lambda rows: dataset.images[rows], np.arange(23), (1, 1, 1))
    streamed = data.Dataset(images, dataset.labels, dataset.class_names)
    fields = {"batch_size": 5, "steps_per_call": 2, "workers": 0}
    loader = make_loader(streamed, held=False, **fields)
    examples = loader.examples()
    assert [batch["labels"].shape for batch in examples] == [(3,), (5,)]
    batches = list(loader.train(0))
    loader.close()
    assert [batch["labels"].shape for batch in batches] == [(5,)] * 4 + [(3,)]
    found = np.concatenate(seen(loader, streamed, batches))
    np.testing.assert_array_equal(found, data.epoch_order(23, seed=1, epoch=0))


@pytest.mark.parametrize("fits", [True, False])
def test_what_does_not_fit_is_not_held(fits, monkeypatch):
    asked = []
    monkeypatch.setattr(devices, "fits", lambda size, mesh: asked.append(size) or fits)
    train, test = numbered(50), numbered(7)
    loader = make_loader(train, test=test)
    assert set(loader.source(train)) == ({"images", "labels"} if fits else set())
    assert set(loader.source(test)) == set(loader.source(train))
    assert asked == [57]


@pytest.mark.parametrize(
    "platform, fits, given, expected",
    [
        ("gpu", True, None, 20),
        ("tpu", True, None, 20),
        ("tpu", False, None, 1),
        ("cpu", True, None, 1),
        ("cpu", True, 3, 3),
        ("gpu", False, 3, 3),
    ],
)
def test_accelerators_that_hold_the_data_do_twenty_steps_for_a_call(
    platform, fits, given, expected, monkeypatch
):
    monkeypatch.setattr(devices, "fits", lambda size, mesh: fits)
    mesh = SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform)]))
    loader = make_loader(numbered(50), mesh=mesh, batch_size=1, steps_per_call=given)
    assert len(next(loader._calls(range(50)))) == expected


@pytest.mark.parametrize("held", [True, False])
@given(count=st.integers(1, 60), batch_size=st.integers(1, 70))
def test_evaluation_marks_every_example_once_in_one_shape(held, count, batch_size):
    dataset = numbered(count)
    loader = make_loader(dataset, test=dataset, held=held, eval_batch_size=batch_size)
    batches = list(loader.evaluation(dataset))
    masks = [np.asarray(batch["mask"]) for batch in batches]
    assert {mask.shape for mask in masks} == {(min(batch_size, count),)}
    numbers = np.concatenate(seen(loader, dataset, batches))
    marked = numbers[np.concatenate(masks) == 1]
    np.testing.assert_array_equal(marked, np.arange(count))


def test_training_ends_where_the_run_does():
    train = numbered(23)
    none = train.take(slice(0))
    splits = data.Splits(train, none, none, {})
    order = functools.partial(data.epoch_batches, seed=1)

    def loader(epochs, max_steps):
        cfg = DataConfig(batch_size=5)
        return Loader(make_mesh(1), splits, cfg, order, epochs, max_steps)

    assert loader(3, None).total_steps == 15 and loader(3, 40).total_steps == 15
    ends = loader(3, 7)
    assert ends.total_steps == 7
    assert [len(list(ends.train(epoch))) for epoch in range(3)] == [5, 2, 0]
    np.testing.assert_array_equal(
        ends.first_batch()["labels"], data.epoch_order(23, seed=1, epoch=0)[:5]
    )


def test_other_images_are_held_in_the_same_batches():
    loader = make_loader(numbered(23), held=False, batch_size=5)
    other = data.Dataset(
        np.arange(23, dtype=np.float32).reshape(-1, 1),
        np.arange(23, dtype=np.int32),
        ("a",),
    )
    held = loader.with_splits(loader.splits._replace(train=other))
    (first, *_), (same, *_) = held.train(0), loader.train(0)
    np.testing.assert_array_equal(first["indices"], same["labels"])
    assert set(held.source(other)) == {"images", "labels"} and not loader.source(other)
