"""Runs training steps in PyTorch and here, from the same weights and batches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import twins
from parts import make_optimizer

from resnet_jax import training
from resnet_jax.weights import convert

SIZES = (8, 8, 8, 6) + (8,) * 16  # including a partial batch
# The last feature maps are 2x2 or larger: with 1x1, eight values per channel are so few
# that the steps amplify a last bit a millionfold.
SIDES = {"hresnet": 32, "resnet20": 16, "resnet8": 16, "imagenet": 64, "cifar": 16}

OPTIMIZERS = {
    "adam": {"optimizer": "adam", "lr": 1e-4},
    "nesterov": {
        "optimizer": "sgd",
        "lr": 1e-3,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 5e-4,
    },
    "weights-only": {
        "optimizer": "sgd",
        "lr": 1e-3,
        "momentum": 0.9,
        "weight_decay": 1e-2,
        "norm_weight_decay": 0.0,
        "bias_weight_decay": 0.0,
    },
    "adamw": {"optimizer": "adamw", "lr": 1e-4, "weight_decay": 0.1},
}


def torch_optimizer(twin, optimizer, lr, norm_weight_decay=None, **options):
    options.pop("bias_weight_decay", None)
    adams = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if optimizer in adams:
        return adams[optimizer](twin.parameters(), lr=lr, **options)
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
    """A transformation whose state is the last gradient."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda g, s, p: (g, g)
    )


def augment(key, images, labels, step):
    """Passes inputs through; the package's own augmentation works in float32."""
    return images, jax.nn.one_hot(labels, 10, dtype=images.dtype)


def batches(side, dtype, sizes, seed=0):
    rng = np.random.default_rng(seed)
    for size in sizes:
        images = rng.normal(size=(size, side, side, 3)).astype(np.float32)
        yield images.astype(dtype), rng.integers(0, 10, size).astype(np.int32)


def train_torch(twin, side, options, dtype, sizes, seed=0):
    """Yields (loss, optimizer) after each of PyTorch's steps."""
    twin.train()
    optimizer = torch_optimizer(twin, **options)
    for images, labels in batches(side, dtype, sizes, seed):
        x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(twin(x), torch.tensor(labels).long())
        loss.backward()
        optimizer.step()
        yield loss.item(), optimizer


def train_ours(variables, model, side, options, dtype, sizes, seed=0):
    """Yields (loss, state) after each of our steps."""
    tx = optax.chain(keep_gradient(), make_optimizer(**options))
    state = training.TrainState(
        step=jnp.zeros((), jnp.int32),
        opt_state=tx.init(variables["params"]),
        **variables,
    )
    step = jax.jit(training.make_train_step(model, tx, augment))
    for images, labels in batches(side, dtype, sizes, seed):
        batch = {"images": images, "labels": labels}
        state, sums = step(state, batch, jax.random.key(0))
        yield float(sums["loss"]) / len(labels), state


def assert_close(ours, theirs, tolerance):
    """Compares every value, relative to the largest in the tree."""
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
        # Before the steps amplify a last bit.
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
        if not optimizer.startswith("adam"):
            moments = {"trace": "momentum_buffer"}
        for our_name, their_name in moments.items():
            tree = optax.tree_utils.tree_get(state.opt_state[1], our_name)
            theirs = {
                k: torch_state.state[p][their_name].numpy()
                for k, p in parameters.items()
            }
            assert_close(by_name(tree), theirs, tolerance)
