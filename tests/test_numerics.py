import os

import jax
import jax.numpy as jnp
import pytest

from resnet_jax import numerics
from resnet_jax.errors import NonFiniteLossError


def test_a_nan_is_named_by_its_operation():
    with pytest.raises(NonFiniteLossError, match="nan.*encountered.*in log"):
        with numerics.configured(deterministic=False, debug_nans=True):
            jnp.log(-jnp.ones(3))
    assert not jax.config.jax_debug_nans


def test_without_it_a_nan_passes_and_other_errors_too():
    with numerics.configured(deterministic=False, debug_nans=False):
        assert jnp.isnan(jnp.log(-jnp.ones(()))).item()
        with pytest.raises(FloatingPointError, match="mine"):
            raise FloatingPointError("mine")


def test_deterministic_is_said_to_xla(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    with numerics.configured(deterministic=True, debug_nans=False):
        found = os.environ["XLA_FLAGS"].split()
    assert found == [
        "--xla_cpu_enable_fast_math=false",
        "--xla_gpu_deterministic_ops=true",
    ]
