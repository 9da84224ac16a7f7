import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_jax import data
from resnet_jax.config import DataConfig
from resnet_jax.data import dataset as dataset_module
from resnet_jax.errors import ConfigError


@pytest.fixture
def dataset():
    images = np.arange(23, dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 2, 2, 3), np.uint8
    )
    return data.Dataset(images, np.arange(23, dtype=np.int32) % 3, ("a", "b", "c"))


def test_digits_are_all_there_once_and_stratified():
    train, test = data.load_dataset("digits")
    assert len(train) == 1437 and len(test) == 360
    assert train.images.shape == (1437, 32, 32, 3) and train.images.dtype == np.uint8
    assert train.labels.dtype == np.int32
    assert train.class_names == tuple("0123456789")
    counts = np.bincount(train.labels), np.bincount(test.labels)
    np.testing.assert_allclose(counts[1] / (counts[0] + counts[1]), 0.2, atol=0.01)
    assert train.images.max() == 255 and train.images.min() == 0
    again, _ = data.load_dataset("digits")
    np.testing.assert_array_equal(train.images, again.images)
    # Together they are scikit-learn's images; drawing with replacement loses some.
    from sklearn.datasets import load_digits

    small = np.concatenate([train.images, test.images])[:, ::4, ::4, 0]
    expected = np.rint(load_digits().images * (255 / 16))
    keys = [
        sorted(x.astype(np.uint8).tobytes() for x in xs) for xs in (small, expected)
    ]
    assert keys[0] == keys[1]


def test_unknown_data_sets_are_refused():
    with pytest.raises(ConfigError, match="unknown data set 'mnist': use one of cif"):
        data.load_dataset("mnist")


def test_cifar10_comes_as_datasets(prepared_dir, small_cifar):
    train, test = data.load_dataset("cifar10", prepared_dir)
    np.testing.assert_array_equal(train.images, small_cifar.train[0])
    np.testing.assert_array_equal(test.labels, small_cifar.test[1])
    assert train.class_names[3] == "cat"


def test_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        return data.epoch_order(100, seed=seed, epoch=epoch).tolist()

    assert order(1, 2) == order(1, 2)
    assert sorted(order(1, 2)) == list(range(100))
    assert len({tuple(order(s, e)) for s in (0, 1) for e in (0, 1)}) == 4


def test_a_balanced_epoch_is_a_function_of_seed_and_epoch():
    labels = np.repeat([0, 1, 2], [80, 15, 5])

    def order(seed, epoch):
        return dataset_module.balanced_order(labels, seed=seed, epoch=epoch).tolist()

    assert order(1, 2) == order(1, 2) and len(order(1, 2)) == 100
    assert len({tuple(order(s, e)) for s in (0, 1) for e in (0, 1)}) == 4
    batches = data.epoch_batches(100, [64, 36], 2, seed=1, balanced=labels)
    assert [len(rows) for rows in batches] == [64, 36]
    assert np.concatenate(batches).tolist() == order(1, 2)


def test_a_balanced_epoch_draws_classes_alike_and_their_examples_alike():
    counts = np.array([800, 150, 50])
    labels = np.random.default_rng(0).permutation(np.repeat([0, 2, 3], counts))
    drawn = np.concatenate(
        [
            dataset_module.balanced_order(labels, seed=0, epoch=epoch)
            for epoch in range(60)
        ]
    )
    shares = np.bincount(labels[drawn], minlength=4) / len(drawn)
    # Four standard deviations of a fraction of 60,000 draws.
    np.testing.assert_allclose(shares, [1 / 3, 0, 1 / 3, 1 / 3], atol=0.008)
    rare = np.bincount(drawn, minlength=len(labels))[labels == 3]
    assert rare.min() > 400 - 4.5 * 20 and rare.max() < 400 + 4.5 * 20


