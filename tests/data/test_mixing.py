import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.data import augment, mixing


@pytest.fixture
def batch():
    """Six pictures, of each the number in all pixels, and their classes."""
    x = jnp.broadcast_to(jnp.arange(6.0).reshape(6, 1, 1, 1), (6, 8, 10, 3))
    return x, jnp.eye(6)


def test_mixup_blends_pictures_and_targets_alike(batch, key):
    x, targets = mixing.mixup(key, *batch, 1.0)
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
        float(mixing.mixup(jax.random.key(seed), *batch, 0.4)[1][0, 0])
        for seed in range(200)
    ]
    # Beta(a, a): mean 1/2, variance 1 / (4 (2a + 1)).
    assert abs(np.mean(shares) - 0.5) < 0.08
    assert abs(np.var(shares) - 1 / 7.2) < 0.03


def test_cutmix_takes_a_box_and_its_part_of_the_target(batch):
    parts = []
    for seed in range(60):
        keys = jax.random.split(jax.random.key(seed))
        x, targets = (np.asarray(v) for v in mixing.cutmix(*keys, *batch, 1.0))
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
    mixed = jax.jit(lambda key: mixing.mix(key, *batch, 1.0, 1.0)[0])
    kinds = [
        bool(jnp.isin(mixed(jax.random.key(seed)), jnp.arange(6.0)).all())
        for seed in range(60)
    ]
    assert 15 < sum(kinds) < 45


def test_mixing_is_of_pictures_and_targets(key):
    images = jnp.asarray(
        np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    )
    labels = jnp.arange(4)
    make = augment.make_augment
    plain = make(num_classes=4, normalization="half")(key, images, labels)
    for options in ({"mixup_alpha": 1.0}, {"cutmix_alpha": 1.0}):
        prepare = make(num_classes=4, normalization="half", **options)
        x, targets = prepare(key, images, labels)
        assert (x != plain[0]).any() and (targets != plain[1]).any()
