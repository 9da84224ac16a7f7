import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import augment
from resnet_jax.errors import ConfigError


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(0, 256, (6, 8, 8, 3), np.uint8))


def test_evaluation_normalises_as_the_tutorial_does(images, key):
    prepare = augment.make_augment(num_classes=4, normalization="half")
    labels = jnp.array([0, 1, 2, 3, 0, 1])
    x, targets = prepare(key, images, labels)
    expected = (np.asarray(images, np.float64) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(x, expected, atol=1e-6)
    np.testing.assert_array_equal(targets, np.eye(4)[labels])
    assert x.dtype == targets.dtype == jnp.float32


def test_crop_gives_each_picture_a_window_of_its_padded_self(images, key):
    cropped = np.asarray(augment.random_crop(key, images, 2))
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    found = [
        [
            (row, column)
            for row in range(5)
            for column in range(5)
            if np.array_equal(padded[i, row : row + 8, column : column + 8], cropped[i])
        ]
        for i in range(len(images))
    ]
    assert all(len(windows) == 1 for windows in found)
    assert len({windows[0] for windows in found}) > 1


def test_crop_offsets_are_uniform(key):
    # A picture whose pixels name their place shows its own offset.
    rows = jnp.arange(1, 9, dtype=jnp.uint8).reshape(1, 8, 1, 1)
    images = jnp.broadcast_to(rows, (2000, 8, 8, 3))
    cropped = augment.random_crop(key, images, 2)
    # Row 4 of the window at offset o shows row 4 + o - 2 of the picture, from 1 on.
    counts = np.bincount(np.asarray(cropped[:, 4, 4, 0]), minlength=8)[3:8]
    assert counts.sum() == 2000 and counts.min() > 330 and counts.max() < 470


def test_flip_mirrors_about_half_of_the_pictures(key):
    images = jnp.arange(8).reshape(1, 1, 8, 1) * jnp.ones((1000, 2, 1, 3), jnp.int32)
    flipped = np.asarray(augment.random_flip(key, images))
    mirrored = flipped[:, 0, 0, 0] == 7
    assert 420 < mirrored.sum() < 580
    np.testing.assert_array_equal(flipped[mirrored], images[mirrored][:, :, ::-1])
    np.testing.assert_array_equal(flipped[~mirrored], images[~mirrored])


def test_label_smoothing_is_pytorchs(images, key):
    prepare = augment.make_augment(
        num_classes=4, normalization="half", label_smoothing=0.2
    )
    _, targets = prepare(key, images[:1], jnp.array([2]))
    np.testing.assert_allclose(targets, [[0.05, 0.05, 0.85, 0.05]], rtol=1e-6)


def test_augmentation_is_a_function_of_its_key(images):
    prepare = augment.make_augment(
        num_classes=4, normalization="cifar10", crop_padding=2, flip=True
    )
    labels = jnp.zeros(6, jnp.int32)
    one, same = (prepare(jax.random.key(3), images, labels)[0] for _ in range(2))
    other, _ = prepare(jax.random.key(4), images, labels)
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_resize(images):
    constant = jnp.full((1, 8, 8, 3), 5.0)
    np.testing.assert_allclose(augment.resize(constant, 20), 5.0, rtol=1e-6)
    assert augment.resize(constant, 20).shape == (1, 20, 20, 3)
    assert augment.resize(constant, None) is constant


def test_normalizations_by_name_and_by_number():
    assert augment.parse_normalization("half") == ((0.5,) * 3, (0.25,) * 3)
    assert augment.parse_normalization("0,.1,.2/1,2,3") == ((0, 0.1, 0.2), (1, 2, 3))


@pytest.mark.parametrize(
    "text", ["hlaf", "0,0/1,1", "0,0,0", "0,0,0/1,0,1", "a,b,c/1,1,1"]
)
def test_other_normalizations_are_refused(text):
    with pytest.raises(ConfigError, match="one of cifar10, imagenet, half"):
        augment.parse_normalization(text)