def test_an_epoch_shows_every_example_once_and_ends_partial(dataset):
    sizes = data.batch_sizes(23, 5)
    batches = [dataset.take(i) for i in data.epoch_batches(23, sizes, 0, seed=0)]
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 3]
    seen = np.concatenate([batch.images[:, 0, 0, 0] for batch in batches])
    assert sorted(seen) == list(range(23))
    for batch in batches:
        np.testing.assert_array_equal(batch.images[:, 0, 0, 0] % 3, batch.labels)


def test_the_partial_batch_can_be_dropped():
    sizes = data.batch_sizes(23, 5, drop_last=True)
    batches = data.epoch_batches(23, sizes, 0, seed=0)
    assert [len(batch) for batch in batches] == [5] * 4
    with pytest.raises(ConfigError, match="batch_size 24 with drop_last leaves no"):
        data.batch_sizes(23, 24, drop_last=True)


@given(
    count=st.integers(1, 60),
    batch_size=st.integers(1, 70),
    epoch=st.integers(0, 2**31),
)
def test_training_sees_every_example_once(count, batch_size, epoch):
    sizes = data.batch_sizes(count, batch_size)
    batches = data.epoch_batches(count, sizes, epoch, seed=1)
    assert [len(batch) for batch in batches] == sizes
    assert sum(sizes) == count
    seen = np.concatenate(batches)
    order = data.epoch_order(count, seed=1, epoch=epoch)
    np.testing.assert_array_equal(seen, order)
    assert sorted(order) == list(range(count))


def test_a_description_is_that_of_the_data():
    train, _ = data.load_dataset("digits")
    described = data.describe(DataConfig(dataset="digits"))
    assert described.image_shape == train.images.shape[1:]
    assert described.num_classes == len(train.class_names)
    cifar100 = DataConfig(dataset="cifar100", image_size=48)
    assert data.describe(cifar100)[:2] == (100, (48, 48, 3))
    assert data.image_shape(cifar100) == (48, 48, 3)
    with pytest.raises(ConfigError, match="unknown data set 'mnist'"):
        data.describe(DataConfig(dataset="mnist"))


def test_hold_out_parts_the_training_set(dataset):
    train, held = data.hold_out(dataset, 0.2)
    assert (len(train), len(held)) == (18, 5)
    seen = np.concatenate([train.images, held.images])[:, 0, 0, 0]
    assert sorted(seen) == list(range(23))
    assert seen[18:].tolist() != list(range(18, 23))
    np.testing.assert_array_equal(held.images, data.hold_out(dataset, 0.2)[1].images)


def test_subset_is_always_the_same(dataset):
    few = data.subset(dataset, 7)
    seen = few.images[:, 0, 0, 0].tolist()
    assert len(set(seen)) == 7 and seen == sorted(seen) and seen != list(range(7))
    np.testing.assert_array_equal(few.labels, dataset.labels[seen])
    np.testing.assert_array_equal(few.images, data.subset(dataset, 7).images)
    for size in (None, 23, 24):
        assert data.subset(dataset, size) is dataset


def test_hold_out_of_nothing_is_the_whole(dataset):
    train, held = data.hold_out(dataset, 0.0)
    np.testing.assert_array_equal(train.images, dataset.images)
    assert len(held) == 0


def test_hold_out_that_leaves_an_empty_part_is_refused(dataset):
    with pytest.raises(ConfigError, match="validation_split 0.01 holds out 0 of 23"):
        data.hold_out(dataset, 0.01)


def test_a_data_set_prints_as_one_line():
    images = np.zeros((5, 4, 6, 3), np.uint8)
    few = data.Dataset(images, np.zeros(5, np.int32), ("cat", "dog"))
    assert repr(few) == "Dataset(5 examples of 4x6x3, 2 classes: cat, dog)"
    many = dataclasses.replace(few, class_names=tuple("abcd"))
    assert repr(many) == "Dataset(5 examples of 4x6x3, 4 classes: a, b, c, ...)"
    splits = data.Splits(few, few.take(slice(1)), few.take(slice(2)), {"classes": []})
    assert repr(splits) == (
        "Splits(5 training, 1 validation and 2 test examples of 4x6x3, 2 classes)"
    )
