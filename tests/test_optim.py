import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet_jax import optim
from resnet_jax.errors import ConfigError

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
    schedule = optim.make_schedule("constant", lr=0.01, total_steps=3)
    tx = optim.make_optimizer("adam", schedule, weight_decay=weight_decay)
    np.testing.assert_allclose(run(tx), p, rtol=1e-5)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_pytorchs_by_hand(nesterov):
    p, buffer = np.array([1.0, -2.0]), np.zeros(2)
    for lr, grad in zip((0.1, 0.1, 0.01), GRADS, strict=True):
        g = grad + 0.05 * p
        buffer = 0.8 * buffer + g
        p = p - lr * (g + 0.8 * buffer if nesterov else buffer)
    schedule = optim.make_schedule("step", lr=0.1, total_steps=3, milestones=(2,))
    tx = optim.make_optimizer(
        "sgd", schedule, momentum=0.8, nesterov=nesterov, weight_decay=0.05
    )
    np.testing.assert_allclose(run(tx), p, rtol=1e-5)


def values(schedule, steps):
    return [float(schedule(step)) for step in steps]


def test_schedules():
    make = optim.make_schedule
    assert values(make("constant", lr=0.5, total_steps=9), (0, 8)) == [0.5, 0.5]
    cosine = make("cosine", lr=0.5, total_steps=10)
    expected = [0.25 * (1 + np.cos(np.pi * t / 10)) for t in range(11)]
    np.testing.assert_allclose(values(cosine, range(11)), expected, atol=1e-7)
    step = make("step", lr=1.0, total_steps=9, milestones=(3, 5), gamma=0.1)
    expected = [1, 1, 1, 0.1, 0.1, 0.01, 0.01]
    np.testing.assert_allclose(values(step, range(7)), expected, rtol=1e-6)


def test_a_schedule_is_a_function_of_a_traced_step():
    schedule = optim.make_schedule("step", lr=1.0, total_steps=9, milestones=(3,))
    assert float(jax.jit(schedule)(jnp.int32(3))) == pytest.approx(0.1)


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="no optimizer 'lion': adam or sgd"):
        optim.make_optimizer("lion", lambda step: 0.1)
    with pytest.raises(ConfigError, match="no schedule 'linear'"):
        optim.make_schedule("linear", lr=0.1, total_steps=1)
