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


@pytest.fixture
def no_cache():
    """JAX without a compilation cache, as a user's is."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_compiled_programs_are_kept_where_only_the_user_can_write(no_cache, tmp_path):
    numerics.prepare(None, None)
    directory = jax.config.jax_compilation_cache_dir
    assert os.path.dirname(directory) == str(tmp_path / "cache")
    assert os.stat(directory).st_mode & 0o777 == 0o700


def test_a_cache_that_others_could_write_is_not_used(no_cache, tmp_path, caplog):
    numerics.prepare(None, None)
    os.chmod(jax.config.jax_compilation_cache_dir, 0o770)
    jax.config.update("jax_compilation_cache_dir", None)
    numerics.prepare(None, None)
    assert jax.config.jax_compilation_cache_dir is None
    assert "others could write there; chmod 700" in caplog.text


def test_the_user_s_own_cache_stays():
    before = jax.config.jax_compilation_cache_dir
    numerics.prepare(None, None)
    assert jax.config.jax_compilation_cache_dir == before is not None
