"""Twenty training steps in PyTorch and here, from the same weights on the same batches.

In float64 the arithmetic is shown to be the same; in float32 the loss stays beside it.
"""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet_jax import training
from resnet_jax.training import optim
from resnet_jax.weights import convert

pytestmark = [pytest.mark.optimized, pytest.mark.parity]


pytest.importorskip("torchvision", reason="parity needs torch and torchvision")
import torch
import twins

SIZES = (8, 8, 8, 6) + (8,) * 16  # a partial batch among them
# The last maps are 2x2 or larger: with 1x1, eight values a channel are so few that the
# steps themselves amplify a last bit a millionfold.
SIDES = {"hresnet": 32, "resnet20": 16, "imagenet": 64, "cifar": 16}

OPTIMIZERS = {
    "adam": {"name": "adam", "lr": 1e-4},
    "nesterov": {
        "name": "sgd",
        "lr": 1e-3,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 5e-4,
    },
    "weights-only": {
        "name": "sgd",
        "lr": 1e-3,
        "momentum": 0.9,
        "weight_decay": 1e-2,
        "norm_weight_decay": 0.0,
        "bias_weight_decay": 0.0,
    },
}
SLOW = [  # eight million parameters; what another block or stem has with the same
    *(("hresnet", None, "nesterov"), ("hresnet", None, "weights-only")),
    *(("bottleneck", "cifar", "adam"), ("bottleneck", "cifar", "weights-only")),
    *((block, "imagenet", "weights-only") for block in twins.BLOCKS),
]
SMALL = [
    ("hresnet", None),
    ("resnet20", None),
    *((block, stem) for block in twins.BLOCKS for stem in ("imagenet", "cifar")),
]


