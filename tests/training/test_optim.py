import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from configs import make_config
from parts import make_optimizer, make_schedule

from resnet_jax.config import OptimConfig
from resnet_jax.errors import ConfigError
from resnet_jax.training import optim

GRADS = [np.array([0.5, -1.0]), np.array([0.25, 2.0]), np.array([-1.5, 0.125])]


def run(tx, start=(1.0, -2.0)):
    params = jnp.array(start)
    state = tx.init(params)
    for grad in GRADS:
        updates, state = tx.update(jnp.asarray(grad, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_is_pytorchs_by_hand(weight_decay):
    p, m, v = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    for t, grad in enumerate(GRADS, start=1):
        g = grad + weight_decay * p
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        p = p - 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    tx = make_optimizer(optimizer="adam", lr=0.01, weight_decay=weight_decay)
    np.testing.assert_allclose(run(tx), p, rtol=1e-5)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_pytorchs_by_hand(nesterov):
    p, buffer = np.array([1.0, -2.0]), np.zeros(2)
    for lr, grad in zip((0.1, 0.1, 0.01), GRADS, strict=True):
        g = grad + 0.05 * p
        buffer = 0.8 * buffer + g
        p = p - lr * (g + 0.8 * buffer if nesterov else buffer)
    tx = make_optimizer(
        **{"schedule": "step", "lr": 0.1, "lr_milestones": (2,)},
        **{"momentum": 0.8, "nesterov": nesterov, "weight_decay": 0.05},
    )
    np.testing.assert_allclose(run(tx), p, rtol=1e-5)


def values(schedule, steps):
    return [float(schedule(step)) for step in steps]


def test_schedules():
    assert values(make_schedule(lr=0.5, total_steps=9), (0, 8)) == [0.5, 0.5]
    cosine = make_schedule(schedule="cosine", lr=0.5, total_steps=10)
    expected = [0.25 * (1 + np.cos(np.pi * t / 10)) for t in range(11)]
    np.testing.assert_allclose(values(cosine, range(11)), expected, atol=1e-7)
    step = make_schedule(schedule="step", lr=1.0, lr_milestones=(3, 5), lr_gamma=0.1)
    expected = [1, 1, 1, 0.1, 0.1, 0.01, 0.01]
    np.testing.assert_allclose(values(step, range(7)), expected, rtol=1e-6)


def test_schedules_by_epochs():
    """An epoch has three steps."""
    common = {"total_steps": 18, "steps_per_epoch": 3, "lr": 1.0}
    step = make_schedule(schedule="step", lr_step_size=2, **common)
    expected = np.repeat([1, 1, 0.1, 0.1, 0.01, 0.01], 3)
    np.testing.assert_allclose(values(step, range(18)), expected, rtol=1e-6)

    rising = {"schedule": "cosine", "warmup_epochs": 2.0, "warmup_decay": 0.1}
    smooth = values(make_schedule(**rising, **common), range(18))
    warmup = [0.1 + 0.9 * t / 6 for t in range(6)]
    after = [(1 + np.cos(np.pi * t / 12)) / 2 for t in range(12)]
    np.testing.assert_allclose(smooth, [*warmup, *after], atol=1e-6)
    stairs = make_schedule(**rising, sched_on_updates=False, **common)
    expected = np.repeat(smooth[::3], 3)
    np.testing.assert_allclose(values(stairs, range(18)), expected, atol=1e-6)
    # A short trial of a long recipe ends within its warm-up.
    short = make_schedule(**rising, **{**common, "total_steps": 4})
    np.testing.assert_allclose(values(short, range(4)), warmup[:4], atol=1e-6)


def test_an_average_in_larger_steps_forgets_as_much():
    def keep(**fields):
        cfg = make_config(ema_decay=0.999, batch_size=10, epochs=5, **fields)
        return optim.make_ema_decay(cfg, steps_per_epoch=7)

    assert keep() == 0.999
    often = keep(ema_steps=3, warmup_epochs=1.0)
    decay = 1 - 0.001 * 10 * 3 / 5
    expected = [0, 1, 1, 0, 1, 1, 0, 0, 1, 1, decay, 1, 1, decay, decay, 1]
    np.testing.assert_allclose(values(often, range(16)), expected, rtol=1e-6)


def test_a_schedule_is_a_function_of_a_traced_step():
    schedule = make_schedule(schedule="step", lr=1.0, lr_milestones=(3,))
    assert float(jax.jit(schedule)(jnp.int32(3))) == pytest.approx(0.1)


def test_unknown_names_are_refused():
    with pytest.raises(
        ConfigError,
        match="unknown optimizer 'lion': choose one of adam, sgd, adamw, muon",
    ):
        optim.make_optimizer(OptimConfig(optimizer="lion"), lambda step: 0.1)
    with pytest.raises(ConfigError, match="unknown schedule 'poly'"):
        optim.make_schedule(OptimConfig(schedule="poly"), total_steps=1)


def test_adamw_decays_the_parameters_and_not_the_moments():
    plain = run(make_optimizer(optimizer="adamw", lr=0.01))
    tx = make_optimizer(optimizer="adam", lr=0.01)
    np.testing.assert_allclose(plain, run(tx))
    p = np.array([1.0, -2.0])
    state = tx.init(jnp.asarray(p))
    for grad in GRADS:
        updates, state = tx.update(jnp.asarray(grad, jnp.float32), state)
        p = p * (1 - 0.01 * 0.1) + updates
    found = run(make_optimizer(optimizer="adamw", lr=0.01, weight_decay=0.1))
    np.testing.assert_allclose(found, p, rtol=1e-5)


@pytest.mark.process
def test_muon_makes_kernels_orthogonal_and_leaves_the_rest_to_adamw(key):
    keys = jax.random.split(key, 3)
    params = {
        "conv": {"kernel": jax.random.normal(keys[0], (3, 3, 4, 16))},
        "fc": {"kernel": jax.random.normal(keys[1], (16, 5)), "bias": jnp.ones(5)},
    }
    grads = jax.tree.map(lambda p: jax.random.normal(keys[2], p.shape), params)
    options = {"lr": 0.01, "weight_decay": 0.1}
    tx = make_optimizer(optimizer="muon", momentum=0.9, nesterov=True, **options)
    updates, _ = tx.update(grads, tx.init(params), params)
    adamw = make_optimizer(optimizer="adamw", **options)
    expected, _ = adamw.update(grads, adamw.init(params), params)
    for leaf in ("kernel", "bias"):
        np.testing.assert_allclose(updates["fc"][leaf], expected["fc"][leaf], rtol=1e-6)
    moved = -updates["conv"]["kernel"] / 0.01 - 0.1 * params["conv"]["kernel"]
    singular = np.linalg.svd(np.reshape(moved, (36, 16)), compute_uv=False)
    # Five Newton-Schulz steps bring singular values to about [.7, 1.2]; with 16 equal
    # ones, 36 x 16 values have a root mean square of .2.
    unit = 0.2 * 36**0.5
    assert 0.6 * unit < singular.min() and singular.max() < 1.3 * unit
    assert float(jnp.sqrt(jnp.square(moved).mean())) == pytest.approx(0.2, rel=0.2)
    before = np.linalg.svd(np.reshape(grads["conv"]["kernel"], (36, 16)))[1]
    assert before.max() > 2 * before.min()


@pytest.mark.parametrize("nesterov", [False, True])
def test_what_muon_makes_orthogonal_is_the_momentum(nesterov, key):
    """The update equals that of a first step whose gradient is the momentum."""
    kernel = {"conv": {"kernel": jnp.ones((3, 3, 4, 16))}}
    tx = make_optimizer(optimizer="muon", lr=0.01, momentum=0.6, nesterov=nesterov)

    def step(grad, state):
        updates, state = tx.update({"conv": {"kernel": grad}}, state, kernel)
        return updates["conv"]["kernel"], state

    state, mean = tx.init(kernel), 0.0
    for t, number in enumerate(jax.random.split(key, 3), start=1):
        grad = jax.random.normal(number, (3, 3, 4, 16))
        found, state = step(grad, state)
        mean = 0.6 * mean + 0.4 * grad
        momentum = mean / (1 - 0.6**t)  # bias-corrected, like Adam's
        if nesterov:
            momentum = 0.6 * mean / (1 - 0.6 ** (t + 1)) + 0.4 * grad / (1 - 0.6**t)
        expected, _ = step(momentum, tx.init(kernel))
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


# Two of equal shape, one wide, one square, and one with its own shape.
KERNELS = {
    "a": {"kernel": (3, 3, 4, 16)},
    "b": {"kernel": (3, 3, 4, 16)},
    "shortcut": {"kernel": (1, 1, 8, 16)},
    "square": {"kernel": (1, 1, 16, 16)},
    "stem": {"kernel": (5, 5, 3, 8)},
}


def kernels(seed, dtype=np.float32, seeds=()):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal((*seeds, *shape)), dtype),
        KERNELS,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def optaxs_muon(params, **options):
    axes = optax.contrib.MuonDimensionNumbers((0, 1, 2), 3)
    axes = jax.tree.map(lambda _: axes, params)
    return optax.contrib.muon(
        consistent_rms=0.2, muon_weight_dimension_numbers=axes, **options
    )


@pytest.mark.parametrize("nesterov", [False, True])
def test_muon_is_optaxs(nesterov):
    """States are equal as well, so that each can resume the other's."""
    with jax.enable_x64(True):
        params = kernels(0, np.float64)
        options = {"momentum": 0.6, "nesterov": nesterov}
        ours = make_optimizer(optimizer="muon", lr=0.5, **options)
        theirs = optaxs_muon(params, learning_rate=0.5, beta=0.6, nesterov=nesterov)
        state, their_state = ours.init(params), theirs.init(params)
        for seed in (1, 2, 3):
            grads = kernels(seed, np.float64)
            found, state = jax.jit(ours.update)(grads, state, params)
            expected, their_state = jax.jit(theirs.update)(grads, their_state, params)
            assert_close(found, expected, 1e-10)
    jax.tree.map(
        np.testing.assert_array_equal, muon_state(state), muon_state(their_state)
    )


def assert_close(found, expected, atol):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol),
        found,
        expected,
    )


