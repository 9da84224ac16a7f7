from functools import partial

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from resnet_jax.errors import ConfigError
from resnet_jax.layers import conv, normalize
from resnet_jax.layers.conv import Conv
from resnet_jax.layers.linear import Linear
from resnet_jax.layers.norm import BatchNorm

pytestmark = pytest.mark.optimized


def make_input(key, shape=(8, 4, 4, 3)):
    return 2.0 + 3.0 * jax.random.normal(key, shape)


def test_batchnorm_train_normalizes_by_the_biased_batch_statistics(key):
    x = make_input(key)
    layer = BatchNorm()
    variables = layer.init(key, x, train=True)
    y, _ = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    flat = np.asarray(x, np.float64).reshape(-1, 3)
    expected = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
    np.testing.assert_allclose(y.reshape(-1, 3), expected, atol=1e-5)


def test_batchnorm_train_moves_the_statistics_by_the_documented_formula(key):
    x = make_input(key)
    layer = BatchNorm(momentum=0.3)
    variables = layer.init(key, x, train=True)
    start = {"mean": jnp.array([1.0, 2.0, 3.0]), "var": jnp.array([4.0, 5.0, 6.0])}
    variables = {**variables, "batch_stats": start}
    _, moved = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    flat = np.asarray(x, np.float64).reshape(-1, 3)
    stats = moved["batch_stats"]
    expected_mean = 0.7 * np.asarray(start["mean"]) + 0.3 * flat.mean(0)
    # ddof=1: PyTorch keeps the unbiased variance, 128 / 127 of the biased one here.
    expected_var = 0.7 * np.asarray(start["var"]) + 0.3 * flat.var(0, ddof=1)
    np.testing.assert_allclose(stats["mean"], expected_mean, rtol=1e-6)
    np.testing.assert_allclose(stats["var"], expected_var, rtol=1e-6)


def test_batchnorm_variance_is_unbiased_by_hand():
    # One channel, values 1, 2, 3, 6: mean 3, squares 4 + 1 + 0 + 9 = 14.
    x = jnp.array([1.0, 2.0, 3.0, 6.0]).reshape(4, 1, 1, 1)
    layer = BatchNorm(momentum=1.0)
    variables = layer.init(jax.random.key(0), x, train=True)
    y, moved = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(moved["batch_stats"]["var"], [14 / 3], rtol=1e-6)
    np.testing.assert_allclose(
        y.ravel(), np.array([-2, -1, 0, 3]) / np.sqrt(14 / 4 + 1e-5), rtol=1e-6
    )


def test_batchnorm_eval_uses_the_statistics_and_does_not_move_them(key):
    x = make_input(key)
    layer = BatchNorm()
    variables = layer.init(key, x, train=False)
    stats = {"mean": jnp.array([1.0, 2.0, 3.0]), "var": jnp.array([4.0, 9.0, 16.0])}
    params = {"scale": jnp.array([1.0, 2.0, 3.0]), "bias": jnp.array([0.0, 1.0, -1.0])}
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, variables["params"]
    )
    variables = {"params": params, "batch_stats": stats}
    y, after = layer.apply(variables, x, train=False, mutable=["batch_stats"])
    expected = (np.asarray(x) - [1, 2, 3]) / np.sqrt([4, 9, 16]) * [1, 2, 3] + [
        0,
        1,
        -1,
    ]
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    for name in stats:
        np.testing.assert_array_equal(after["batch_stats"][name], stats[name])


@pytest.mark.parametrize("train", [True, False])
def test_batchnorm_init_does_not_move_the_statistics(key, train):
    stats = BatchNorm().init(key, make_input(key), train=train)["batch_stats"]
    np.testing.assert_array_equal(stats["mean"], np.zeros(3))
    np.testing.assert_array_equal(stats["var"], np.ones(3))


def test_batchnorm_in_training_wants_its_statistics_mutable(key):
    x = make_input(key)
    layer = BatchNorm()
    variables = layer.init(key, x, train=True)
    with pytest.raises(flax.errors.ModifyScopeVariableError, match="batch_stats"):
        layer.apply(variables, x, train=True)


def test_batchnorm_output_depends_on_batch_mates_in_training_only(key):
    x = make_input(key)
    other = x.at[1:].set(make_input(jax.random.key(1))[1:])
    layer = BatchNorm()
    variables = layer.init(key, x, train=True)
    evaluated = [layer.apply(variables, v, train=False)[0] for v in (x, other)]
    np.testing.assert_array_equal(*evaluated)
    train = partial(layer.apply, train=True, mutable=["batch_stats"])
    trained = [train(variables, v)[0][0] for v in (x, other)]
    assert np.abs(trained[0] - trained[1]).max() > 0.01


