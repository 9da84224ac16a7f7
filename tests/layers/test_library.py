import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.layers import convolve, keep, library

CALL = "__onednn$convolution"


@pytest.fixture(autouse=True)
def wanted(monkeypatch):
    monkeypatch.setenv("RESNET_JAX_ONEDNN", "1")
    before = jax.config.values[library._LEAST]
    yield
    jax.config.update(library._LEAST, before)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    shapes = {"x": (4, 9, 9, 16), "kernel": (3, 3, 16, 16), "beside": (4, 9, 9, 16)}
    found = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    found["bias"] = rng.standard_normal(16)
    return {name: jnp.asarray(a, "float32") for name, a in found.items()}


def layer(x, kernel, bias, beside):
    y = convolve(x, kernel, stride=1, padding=1)
    return jax.nn.relu(y + bias.reshape(1, 1, 1, -1) + beside)


def program(function, arrays):
    return library.jit(function).lower(**arrays).compile().as_text()


def test_convolutions_are_the_library_s_with_what_follows_them(arrays):
    text = program(layer, arrays)
    # If jaxlib lacks oneDNN, the program is XLA's own.
    assert (CALL in text) == library._is_there()
    assert ('"RELU"' in text) == library._is_there()


def test_the_library_has_the_same_values_and_gradients(arrays):
    def total(arrays):
        return jnp.sin(layer(**arrays)).sum()

    def both(arrays):
        return layer(**arrays), jax.grad(total)(arrays)

    found, expected = library.jit(both)(arrays), jax.jit(both)(arrays)
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_few_channels_are_the_library_s_too(arrays):
    few = {"x": arrays["x"][..., :3], "kernel": arrays["kernel"][:, :, :3]}

    def convolution(x, kernel):
        return convolve(x, kernel, stride=1, padding=1)

    assert (CALL in program(convolution, few)) == library._is_there()
    assert " dot(" in jax.jit(convolution).lower(**few).compile().as_text()


def test_without_the_variable_nothing_changes(arrays, monkeypatch):
    monkeypatch.delenv("RESNET_JAX_ONEDNN")
    assert CALL not in program(layer, arrays)


def test_steps_for_other_platforms_are_without_it():
    with keep.compiling_for("gpu"):
        assert not library._can_be_used()


def test_is_used_while_a_program_of_it_is_traced():
    seen = []
    jax.block_until_ready(library.jit(lambda x: seen.append(library.is_used()) or x)(1))
    jax.block_until_ready(jax.jit(lambda x: seen.append(library.is_used()) or x)(1))
    assert seen == [library._can_be_used(), False]
    assert not library.is_used()


def test_jax_0_12_has_it():
    if jax.__version_info__[:2] == (0, 12):
        assert library._is_there()
    if jax.__version_info__[:2] == (0, 10):
        assert not library._is_there()


def test_another_version_s_options_leave_it_out(monkeypatch):
    library._is_there.cache_clear()
    monkeypatch.setattr(library, "_OPTIONS", {"xla_cpu_no_such_option": True})
    assert not library._is_there()
    library._is_there.cache_clear()