def muon_state(state):
    def is_one(node):
        return isinstance(node, optax.contrib.MuonState)

    return next(filter(is_one, jax.tree.leaves(state, is_leaf=is_one)))


SINGULAR = {
    "as of noise": np.linspace(0.5, 1.5, 48),
    "hardly falling": np.geomspace(1, 1e-2, 48),
    "ill-conditioned": np.geomspace(1, 1e-8, 48),
    "a power law": np.arange(1, 49) ** -2.0,
    "deficient": np.repeat([1.0, 0.0], [12, 36]),
    "of rank one": np.repeat([1.0, 0.0], [1, 47]),
    "tiny": np.full(48, 1e-20),
    "zero": np.zeros(48),
}


@pytest.mark.parametrize("shape", [(3, 3, 48, 48), (1, 1, 48, 432)])
@pytest.mark.parametrize("name", SINGULAR)
def test_rounding_is_little_of_a_muon_update(name, shape):
    """In float32, whole-matrix steps deviate from float64 by up to 2e-5.

    With a single Gram matrix for all five steps, it would be 2e-3.
    """
    rng = np.random.default_rng(0)
    one, other = (np.linalg.qr(rng.standard_normal((n, 48)))[0] for n in (432, 48))
    matrix = one * SINGULAR[name] @ other.T
    matrix = matrix if shape[-1] == 48 else matrix.T
    kernel = jnp.asarray(matrix.reshape(shape), np.float32)
    ours = make_optimizer(optimizer="muon", lr=1.0)
    found, _ = jax.jit(ours.update)(kernel, ours.init(kernel))
    with jax.enable_x64(True):
        double = jnp.asarray(kernel, np.float64)
        theirs = optaxs_muon(double, learning_rate=1.0, nesterov=False)
        expected, _ = jax.jit(theirs.update)(double, theirs.init(double), double)
    assert found.dtype == np.float32
    error = (np.asarray(found) - np.asarray(expected)).reshape(matrix.shape)
    assert np.linalg.norm(error / (0.2 * 432**0.5), 2) < 5e-5


