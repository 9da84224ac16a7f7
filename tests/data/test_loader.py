from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_jax import data
from resnet_jax.data import stream
from resnet_jax.data.loader import Feed, make_feed
from resnet_jax.devices import mesh as parallel
from resnet_jax.devices.mesh import make_mesh


def numbered(count):
    """A data set whose images are the numbers of its examples."""
    images = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1)
    return data.Dataset(images, np.arange(count, dtype=np.int32), ("a",))


def seen(feed, dataset, batches):
    """The numbers of the examples of `batches`, which images and labels agree on."""
    # As fetch does, which XLA would compile for each form.
    source = {name: np.asarray(whole) for name, whole in feed.source(dataset).items()}
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
@settings(deadline=None)
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
    steps = range(min(start, len(sizes) - 1), len(sizes))
    feed = Feed(make_mesh(1), held=held, steps_per_call=together)
    batches = feed.train(dataset, sizes, seed=1, epoch=epoch, steps=steps)
    order = data.epoch_order(count, seed=1, epoch=epoch)
    found = np.concatenate(seen(feed, dataset, batches))
    np.testing.assert_array_equal(found, order[sum(sizes[: steps.start]) :])


@pytest.mark.parametrize("held", [True, False])
def test_there_is_an_example_of_each_form(held):
    feed = Feed(make_mesh(1), held=held, steps_per_call=2)
    examples = feed.examples(numbered(23), data.batch_sizes(23, 5))
    name = "indices" if held else "labels"
    assert [batch[name].shape for batch in examples] == [(3,), (5,), (2, 5)]


def test_streamed_images_come_and_are_compiled_for_one_step_at_a_time():
    pytest.importorskip("grain")
    dataset = numbered(23)
    images = stream.Pictures(
        lambda rows: dataset.images[rows], np.arange(23), (1, 1, 1)
    )
    streamed = data.Dataset(images, dataset.labels, dataset.class_names)
    sizes = data.batch_sizes(23, 5)
    feed = Feed(make_mesh(1), held=False, steps_per_call=2)
    examples = feed.examples(streamed, sizes)
    assert [batch["labels"].shape for batch in examples] == [(3,), (5,)]
    batches = list(feed.train(streamed, sizes, seed=1, epoch=0, steps=range(5)))
    feed.close()
    assert [batch["labels"].shape for batch in batches] == [(5,)] * 4 + [(3,)]
    found = np.concatenate(seen(feed, streamed, batches))
    np.testing.assert_array_equal(found, data.epoch_order(23, seed=1, epoch=0))


@pytest.mark.parametrize("fits", [True, False])
def test_what_does_not_fit_is_not_held(fits, monkeypatch):
    asked = []
    monkeypatch.setattr(parallel, "fits", lambda size, mesh: asked.append(size) or fits)
    train, test = numbered(50), numbered(7)
    feed = make_feed(make_mesh(1), train, test, steps_per_call=None, workers=0)
    assert asked == [57]
    assert set(feed.source(train)) == ({"images", "labels"} if fits else set())


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
    monkeypatch.setattr(parallel, "fits", lambda size, mesh: fits)
    mesh = SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform)]))
    feed = make_feed(mesh, numbered(50), steps_per_call=given, workers=0)
    assert len(next(feed._calls([1] * 50, range(50)))) == expected


@pytest.mark.parametrize("held", [True, False])
@settings(deadline=None)
@given(count=st.integers(1, 60), batch_size=st.integers(1, 70))
def test_evaluation_marks_every_example_once_in_one_shape(held, count, batch_size):
    dataset = numbered(count)
    feed = Feed(make_mesh(1), held=held)
    batches = list(feed.evaluation(dataset, batch_size))
    masks = [np.asarray(batch["mask"]) for batch in batches]
    assert {mask.shape for mask in masks} == {(min(batch_size, count),)}
    numbers = np.concatenate(seen(feed, dataset, batches))
    marked = numbers[np.concatenate(masks) == 1]
    np.testing.assert_array_equal(marked, np.arange(count))
