"""Compares forward-mode and second derivatives with finite differences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import by_tier

from resnet_jax.layers import conv, normalize, pool, products, winograd
from resnet_jax.layers.linear_map import linear_map
from resnet_jax.models import create_model
from resnet_jax.training import init_variables


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def dot(one, other):
    products = jax.tree.map(lambda a, b: (a * b).sum(), one, other)
    return sum(jax.tree.leaves(products))


def check(function, args, step=1e-6, rtol=1e-7):
    """Checks first and second derivatives of a smooth scalar `function` of arrays."""
    args = tuple(map(jnp.asarray, args))
    directions = tuple(jnp.asarray(random(9 + a.size, *a.shape)) for a in args)
    every = tuple(range(len(args)))
    gradient = jax.jit(jax.grad(function, every))

    @jax.jit
    def derivatives(*args):
        slope = jax.jvp(function, args, directions)[1]
        by_jvp = jax.jvp(jax.grad(function, every), args, directions)[1]

        def curved(*args):
            return dot(jax.grad(function, every)(*args), directions)

        by_grad = jax.grad(curved, every)
        return slope, by_jvp, by_grad(*args)

    slope, by_jvp, by_grad = derivatives(*args)
    np.testing.assert_allclose(slope, dot(gradient(*args), directions), rtol=1e-10)
    places = [
        [a + sign * step * d for a, d in zip(args, directions, strict=True)]
        for sign in (1, -1)
    ]
    one, other = (jax.jit(function)(*place) for place in places)
    np.testing.assert_allclose(slope, (one - other) / (2 * step), rtol=1e-5)
    beside = [gradient(*place) for place in places]
    measured = jax.tree.map(lambda a, b: (a - b) / (2 * step), *beside)
    # The largest value over all arguments sets the absolute tolerance.
    size = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(measured))
    assert size > 1e-3
    close = partial(np.testing.assert_allclose, rtol=rtol, atol=rtol * size)
    jax.tree.map(close, by_jvp, measured)
    jax.tree.map(partial(close, rtol=1e-10, atol=1e-10 * size), by_grad, by_jvp)


# XLA, products (one tap; a small map), phases, fewer products.
CONVOLUTIONS = [
    ((2, 6, 6, 3), (3, 3, 3, 4), 1, 1),
    ((2, 6, 6, 3), (1, 1, 3, 4), 1, 0),
    ((2, 2, 2, 3), (3, 3, 3, 4), 2, 1),
    ((2, 7, 6, 3), (3, 3, 3, 4), 2, 1),
]


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding"),
    by_tier(CONVOLUTIONS, CONVOLUTIONS[:1]),
)
@pytest.mark.parametrize("few", [False, True])
def test_of_a_convolution(shape, kernel, stride, padding, few, monkeypatch):
    monkeypatch.setattr(conv, "_LITTLE", 0)
    if few:
        monkeypatch.setattr(conv, "_MUCH", 0)
        monkeypatch.setattr(conv, "_MANY", 1)
        monkeypatch.setattr(winograd, "_PIXELS", 1)
        monkeypatch.setattr(products, "_COLUMNS", 1)

    def total(x, kernel):
        y = conv.convolve(x, kernel, stride=stride, padding=padding)
        return jnp.sin(y).sum()

    check(total, (random(0, *shape), random(1, *kernel)))


@pytest.mark.parametrize("has_shift", [False, True])
def test_of_batch_normalization(has_shift):
    shift = random(3, 3) if has_shift else None

    def total(x, scale, bias):
        found = normalize.normalize(x, scale, bias, 1e-5, shift)
        return sum((jnp.sin(part + 1) * part).sum() for part in found)

    check(total, (2 + random(0, 5, 4, 3, 3), random(1, 3), random(2, 3)))


@pytest.mark.parametrize("function", [pool.avg_pool, pool.max_pool, pool.max_pool_2x2])
@pytest.mark.parametrize("shape", [(2, 6, 6, 3), (2, 7, 5, 3)])
def test_of_a_pool(function, shape):
    check(lambda x: (jnp.sin(function(x)) * 3).sum(), (random(0, *shape),))


@pytest.mark.parametrize(
    "name", by_tier(["resnet8", "hresnet"], ["resnet8"], slow=["hresnet"])
)
def test_of_a_whole_network_in_training(name):
    model = create_model(name, num_classes=3, dtype="float64")
    images = random(0, 4, 8, 8, 3)
    variables = init_variables(model, images.shape[1:], key=jax.random.key(0))

    def loss(params):
        collections = {**variables, "params": params}
        logits, _ = model.apply(
            collections, images, train=True, mutable=["batch_stats"]
        )
        return jnp.sin(logits).sum()

    params = variables["params"]
    moves = jax.tree.map(lambda p: 0.1 * random(p.size, *p.shape), params)

    @jax.jit
    def products(params):
        slope, (gradient, curved) = (
            jax.jvp(loss, (params,), (moves,))[1],
            jax.jvp(jax.grad(loss), (params,), (moves,)),
        )
        return slope, gradient, curved

    step = 1e-8  # too small for any ReLU to switch
    slope, gradient, curved = products(params)
    np.testing.assert_allclose(slope, dot(gradient, moves), rtol=1e-10)
    beside = [
        products(jax.tree.map(lambda p, m: p + sign * step * m, params, moves))[1]  # noqa: B023
        for sign in (1, -1)
    ]
    measured = jax.tree.map(lambda a, b: (a - b) / (2 * step), *beside)
    apart = jax.tree.map(jnp.subtract, curved, measured)
    assert dot(apart, apart) < 1e-10 * dot(curved, curved)


def test_a_linear_map_has_its_own_transpose_under_vmap_too():
    calls = []

    def transpose(scale, dy):
        calls.append(dy.shape)
        return scale * dy

    def doubled(scale, x):
        return linear_map(lambda scale, x: scale * x, transpose, (scale,), x)

    xs, scales = random(0, 5, 3), random(1, 5)
    total = jax.vmap(jax.grad(lambda scale, x: jnp.sin(doubled(scale, x)).sum(), 1))
    expected = scales[:, None] * np.cos(scales[:, None] * xs)
    np.testing.assert_allclose(total(scales, xs), expected)
    assert calls  # our transpose, not the one that JAX derives
    calls.clear()
    # The gradient of a vmapped function: the rows share x, so its gradient is a sum.
    summed = jax.grad(lambda x: jnp.sin(jax.vmap(doubled, (0, None))(scales, x)).sum())
    expected = (scales[:, None] * np.cos(scales[:, None] * xs[0])).sum(0)
    np.testing.assert_allclose(summed(xs[0]), expected)
    assert calls
    by_scale = jax.grad(lambda s: jnp.sin(jax.vmap(doubled)(s, xs)).sum())(scales)
    np.testing.assert_allclose(by_scale, (xs * np.cos(scales[:, None] * xs)).sum(1))