def test_muon_of_no_gradient_is_no_update():
    params = kernels(0)
    tx = make_optimizer(optimizer="muon", lr=0.5)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(tx.update)(zeros, tx.init(params))
    assert not any(np.any(update) for update in jax.tree.leaves(updates))


def test_muon_of_each_seed_is_its_own():
    tx = make_optimizer(optimizer="muon", lr=0.5)
    params, grads = kernels(0, seeds=(2,)), kernels(1, seeds=(2,))
    update = jax.jit(lambda grads, params: tx.update(grads, tx.init(params))[0])
    together = jax.jit(jax.vmap(update))(grads, params)
    for seed in range(2):
        own, grad, found = (
            jax.tree.map(lambda leaf, seed=seed: leaf[seed], tree)
            for tree in (params, grads, together)
        )
        assert_close(found, update(grad, own), 1e-5)


@pytest.mark.parametrize("frozen", [None, "conv1", "bn1", "fc"])
@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_each_kind_of_parameter_decays_at_its_own_rate(name, frozen):
    params = {
        "conv1": {"kernel": jnp.ones((3, 3, 2, 4))},
        "bn1": {"scale": jnp.ones(4), "bias": jnp.ones(4)},
        "fc": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)},
    }
    tx = make_optimizer(
        **{"optimizer": name, "lr": 0.5},
        **{"weight_decay": 0.1, "norm_weight_decay": 0.2, "bias_weight_decay": 0.4},
        trainable=frozen and (lambda name: not name.startswith(f"{frozen}.")),
    )
    grads = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(grads, tx.init(params), params)
    rates = {"conv1": 0.1, "bn1": 0.2, "fc": {"kernel": 0.1, "bias": 0.4}}
    for layer, own in updates.items():
        for leaf, update in own.items():
            rate = rates[layer] if layer != "fc" else rates[layer][leaf]
            expected = 0.0 if layer == frozen else -0.5 * rate
            np.testing.assert_allclose(update, expected, rtol=1e-5)