def torch_optimizer(twin, name, lr, norm_weight_decay=None, **options):
    options.pop("bias_weight_decay", None)
    if name == "adam":
        return torch.optim.Adam(twin.parameters(), lr=lr, **options)
    if norm_weight_decay is None:
        return torch.optim.SGD(twin.parameters(), lr=lr, **options)
    norms = [m for m in twin.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    spared = [p for m in norms for p in m.parameters()]
    spared += [p for n, p in twin.named_parameters() if n.endswith("bias")]
    ids = {id(p) for p in spared}
    spared = [p for p in twin.parameters() if id(p) in ids]
    rest = [p for p in twin.parameters() if id(p) not in ids]
    groups = [{"params": rest}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=lr, **options)


def keep_gradient():
    """A transformation whose state is the gradient that it saw."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda g, s, p: (g, g)
    )


def prepare(key, images, labels, step):  # inputs as they come; augment works in float32
    return images, jax.nn.one_hot(labels, 10, dtype=images.dtype)


def stream(side, dtype, sizes, seed=0):
    rng = np.random.default_rng(seed)
    for size in sizes:
        images = rng.normal(size=(size, side, side, 3)).astype(np.float32)
        yield images.astype(dtype), rng.integers(0, 10, size).astype(np.int32)


def train_torch(twin, side, options, dtype, sizes, seed=0):
    """Yields (loss, optimizer) after each of PyTorch's steps."""
    twin.train()
    optimizer = torch_optimizer(twin, **options)
    for images, labels in stream(side, dtype, sizes, seed):
        x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(twin(x), torch.tensor(labels).long())
        loss.backward()
        optimizer.step()
        yield loss.item(), optimizer


def train_ours(variables, model, side, options, dtype, sizes, seed=0):
    """Yields (loss, state) after each of ours."""
    options = dict(options)
    schedule = optim.make_schedule(
        "constant", lr=options.pop("lr"), total_steps=len(sizes)
    )
    tx = optax.chain(
        keep_gradient(), optim.make_optimizer(schedule=schedule, **options)
    )
    state = training.TrainState(
        step=jnp.zeros((), jnp.int32),
        opt_state=tx.init(variables["params"]),
        **variables,
    )
    step = jax.jit(training.make_train_step(model, tx, prepare))
    for images, labels in stream(side, dtype, sizes, seed):
        batch = {"images": images, "labels": labels}
        state, sums = step(state, batch, jax.random.key(0))
        yield float(sums["loss"]) / len(labels), state


def assert_close(ours, theirs, tolerance):
    """Every value, relative to the largest of the whole tree."""
    assert ours.keys() == theirs.keys() and ours
    largest = max(np.abs(value).max() for value in theirs.values())
    for name, value in theirs.items():
        error = np.abs(ours[name] - value).max() / largest
        assert error <= tolerance, (name, error)


def by_name(tree):
    return convert.to_torch({"params": tree})


def check_float64(name, stem, optimizer, sizes, tolerance=1e-8, **options):
    with jax.enable_x64(True):
        twin, make = twins.make_pair(name, stem)
        twin = twin.double()
        model, side = make(jnp.float64), SIDES[stem or name]
        variables = twins.variables_of(twin, model, side)
        common = side, {**OPTIMIZERS[optimizer], **options}, np.float64, sizes
        theirs = list(train_torch(twin, *common))
        ours = list(train_ours(variables, model, *common))
        losses = [np.array([loss for loss, _ in steps]) for steps in (ours, theirs)]
        np.testing.assert_allclose(*losses, rtol=tolerance)
        # Before the steps themselves amplify a last bit.
        np.testing.assert_allclose(losses[0][:5], losses[1][:5], rtol=1e-10)
        torch_state, state = theirs[-1][1], ours[-1][1]

        expected = twins.state_dict_of(twin)
        found = convert.to_torch(state.variables)
        for running in (True, False):
            pick = {k for k in expected if ("running" in k) == running}
            pick = {k for k in pick if "tracked" not in k}
            assert_close(
                {k: found[k] for k in pick}, {k: expected[k] for k in pick}, tolerance
            )
        parameters = dict(twin.named_parameters())
        gradients = {k: p.grad.numpy() for k, p in parameters.items()}
        assert_close(by_name(state.opt_state[0]), gradients, tolerance)
        moments = {"mu": "exp_avg", "nu": "exp_avg_sq"}
        if optimizer != "adam":
            moments = {"trace": "momentum_buffer"}
        for our_name, their_name in moments.items():
            tree = optax.tree_utils.tree_get(state.opt_state[1], our_name)
            theirs = {
                k: torch_state.state[p][their_name].numpy()
                for k, p in parameters.items()
            }
            assert_close(by_name(tree), theirs, tolerance)


def all_pairs(*, slow, slow_blocks):
    """SMALL with OPTIMIZERS; `slow` are marked, and of the two blocks `slow_blocks`."""
    for name, stem in SMALL:
        for optimizer in OPTIMIZERS:
            is_slow = optimizer in (slow_blocks if stem else slow)
            is_slow |= (name, stem, optimizer) in SLOW
            marks = [pytest.mark.slow] if is_slow else []
            yield pytest.param(name, stem, optimizer, marks=marks)


@pytest.mark.parametrize(
    ("name", "stem", "optimizer"), all_pairs(slow=[], slow_blocks=["nesterov"])
)
def test_twenty_steps_in_float64(name, stem, optimizer):
    check_float64(name, stem, optimizer, SIZES)


@pytest.mark.parametrize(
    ("name", "stem", "optimizer"),
    all_pairs(slow=["weights-only"], slow_blocks=["nesterov", "weights-only"]),
)
def test_twenty_losses_in_float32(name, stem, optimizer):
    """Within 1e-4; or, where PyTorch's own float32 strays from its float64 by more,
    within thrice that: Adam makes a full step of a gradient that is rounding alone.
    Now and then rounding flips a ReLU, in either program, and the losses part: in one
    of four draws of pictures none does. Convolutions with fewer products, which JAX's
    highest precision leaves out, round by more."""
    twin, make = twins.make_pair(name, stem)
    model, side = make(jnp.float32), SIDES[stem or name]
    variables = twins.variables_of(twin, model, side)
    options = OPTIMIZERS[optimizer]

    def losses(train, *start, dtype=np.float32, draw):
        steps = train(*start, side, options, dtype, SIZES, draw)
        return np.array([loss for loss, _ in steps])

    parted = {}
    for draw in range(4):
        with jax.default_matmul_precision("highest"):
            ours = losses(train_ours, variables, model, draw=draw)
        theirs = losses(train_torch, copy.deepcopy(twin), draw=draw)
        exact = losses(train_torch, twins.double(twin), dtype=np.float64, draw=draw)
        own = np.abs(theirs / exact - 1).max()
        parted[draw] = np.abs(ours / exact - 1).max(), max(1e-4, 3 * own)
        if parted[draw][0] <= parted[draw][1]:
            return
    raise AssertionError(f"by draw, what ours parts by and the bound: {parted}")


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "nesterov"])
@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_five_steps_of_the_imagenet_family_in_float64(depth, optimizer):
    # Deeper ones part in PyTorch alone, from weights off by their last bit, by up to
    # 2e-2 at the rates of OPTIMIZERS (resnet101).
    options = {} if depth < 50 else {"lr": 1e-8}
    sizes = (6, 6, 4, 6, 6)
    check_float64(f"resnet{depth}", "imagenet", optimizer, sizes, **options)