def test_batchnorm_gradients_flow_through_the_batch_statistics(key):
    x = make_input(key)
    layer = BatchNorm()
    variables = layer.init(key, x, train=True)
    weights = jax.random.normal(jax.random.key(1), x.shape)

    def loss(x, train):
        y, _ = layer.apply(variables, x, train=train, mutable=["batch_stats"])
        return (y * weights).sum()

    grad = jax.grad(loss)(x, True)
    # Shifting a channel does not change the output normalized by batch statistics.
    np.testing.assert_allclose(grad.sum((0, 1, 2)), np.zeros(3), atol=1e-4)
    assert np.abs(jax.grad(loss)(x, False).sum((0, 1, 2))).max() > 0.1
    step = 1e-2 * jax.random.normal(jax.random.key(2), x.shape)
    measured = (loss(x + step, True) - loss(x - step, True)) / 2
    np.testing.assert_allclose((grad * step).sum(), measured, rtol=1e-2)


def test_batchnorm_two_pass_variance_survives_a_large_mean(key):
    # E[x^2] - E[x]^2 in float32 loses a variance of 1 if the mean is 10,000.
    x = 1e4 + jax.random.normal(key, (64, 4, 4, 2))
    layer = BatchNorm(momentum=1.0)
    variables = layer.init(key, x, train=True)
    _, moved = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    exact = np.asarray(x, np.float64).reshape(-1, 2).var(0, ddof=1)
    np.testing.assert_allclose(moved["batch_stats"]["var"], exact, rtol=1e-3)


