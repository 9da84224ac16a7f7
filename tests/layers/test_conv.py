"""The lowering for CPUs compared with XLA's own convolution."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from spawn import compute

from resnet_jax.layers import conv as convolution
from resnet_jax.layers import winograd
from resnet_jax.layers import winograd as chunks

pytestmark = pytest.mark.optimized


@pytest.fixture
def winograd_always(monkeypatch):
    """Uses Winograd for every 3x3 convolution of stride 1; records the calls."""
    calls = set()

    def noted(function):
        def call(*args, **options):
            calls.add((function.__name__, args[0].shape, args[1].shape))
            return function(*args, **options)

        return call

    for name in ("convolve", "kernel_gradient"):
        monkeypatch.setattr(winograd, name, noted(getattr(winograd, name)))
    monkeypatch.setattr(convolution, "_LITTLE", 0)
    monkeypatch.setattr(convolution, "_MUCH", 0)
    monkeypatch.setattr(convolution, "_MANY", 1)
    return calls


SHAPES = [  # batch, height, width, channels, features, kernel, stride, padding
    (4, 8, 8, 5, 7, 3, 1, 1),
    (3, 9, 7, 3, 4, 3, 2, 1),
    (7, 6, 5, 4, 3, 1, 2, 0),
    (5, 5, 5, 3, 8, 7, 2, 3),
    (8, 32, 32, 3, 4, 3, 1, 1),
    (2, 2, 2, 3, 4, 3, 2, 1),
    (2, 1, 1, 3, 4, 3, 1, 1),
    (6, 5, 6, 6, 2, 5, 1, 2),
    (6, 7, 6, 3, 2, 2, 3, 1),
    (4, 6, 6, 12, 2, 3, 1, 2),
    (1, 6, 8, 2, 2, 1, 1, 0),
]


def with_types(shapes, **tolerances):
    """Each shape in float64; the first three in others too, with their tolerance."""
    yield from ((shape, "float64", 1e-13) for shape in shapes)
    for dtype, rtol in tolerances.items():
        yield from ((shape, dtype, rtol) for shape in shapes[:3])


@pytest.mark.parametrize(
    ("shape", "dtype", "rtol"), with_types(SHAPES, float32=3e-6, bfloat16=2e-2)
)
def test_the_convolution_and_its_gradients_are_xla_s(shape, dtype, rtol, monkeypatch):
    monkeypatch.setattr(convolution, "_LITTLE", 0)
    check(shape, dtype, rtol)


WINOGRAD_SHAPES = [  # as above, 3x3 and stride 1
    (4, 8, 8, 5, 7, 3, 1, 1),
    (3, 5, 8, 6, 4, 3, 1, 1),  # odd height: a pixel over
    (2, 6, 7, 4, 4, 3, 1, 0),
    (3, 3, 4, 4, 6, 3, 1, 2),
    (6, 96, 96, 4, 3, 3, 1, 1),  # an image a step
    (4, 4, 4, 130, 4, 3, 1, 1),  # one tile, many channels
]


@pytest.mark.process
@pytest.mark.parametrize(
    ("shape", "dtype", "rtol"), with_types(WINOGRAD_SHAPES, float32=5e-6)
)
def test_so_are_those_of_fewer_products(shape, dtype, rtol, winograd_always):
    check(shape, dtype, rtol)
    assert len(winograd_always) == 3  # the value, and both gradients


def check(shape, dtype, rtol):
    batch, height, width, channels, features, size, stride, padding = shape
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)  # compiles nothing
        x, kernel = (
            rng.normal(size=shape).astype(jnp.dtype(dtype))
            for shape in (
                (batch, height, width, channels),
                (size, size, channels, features),
            )
        )
        ours = partial(convolution.convolve, stride=stride, padding=padding)
        theirs = partial(convolution._by_xla, stride, padding)
        like = jax.eval_shape(theirs, x, kernel)
        dy = rng.normal(size=like.shape).astype(like.dtype)

        @partial(jax.jit, static_argnums=0)
        def computed(function, x, kernel, dy):
            y, pull = jax.vjp(function, x, kernel)
            return y, *pull(dy)

        found = (computed(function, x, kernel, dy) for function in (ours, theirs))
        for one, other in zip(*found, strict=True):
            assert one.dtype == other.dtype and one.shape == other.shape
            one, other = (np.asarray(v, np.float64) for v in (one, other))
            np.testing.assert_allclose(one, other, atol=rtol * np.abs(other).max())


def test_little_work_is_left_to_xla(winograd_always, monkeypatch):
    monkeypatch.setattr(convolution, "_MUCH", 8 * 8 * 9 * 4 * 4 + 1)
    shape = (1, 8, 8, 4)
    jax.eval_shape(
        partial(convolution.convolve, stride=1, padding=1),
        *(jnp.zeros(shape), jnp.zeros((3, 3, 4, 4))),
    )
    assert winograd_always == set()


@pytest.mark.parametrize("precision", ["highest", "float32"])
def test_nor_does_it_round_more_where_jax_is_to_be_exact(precision, winograd_always):
    x, kernel = jnp.zeros((1, 8, 8, 4)), jnp.zeros((3, 3, 4, 4))

    def total(kernel):
        return convolution.convolve(x, kernel, stride=1, padding=1).sum()

    with jax.default_matmul_precision(precision):
        jax.eval_shape(jax.grad(total), kernel)
    assert winograd_always == set()


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_a_late_zero_is_zero_whatever_it_waits_for(dtype):
    with jax.enable_x64(True):
        for first in (0.0, -0.0, -1.0, jnp.inf, -jnp.nan, jnp.finfo(dtype).max):
            x = jnp.full((2, 3), first, dtype)
            zero = jax.jit(chunks.late_zero, static_argnums=1)(x, jnp.float32)
            assert zero == 0 and zero.dtype == jnp.float32


@pytest.mark.process
def test_kernels_do_not_wait_transformed_for_their_turn(winograd_always):
    x, kernel = jnp.zeros((2, 8, 8, 64)), jnp.zeros((3, 3, 64, 64))

    def temporaries(count: int) -> int:
        def total(kernels, x):
            for kernel in kernels:
                x = convolution.convolve(x, kernel, stride=1, padding=1)
            return x.sum()

        step = jax.jit(jax.grad(total)).lower([kernel] * count, x).compile()
        return step.memory_analysis().temp_size_in_bytes

    transformed = 36 / 9 * kernel.nbytes
    # Each has three: for the value, for the gradient by x, and the sum for its own.
    assert temporaries(6) - temporaries(2) < 2 * transformed


# Four devices, each with its part of the batch: by jit, and by hand in shard_map.
SCRIPT = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from resnet_jax.layers import winograd as chunks, conv as convolution
from resnet_jax.layers import products, winograd
from resnet_jax.devices.mesh import AXIS, make_mesh

convolution._LITTLE = convolution._MUCH = 0
convolution._MANY = products._COLUMNS = winograd._PIXELS = 1  # an image a step
mesh = make_mesh()
rows, whole = PartitionSpec(AXIS), PartitionSpec()
placed = [NamedSharding(mesh, spec) for spec in (rows, whole)]


def check(stride, size):
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (8, 16, 16, 6))
    kernel = jax.random.normal(keys[1], (size, size, 6, 5))

    def loss(x, kernel):
        y = convolution.convolve(x, kernel, stride=stride, padding=size // 2)
        return (y**2).mean()

    def local(x, kernel):
        kernel = jax.lax.pcast(kernel, AXIS, to="varying")
        return jax.lax.pmean(loss(x, kernel), AXIS)

    by_hand = jax.shard_map(local, mesh=mesh, in_specs=(rows, whole), out_specs=whole)
    expected = jax.jit(jax.grad(loss, (0, 1)))(x, kernel)
    for function in (loss, by_hand):
        step = jax.jit(jax.grad(function, (0, 1)), in_shardings=placed)
        text = step.lower(x, kernel).compile().as_text()
        assert "all-reduce" in text
        for exchange in ("all-gather", "all-to-all", "collective-permute"):
            assert exchange not in text, (stride, size, exchange)
        found = step(*map(jax.device_put, (x, kernel), placed))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=5e-6 * np.abs(other).max())


assert mesh.size == 4
for stride, size in ((1, 3), (2, 3), (2, 7)):
    check(stride, size)
"""


@pytest.mark.process
def test_devices_exchange_the_gradient_of_the_kernel_alone():
    compute(SCRIPT, 4)
