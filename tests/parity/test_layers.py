"""Compares layers with torch.nn's: values and gradients, in training and inference."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.layers import convolve
from resnet_jax.layers.conv import Conv
from resnet_jax.layers.linear import Linear
from resnet_jax.layers.norm import BatchNorm

torch = pytest.importorskip("torch", reason="parity needs torch")

pytestmark = [pytest.mark.optimized, pytest.mark.parity]


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def nchw(x):
    return torch.tensor(np.asarray(x).transpose(0, 3, 1, 2), dtype=torch.float64)


def nhwc(x):
    return x.detach().numpy().transpose(0, 2, 3, 1)


def close(found, expected):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("shape", [(8, 5, 5, 3), (1, 4, 4, 3), (16, 1, 1, 3)])
def test_batchnorm(train, shape):
    rng = np.random.default_rng(0)
    x, dy = 3 + 2 * rng.normal(size=shape), rng.normal(size=shape)
    scale, bias, mean = rng.normal(size=(3, 3))
    var = rng.uniform(0.5, 2.0, 3)

    theirs = torch.nn.BatchNorm2d(3, dtype=torch.float64)
    pairs = {
        "weight": scale,
        "bias": bias,
        "running_mean": mean,
        "running_var": var,
    }
    theirs.load_state_dict({k: torch.tensor(v) for k, v in pairs.items()}, strict=False)
    theirs.train(train)
    x_torch = nchw(x).requires_grad_()
    y_torch = theirs(x_torch)
    y_torch.backward(nchw(dy))

    ours = BatchNorm(dtype=jnp.float64)
    stats = {"mean": jnp.asarray(mean), "var": jnp.asarray(var)}

    def apply(params, x):
        variables = {"params": params, "batch_stats": stats}
        return ours.apply(variables, x, train=train, mutable=["batch_stats"])

    params = {"scale": jnp.asarray(scale), "bias": jnp.asarray(bias)}
    y, pullback, moved = jax.vjp(apply, params, jnp.asarray(x), has_aux=True)
    dparams, dx = pullback(jnp.asarray(dy))
    close(y, nhwc(y_torch))
    close(dx, nhwc(x_torch.grad))
    close(dparams["scale"], theirs.weight.grad.numpy())
    close(dparams["bias"], theirs.bias.grad.numpy())
    close(moved["batch_stats"]["mean"], theirs.running_mean.numpy())
    close(moved["batch_stats"]["var"], theirs.running_var.numpy())


@pytest.mark.parametrize(
    ("size", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (7, 2, 3), (1, 2, 0)]
)
def test_conv(size, stride, padding):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 9, 8, 3))
    theirs = torch.nn.Conv2d(3, 4, size, stride, padding, dtype=torch.float64)
    kernel = theirs.weight.detach().numpy().transpose(2, 3, 1, 0)
    params = {"kernel": kernel, "bias": theirs.bias.detach().numpy()}
    ours = Conv(4, size, stride=stride, padding=padding, dtype=jnp.float64)
    y = ours.apply({"params": jax.tree.map(jnp.asarray, params)}, jnp.asarray(x))
    close(y, nhwc(theirs(nchw(x))))


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 2), (4, 1)])
@pytest.mark.parametrize(
    ("size", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (1, 2, 0), (7, 2, 3)]
)
def test_conv_on_the_smallest_maps(size, stride, padding, shape):
    """These have their own algorithm, with its own gradients."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *shape, 3))
    theirs = torch.nn.Conv2d(
        3, 4, size, stride, padding, bias=False, dtype=torch.float64
    )
    x_torch = nchw(x).requires_grad_()
    y_torch = theirs(x_torch)
    dy = rng.normal(size=nhwc(y_torch).shape)
    y_torch.backward(nchw(dy))

    kernel = jnp.asarray(theirs.weight.detach().numpy().transpose(2, 3, 1, 0))
    y, pullback = jax.vjp(
        partial(convolve, stride=stride, padding=padding), jnp.asarray(x), kernel
    )
    dx, dkernel = pullback(jnp.asarray(dy))
    close(y, nhwc(y_torch))
    close(dx, nhwc(x_torch.grad))
    close(dkernel, theirs.weight.grad.numpy().transpose(2, 3, 1, 0))


@pytest.mark.parametrize(
    ("ours", "make", "shape"),
    [
        (Conv(64, 3), partial(torch.nn.Conv2d, 48, 64, 3), (1, 4, 4, 48)),
        (Linear(256), partial(torch.nn.Linear, 512, 256), (1, 512)),
    ],
    ids=["conv", "linear"],
)
def test_default_initialization(ours, make, shape):
    torch.manual_seed(0)
    theirs = make()
    params = ours.init(jax.random.key(0), jnp.zeros(shape))["params"]
    for name, tensor in (("kernel", theirs.weight), ("bias", theirs.bias)):
        drawn, expected = np.asarray(params[name]), tensor.detach().numpy()
        # Standard errors of the mean and standard deviation of two uniform samples.
        error = expected.std() * (2 / expected.size) ** 0.5
        assert abs(drawn.mean() - expected.mean()) < 4 * error
        assert abs(drawn.std() - expected.std()) < 4 * error
        assert abs(np.abs(drawn).max() / np.abs(expected).max() - 1) < 0.1