@pytest.mark.parametrize("mean", [1, 10, 30, 100, 256])
def test_batchnorm_s_one_pass_in_bfloat16_rounds_less_than_the_values(mean):
    """A running mean of 0 is the worst case."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(mean + rng.normal(size=(512, 8, 8, 2)), jnp.bfloat16)
    layer = BatchNorm(momentum=1.0, dtype=jnp.bfloat16)
    variables = layer.init(jax.random.key(0), x, train=True)
    _, moved = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    found = np.asarray(moved["batch_stats"]["var"], np.float64)
    exact = np.asarray(x, np.float64).reshape(-1, 2).var(0, ddof=1)
    step = 2.0 ** (np.floor(np.log2(mean)) - 7)  # between bfloat16 values
    np.testing.assert_array_less(np.abs(found - exact), 0.1 * step**2 / 12 + 1e-6)


@pytest.mark.parametrize("shape", [(1, 4, 4, 3), (4, 1, 1, 3)])
def test_batchnorm_of_one_image_or_of_1x1_maps(key, shape):
    x = make_input(key, shape)
    layer = BatchNorm(momentum=1.0)
    variables = layer.init(key, x, train=True)
    _, moved = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(
        moved["batch_stats"]["var"],
        np.asarray(x).reshape(-1, 3).var(0, ddof=1),
        rtol=1e-5,
    )


@pytest.mark.parametrize("momentum", [None, -1, 1.5])
def test_batchnorm_refuses_a_momentum_that_is_no_average(key, momentum):
    with pytest.raises(ConfigError, match=f"^BatchNorm has momentum {momentum}: use"):
        BatchNorm(momentum=momentum).init(key, jnp.ones((2, 3)), train=False)


def test_batchnorm_of_one_value_per_channel_is_refused_in_training_only(key):
    x = jnp.ones((1, 1, 1, 3))
    layer = BatchNorm()
    variables = layer.init(key, x, train=True)
    with pytest.raises(ConfigError, match="cannot train on one value per channel"):
        layer.apply(variables, x, train=True)
    assert np.isfinite(layer.apply(variables, x, train=False)).all()


def test_batchnorm_in_bfloat16_keeps_float32_statistics(key):
    x = make_input(key).astype(jnp.bfloat16)
    layer = BatchNorm(dtype=jnp.bfloat16, momentum=1.0)
    variables = layer.init(key, x, train=True)
    y, moved = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    for leaf in jax.tree.leaves((variables, moved)):
        assert leaf.dtype == jnp.float32
    exact = np.asarray(x, np.float64).reshape(-1, 3).mean(0)
    np.testing.assert_allclose(moved["batch_stats"]["mean"], exact, rtol=1e-5)


def test_batchnorm_in_float64(key):
    with jax.enable_x64(True):
        x = make_input(key).astype(jnp.float64)
        layer = BatchNorm(dtype=jnp.float64, momentum=1.0)
        variables = layer.init(key, x, train=True)
        y, moved = layer.apply(variables, x, train=True, mutable=["batch_stats"])
        for leaf in jax.tree.leaves((y, variables, moved)):
            assert leaf.dtype == jnp.float64
        flat = np.asarray(x).reshape(-1, 3)
        np.testing.assert_allclose(
            moved["batch_stats"]["var"], flat.var(0, ddof=1), rtol=1e-13
        )


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_batchnorm_takes_numpys_arrays(train, dtype):
    x = np.random.default_rng(0).integers(0, 9, (4, 3, 2, 5)).astype(dtype)
    layer = BatchNorm()
    given = layer.init(jax.random.key(0), x, train=train)
    variables = jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(0.5), given)
    apply = partial(layer.apply, train=train, mutable=["batch_stats"])
    expected = apply(jax.tree.map(jnp.asarray, variables), jnp.asarray(x))
    jax.tree.map(np.testing.assert_array_equal, apply(variables, x), expected)


# XLA; products (one tap; a small map); Winograd.
@pytest.mark.parametrize(
    ("shape", "layer"),
    [
        ((2, 8, 8, 8), Conv(4, 3, padding=1)),
        ((2, 8, 8, 8), Conv(4, 1, use_bias=False)),
        ((2, 2, 2, 8), Conv(4, 3, stride=2, padding=1)),
        ((2, 8, 8, 8), Conv(6, 3, padding=1)),
    ],
)
def test_conv_takes_numpys_arrays(shape, layer, monkeypatch):
    if layer.features == 6:
        for name in ("_LITTLE", "_MUCH", "_MANY"):
            monkeypatch.setattr(conv, name, 0)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    variables = jax.device_get(layer.init(jax.random.key(0), x))
    assert isinstance(variables["params"]["kernel"], np.ndarray)
    expected = layer.apply(jax.tree.map(jnp.asarray, variables), jnp.asarray(x))
    np.testing.assert_array_equal(layer.apply(variables, x), expected)


def test_conv_pads_both_sides_alike_at_stride_two():
    # SAME would pad only the bottom and the right, and read other pixels.
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    layer = Conv(1, 3, stride=2, padding=1, use_bias=False)
    kernel = jnp.zeros((3, 3, 1, 1)).at[0, 0].set(1.0)
    y = layer.apply({"params": {"kernel": kernel}}, x)
    np.testing.assert_array_equal(y[0, :, :, 0], [[0, 0], [0, 5]])


@pytest.mark.parametrize("layer", [Conv(64, 3, padding=1), Linear(64)])
def test_default_init_is_uniform_within_the_root_of_fan_in(layer, key):
    shape, fan_in = ((1, 4, 4, 32), 288) if isinstance(layer, Conv) else ((1, 288), 288)
    params = layer.init(key, jnp.zeros(shape))["params"]
    bound = fan_in**-0.5
    for leaf in (params["kernel"], params["bias"]):
        assert np.abs(leaf).max() <= bound
        assert np.abs(leaf).max() > 0.9 * bound
    # A uniform distribution's standard deviation is bound / sqrt(3).
    np.testing.assert_allclose(params["kernel"].std(), bound / 3**0.5, rtol=0.02)


def test_kaiming_init_is_normal_by_fan_out(key):
    layer = Conv(64, 3, use_bias=False, weight_init="kaiming")
    kernel = layer.init(key, jnp.zeros((1, 4, 4, 32)))["params"]["kernel"]
    np.testing.assert_allclose(kernel.std(), (2 / (64 * 9)) ** 0.5, rtol=0.02)
    assert np.abs(kernel).max() > 3 * kernel.std()  # not truncated


def test_normalize_has_the_gradient_that_jax_derives():
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 4)
        x = 3 + jax.random.normal(keys[0], (6, 5, 4, 3))
        scale, bias = (jax.random.normal(k, (3,)) for k in keys[1:3])
        dy = jax.random.normal(keys[3], x.shape)
        y, pull = jax.vjp(
            lambda *args: normalize.normalize(*args, 1e-5)[0], x, scale, bias
        )
        expected, expected_pull = jax.vjp(
            lambda *args: normalize.moments(*args, 1e-5, None)[0][0], x, scale, bias
        )
        for one, other in zip(
            (y, *pull(dy)), (expected, *expected_pull(dy)), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-12)


class Chain(nn.Module):
    """Six residual blocks of 1x1 convolutions."""

    @nn.compact
    def __call__(self, x):
        for i in range(6):
            y = BatchNorm(name=f"bn1.{i}")(Conv(16, 1)(x), train=True)
            y = BatchNorm(name=f"bn2.{i}")(Conv(16, 1)(nn.relu(y)), train=True)
            x = nn.relu(x + y)
        return x


@pytest.mark.process
def test_batchnorm_keeps_one_map_for_its_gradient():
    x, chain = jnp.zeros((8, 16, 16, 16)), Chain()
    variables = chain.init(jax.random.key(0), x)

    def total(params, x):
        collections = {**variables, "params": params}
        return chain.apply(collections, x, mutable=["batch_stats"])[0].sum()

    step = jax.jit(jax.grad(total)).lower(variables["params"], x).compile()
    maps = step.memory_analysis().temp_size_in_bytes / x.nbytes
    # In addition, one for each of the twelve following convolutions, and one more.
    # Versions of XLA that ignore barriers keep three for each.
    assert maps < (37 if jax.__version_info__ < (0, 11) else 26)
