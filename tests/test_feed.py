import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_jax import data
from resnet_jax.feed import Feed, fetch
from resnet_jax.parallel import make_mesh


def numbered(count):
    """A data set whose images are the numbers of its examples."""
    images = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1)
    return data.Dataset(images, np.arange(count, dtype=np.int32), ("a",))


def seen(feed, dataset, batches):
    """The numbers of the examples of `batches`, which images and labels agree on."""
    source, found = feed.source(dataset), []
    for batch in batches:
        batch = fetch(source, batch)
        numbers = np.asarray(batch["labels"])
        np.testing.assert_array_equal(batch["images"][..., 0, 0, 0], numbers)
        found.append(numbers.reshape(-1))
    return found


@pytest.mark.parametrize("held", [True, False])
@settings(deadline=None)  # a form of a batch is compiled when it first comes
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


@pytest.mark.parametrize("held", [True, False])
@settings(deadline=None)  # a form of a batch is compiled when it first comes
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
