import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from resnet_jax.config import AugmentConfig
from resnet_jax.data import augment, erasing
from resnet_jax.errors import ConfigError


def make(steps_per_epoch=1, **fields):
    """Returns augmentation with AugmentConfig fields for 8x8 images of 4 classes."""
    cfg = AugmentConfig(**{"normalize": "half", **fields})
    preprocess = augment.make_preprocess(cfg, (8, 8, 3))
    return augment.make_augment(cfg, preprocess, 4, steps_per_epoch)


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(0, 256, (6, 8, 8, 3), np.uint8))


def test_evaluation_normalizes_as_the_tutorial_does(images, key):
    labels = jnp.array([0, 1, 2, 3, 0, 1])
    x, targets = make()(key, images, labels)
    expected = (np.asarray(images, np.float64) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(x, expected, atol=1e-6)
    np.testing.assert_array_equal(targets, np.eye(4)[labels])
    assert x.dtype == targets.dtype == jnp.float32
    # Without randomness, training inputs equal evaluation inputs, also for NumPy
    # arrays.
    cfg = AugmentConfig(normalize="half")
    preprocess = augment.make_preprocess(cfg, (8, 8, 3))
    for given in (images, np.asarray(images)):
        np.testing.assert_array_equal(preprocess(given), x)


def test_what_is_not_said_is_the_normalization_of_the_data(images):
    expected = (np.asarray(images, np.float64) / 255 - 0.5) / 0.25
    shape = (8, 8, 3)
    by_default = augment.make_preprocess(AugmentConfig(), shape, "half")(images)
    np.testing.assert_allclose(by_default, expected, atol=1e-6)
    said = AugmentConfig(normalize="0/1")
    by_config = augment.make_preprocess(said, shape, "half")(images)
    np.testing.assert_allclose(by_config, np.asarray(images) / 255, atol=1e-6)
    enlarged = augment.make_preprocess(said, (10, 12, 3))(images)
    assert enlarged.shape == (6, 10, 12, 3)


def test_crop_gives_each_image_a_window_of_its_padded_self(images, key):
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
    # The pixels encode their positions, so a crop shows its offset.
    rows = jnp.arange(1, 9, dtype=jnp.uint8).reshape(1, 8, 1, 1)
    images = jnp.broadcast_to(rows, (2000, 8, 8, 3))
    cropped = augment.random_crop(key, images, 2)
    # Row 4 of the window at offset o shows row 4 + o - 2 of the image, counted from 1.
    counts = np.bincount(np.asarray(cropped[:, 4, 4, 0]), minlength=8)[3:8]
    assert counts.sum() == 2000 and counts.min() > 330 and counts.max() < 470


def test_flip_mirrors_about_half_of_the_images(key):
    images = jnp.arange(8).reshape(1, 1, 8, 1) * jnp.ones((1000, 2, 1, 3), jnp.int32)
    flipped = np.asarray(augment.random_flip(key, images))
    mirrored = flipped[:, 0, 0, 0] == 7
    assert 420 < mirrored.sum() < 580
    np.testing.assert_array_equal(flipped[mirrored], images[mirrored][:, :, ::-1])
    np.testing.assert_array_equal(flipped[~mirrored], images[~mirrored])


def test_crop_fills_with_mirrored_pixels(images, key):
    cropped = np.asarray(augment.random_crop(key, images, 2, "reflect"))
    edges = ((0, 0), (2, 2), (2, 2), (0, 0))
    padded = np.pad(images, edges, "reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (8, 8), (1, 2))
    for shown, own in zip(cropped, windows.transpose(0, 1, 2, 4, 5, 3), strict=True):
        assert (own == shown).all((2, 3, 4)).sum() == 1


def test_alternating_flips_show_both_sides_in_two_epochs(key):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(0, 256, (1000, 8, 8, 3), np.uint8))
    prepare = make(flip="alternating", steps_per_epoch=5)
    plain = make()
    labels = jnp.zeros(1000, jnp.int32)
    x = np.asarray(plain(key, images, labels)[0])
    mirrored = {}
    for step in (0, 4, 5, 9, 10):
        shown = np.asarray(prepare(key, images, labels, jnp.asarray(step))[0])
        mirrored[step] = (shown != x).any((1, 2, 3))
        own = np.where(mirrored[step].reshape(-1, 1, 1, 1), x[:, :, ::-1], x)
        np.testing.assert_array_equal(shown, own)
    assert 420 < mirrored[0].sum() < 580
    for same, step in ((0, 4), (0, 10), (5, 9)):
        np.testing.assert_array_equal(mirrored[same], mirrored[step])
    np.testing.assert_array_equal(mirrored[0], ~mirrored[5])


def test_which_half_is_mirrored_does_not_depend_on_the_crop(images):
    prepare = make(flip="alternating", crop_padding=2)
    # Pixels increase to the right; crops keep this order, and flips reverse it.
    rows = jnp.arange(1, 9, dtype=jnp.uint8).reshape(1, 1, 8, 1) + jnp.arange(
        0, 200, 10, dtype=jnp.uint8
    ).reshape(20, 1, 1, 1)
    shifted = jnp.broadcast_to(rows, (20, 8, 8, 3))
    shown = []
    for seed in range(5):
        x, _ = prepare(jax.random.key(seed), shifted, jnp.zeros(20, jnp.int32))
        shown.append(np.asarray(x[:, 4, 4, 0] > x[:, 4, 3, 0]))
    assert all((shown[0] == other).all() for other in shown) and 0 < shown[0].sum() < 20


def test_cutout_is_a_square_of_zeros_around_any_pixel(key):
    x = jnp.ones((4000, 8, 6, 3))
    cut = np.asarray(erasing.cutout(key, x, 4)) == 0
    assert (cut.all(3) == cut.any(3)).all()
    rows, columns = cut.any((2, 3)).sum(1), cut.any((1, 3)).sum(1)
    assert (cut[..., 0].sum((1, 2)) == rows * columns).all()
    # Its center is the third of four pixels; at 0, 1 and 7, part of it is outside.
    for sizes, length in ((rows, 8), (columns, 6)):
        assert set(sizes) == {2, 3, 4}
        assert abs((sizes == 4).mean() - (length - 3) / length) < 0.04
        assert abs((sizes == 2).mean() - 1 / length) < 0.03


def test_label_smoothing_is_pytorchs(images, key):
    prepare = make(label_smoothing=0.2)
    _, targets = prepare(key, images[:1], jnp.array([2]))
    np.testing.assert_allclose(targets, [[0.05, 0.05, 0.85, 0.05]], rtol=1e-6)


def test_augmentation_is_a_function_of_its_key(images):
    prepare = make(normalize="cifar10", crop_padding=2, flip="random")
    labels = jnp.zeros(6, jnp.int32)
    one, same = (prepare(jax.random.key(3), images, labels)[0] for _ in range(2))
    other, _ = prepare(jax.random.key(4), images, labels)
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_resize(images):
    constant = jnp.full((1, 8, 8, 3), 5.0)
    np.testing.assert_allclose(augment.resize(constant, (20, 20)), 5.0, rtol=1e-6)
    assert augment.resize(constant, (20, 20)).shape == (1, 20, 20, 3)
    assert augment.resize(constant, (8, 8)) is constant


def test_normalizations_by_name_and_by_number():
    assert augment.parse_normalization("half") == ((0.5,) * 3, (0.25,) * 3)
    assert augment.parse_normalization("0,.1,.2/1,2,3") == ((0, 0.1, 0.2), (1, 2, 3))


def test_one_mean_and_deviation_are_those_of_every_channel():
    assert augment.parse_normalization("half", 1) == ((0.5,), (0.25,))
    assert augment.parse_normalization(".286/.353", 1) == ((0.286,), (0.353,))
    assert augment.parse_normalization(".286/.353") == ((0.286,) * 3, (0.353,) * 3)


@pytest.mark.parametrize(
    ("text", "own", "channels"), [("0,0/1,1", 2, 3), ("cifar10", 3, 1)]
)
def test_a_normalization_of_other_channels_is_refused(text, own, channels):
    message = f"normalize {text} has {own} channels, but the images have {channels}"
    with pytest.raises(ConfigError, match=message):
        augment.parse_normalization(text, channels)
    with pytest.raises(ConfigError, match=message):
        cfg = AugmentConfig(normalize=text)
        augment.make_preprocess(cfg, (28, 28, channels))


@pytest.mark.parametrize(
    "text",
    ["hlaf", "0,0,0/1,1", "0,0,0", "0,0,0/1,0,1", "a,b,c/1,1,1", "/"],
)
def test_other_normalizations_are_refused(text):
    with pytest.raises(ConfigError, match="one of cifar10, imagenet, half"):
        augment.parse_normalization(text)


@pytest.fixture
def batch():
    """Returns six images, each filled with its index, and their classes."""
    x = jnp.broadcast_to(jnp.arange(6.0).reshape(6, 1, 1, 1), (6, 8, 10, 3))
    return x, jnp.eye(6)


def test_mixup_blends_images_and_targets_alike(batch, key):
    x, targets = augment.mixup(key, *batch, 1.0)
    share = float(targets[0, 0])
    assert 0 < share < 1
    numbers = np.arange(6)
    expected = share * numbers + (1 - share) * numbers[::-1]
    np.testing.assert_allclose(
        x, np.broadcast_to(expected[:, None, None, None], x.shape)
    )
    eye = np.eye(6)
    np.testing.assert_allclose(
        targets, share * eye + (1 - share) * eye[::-1], rtol=1e-6
    )


def test_the_share_of_mixup_is_beta_s(batch):
    shares = [
        float(augment.mixup(jax.random.key(seed), *batch, 0.4)[1][0, 0])
        for seed in range(200)
    ]
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1)).
    assert abs(np.mean(shares) - 0.5) < 0.08
    assert abs(np.var(shares) - 1 / 7.2) < 0.03


