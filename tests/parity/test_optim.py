"""Compares optimizers and schedules with torch.optim, step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from parts import make_optimizer, make_schedule

torch = pytest.importorskip("torch", reason="parity needs torch")

pytestmark = [pytest.mark.optimized, pytest.mark.parity]

STEPS = 20


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    ("name", "options", "make"),
    [
        ("adam", {}, lambda p: torch.optim.Adam(p, lr=1e-2)),
        (
            "adam",
            {"weight_decay": 0.1},
            lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1),
        ),
        (
            "sgd",
            {"momentum": 0.9, "weight_decay": 0.1},
            lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=0.1),
        ),
        (
            "sgd",
            {"momentum": 0.9, "nesterov": True},
            lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
        ),
        ("adamw", {}, lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.0)),
        (
            "adamw",
            {"weight_decay": 0.1},
            lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
        ),
    ],
)
def test_optimizer(name, options, make):
    rng = np.random.default_rng(0)
    start, grads = rng.normal(size=5), rng.normal(size=(STEPS, 5))
    theirs = torch.nn.Parameter(torch.tensor(start))
    optimizer = make([theirs])
    tx = make_optimizer(optimizer=name, lr=1e-2, **options)
    ours = jnp.asarray(start)
    state = tx.init(ours)
    for grad in grads:
        theirs.grad = torch.tensor(grad)
        optimizer.step()
        updates, state = tx.update(jnp.asarray(grad), state, ours)
        ours = optax.apply_updates(ours, updates)
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-10)


@pytest.mark.parametrize("name", ["cosine", "step", "onecycle"])
def test_schedule(name):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    schedules = torch.optim.lr_scheduler
    theirs = {
        "cosine": lambda: schedules.CosineAnnealingLR(optimizer, T_max=STEPS),
        "step": lambda: schedules.MultiStepLR(optimizer, [5, 12], gamma=0.2),
        "onecycle": lambda: schedules.OneCycleLR(
            optimizer, 0.3, total_steps=STEPS, pct_start=0.27, cycle_momentum=False
        ),
    }[name]()
    ours = make_schedule(
        **{"schedule": name, "lr": 0.3, "total_steps": STEPS, "pct_start": 0.27},
        **{"lr_milestones": (5, 12), "lr_gamma": 0.2},
    )
    for step in range(STEPS):
        expected = optimizer.param_groups[0]["lr"]
        assert float(ours(jnp.asarray(step))) == pytest.approx(expected, rel=1e-6)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(("total", "pct_start"), [(5, 0.9), (4, 0.05), (2, 0.3)])
def test_a_one_cycle_of_few_steps(total, pct_start):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.3, total_steps=total, pct_start=pct_start, cycle_momentum=False
    )
    ours = make_schedule(
        schedule="onecycle", lr=0.3, total_steps=total, pct_start=pct_start
    )
    for step in range(total):
        expected = optimizer.param_groups[0]["lr"]
        assert float(ours(jnp.asarray(step))) == pytest.approx(expected, rel=1e-5)
        optimizer.step()
        if step + 1 < total:
            theirs.step()


@pytest.mark.parametrize("clip_grad", [0.5, 100.0])
def test_clipping(clip_grad):
    rng = np.random.default_rng(0)
    start = [rng.normal(size=5), rng.normal(size=(2, 3))]
    theirs = [torch.nn.Parameter(torch.tensor(value)) for value in start]
    optimizer = torch.optim.SGD(theirs, lr=0.1, momentum=0.9)
    tx = make_optimizer(lr=0.1, clip_grad=clip_grad)
    ours = [jnp.asarray(value) for value in start]
    state = tx.init(ours)
    for _ in range(STEPS):
        grads = [rng.normal(size=value.shape) for value in start]
        for parameter, grad in zip(theirs, grads, strict=True):
            parameter.grad = torch.tensor(grad)
        torch.nn.utils.clip_grad_norm_(theirs, clip_grad)
        optimizer.step()
        updates, state = tx.update([jnp.asarray(grad) for grad in grads], state, ours)
        ours = optax.apply_updates(ours, updates)
    for one, other in zip(ours, theirs, strict=True):
        # PyTorch divides by the norm plus 1e-6.
        np.testing.assert_allclose(one, other.detach().numpy(), rtol=1e-5)