def test_clipping_is_of_the_norm_of_all_gradients_together():
    grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([0.0, 4.0])}
    for largest, share in ((1.0, 0.2), (10.0, 1.0)):
        tx = make_optimizer(lr=1.0, momentum=0.0, clip_grad=largest)
        updates, _ = tx.update(grads, tx.init(grads), grads)
        for name, grad in grads.items():
            np.testing.assert_allclose(updates[name], -share * grad, rtol=1e-6)


def test_a_warm_up_is_a_factor_that_rises_to_one():
    bare = make_schedule(schedule="cosine", lr=0.4)
    warm = make_schedule(schedule="cosine", lr=0.4, warmup_epochs=3)
    factors = [0.25, 0.5, 0.75, 1, 1, 1]
    expected = np.multiply(factors, values(bare, range(6)))
    np.testing.assert_allclose(values(warm, range(6)), expected, rtol=1e-5)
    in_epochs = {"warmup_epochs": 0.6, "steps_per_epoch": 5}
    again = make_schedule(schedule="cosine", lr=0.4, **in_epochs)
    assert values(again, range(6)) == values(warm, range(6))


def test_the_linear_schedule_ends_at_zero():
    linear = make_schedule(schedule="linear", lr=0.4, total_steps=8)
    found = values(linear, (0, 2, 7, 8, 9))
    np.testing.assert_allclose(found, [0.4, 0.3, 0.05, 0, 0], rtol=1e-5)