def test_cutmix_takes_a_box_and_its_part_of_the_target(batch):
    parts = []
    for seed in range(60):
        keys = jax.random.split(jax.random.key(seed))
        x, targets = (np.asarray(v) for v in augment.cutmix(*keys, *batch, 1.0))
        box = x[0, :, :, 0] == 5
        rows, columns = box.any(1), box.any(0)
        assert (box == rows[:, None] & columns[None, :]).all()
        for one in (rows, columns):  # without a gap
            assert np.abs(np.diff(one.astype(int))).sum() <= 2
        np.testing.assert_array_equal(x[1][box], 4.0)
        np.testing.assert_array_equal(x[1][~box], 1.0)
        np.testing.assert_allclose(targets[0, 0], 1 - box.mean(), rtol=1e-6)
        np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
        parts.append(box.mean())
    assert min(parts) < 0.1 and max(parts) > 0.5


def test_of_both_each_batch_has_one(batch):
    mixed = jax.jit(lambda key: augment.mix(key, *batch, 1.0, 1.0)[0])
    kinds = [
        bool(jnp.isin(mixed(jax.random.key(seed)), jnp.arange(6.0)).all())
        for seed in range(60)
    ]
    assert 15 < sum(kinds) < 45


def test_mixing_is_of_images_and_targets(key):
    images = jnp.asarray(
        np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    )
    labels = jnp.arange(4)
    plain = make()(key, images, labels)
    for options in ({"mixup": 1.0}, {"cutmix": 1.0}):
        x, targets = make(**options)(key, images, labels)
        assert (x != plain[0]).any() and (targets != plain[1]).any()


def test_gray_is_made_as_pillow_makes_it_and_repeated():
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3), np.uint8)
    gray = np.asarray(augment.to_channels(images, 1))
    assert gray.dtype == np.uint8 and gray.shape == (3, 5, 4, 1)
    for image, expected in zip(gray, images, strict=True):
        expected = np.asarray(Image.fromarray(expected).convert("L"))
        np.testing.assert_array_equal(image[..., 0], expected)
    again = np.asarray(augment.to_channels(gray, 3))
    np.testing.assert_array_equal(again, np.repeat(gray, 3, axis=-1))
    assert augment.to_channels(images, 3) is images
    with pytest.raises(ConfigError, match="images with 3 channels cannot be convert"):
        augment.to_channels(images, 2)
