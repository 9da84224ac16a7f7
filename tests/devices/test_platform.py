import importlib.metadata
import os
from importlib.metadata import EntryPoint

import jax
import jax.numpy as jnp
import pytest

from resnet_jax.config import DevicesConfig
from resnet_jax.devices import platform
from resnet_jax.errors import NonFiniteLossError


def test_a_nan_is_named_by_its_operation():
    with pytest.raises(NonFiniteLossError, match="nan.*encountered.*in log"):
        with platform.configured(DevicesConfig(debug_nans=True)):
            jnp.log(-jnp.ones(3))
    assert not jax.config.jax_debug_nans


def test_without_it_a_nan_passes_and_other_errors_too():
    with platform.configured(DevicesConfig()):
        assert jnp.isnan(jnp.log(-jnp.ones(()))).item()
        with pytest.raises(FloatingPointError, match="mine"):
            raise FloatingPointError("mine")


def test_deterministic_is_said_to_xla(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    with platform.configured(DevicesConfig(deterministic=True)):
        found = os.environ["XLA_FLAGS"].split()
    assert found == [
        "--xla_cpu_enable_fast_math=false",
        "--xla_gpu_deterministic_ops=true",
    ]


@pytest.fixture
def no_cache():
    """Runs JAX without a compilation cache, as users start it."""
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update(names[0], None)
    jax.config.update(names[1], 1.0)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_compiled_programs_are_kept_where_only_the_user_can_write(no_cache, tmp_path):
    platform.prepare(None, None)
    directory = jax.config.jax_compilation_cache_dir
    assert os.path.dirname(directory) == str(tmp_path / "cache")
    assert os.stat(directory).st_mode & 0o777 == 0o700


def test_a_cache_that_others_could_write_is_not_used(no_cache, tmp_path, caplog):
    platform.prepare(None, None)
    os.chmod(jax.config.jax_compilation_cache_dir, 0o770)
    jax.config.update("jax_compilation_cache_dir", None)
    platform.prepare(None, None)
    assert jax.config.jax_compilation_cache_dir is None
    assert "other users can access it: run `chmod 700` on it" in caplog.text


def test_the_folders_made_for_the_cache_are_the_user_s_alone(
    no_cache, tmp_path, monkeypatch
):
    monkeypatch.setenv("RESNET_JAX_CACHE", str(tmp_path / "a" / "b"))
    umask = os.umask(0o002)
    try:
        platform.prepare(None, None)
    finally:
        os.umask(umask)
    assert jax.config.jax_compilation_cache_dir is not None
    for folder in (tmp_path / "a", tmp_path / "a" / "b"):
        assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "mode, is_used", [(0o770, False), (0o707, False), (0o1777, True), (0o755, True)]
)
def test_nor_is_one_that_others_could_replace(
    no_cache, tmp_path, monkeypatch, caplog, mode, is_used
):
    parent = tmp_path / "shared"
    parent.mkdir()
    parent.chmod(mode)
    monkeypatch.setenv("RESNET_JAX_CACHE", str(parent / "mine"))
    platform.prepare(None, None)
    assert (jax.config.jax_compilation_cache_dir is not None) == is_used
    told = f"is not used because other users can write to {parent}: run `chmod go-w`"
    assert (told in caplog.text) != is_used


def test_nor_is_one_in_the_folder_of_another(no_cache, tmp_path, monkeypatch, caplog):
    parent = tmp_path / "theirs"
    monkeypatch.setenv("RESNET_JAX_CACHE", str(parent / "mine"))
    ask = platform.Path.stat

    def stat(path, **options):
        found = ask(path, **options)
        if path != parent:
            return found
        return os.stat_result([*found[:4], 12345, *found[5:]])

    monkeypatch.setattr(platform.Path, "stat", stat)
    platform.prepare(None, None)
    monkeypatch.undo()
    assert jax.config.jax_compilation_cache_dir is None
    assert f"other users can write to {parent}" in caplog.text


def test_without_a_home_it_is_said_once_and_the_work_goes_on(
    no_cache, monkeypatch, caplog
):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    for name in ("RESNET_JAX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    platform.prepare(None, None)
    assert jax.config.jax_compilation_cache_dir is None
    assert [record.getMessage() for record in caplog.records] == [
        "compiled programs are not cached because a cache is not available: no home "
        "folder: set HOME or RESNET_JAX_CACHE"
    ]


def test_programs_that_compile_in_no_time_are_kept_too(no_cache, monkeypatch):
    name = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
    monkeypatch.setenv(name, "1")
    platform.prepare(None, None)
    assert jax.config.jax_compilation_cache_dir is not None
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 1
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.delenv(name)
    platform.prepare(None, None)
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0


def test_the_user_s_own_cache_stays():
    before = jax.config.jax_compilation_cache_dir
    platform.prepare(None, None)
    assert jax.config.jax_compilation_cache_dir == before is not None


@pytest.mark.parametrize(
    "plugins, paths, reason",
    [
        ([], ["there"], "an NVIDIA GPU, but JAX lacks CUDA support: run pip install "),
        (["xla_rocm60"], ["gone", "there"], "an NVIDIA GPU, but JAX lacks CUDA supp"),
        (["xla_cuda12"], ["there"], "an NVIDIA GPU that JAX cannot use"),
        (["xla_cuda12"], ["gone"], "none: JAX supports CUDA, but no NVIDIA driver was"),
        ([], ["gone"], "none: run pip install -e '.[cuda]' (NVIDIA GPU) or "),
    ],
)
def test_why_there_is_no_accelerator(plugins, paths, reason, tmp_path, monkeypatch):
    (tmp_path / "there").touch()
    monkeypatch.setattr(platform, "_NVIDIA", [str(tmp_path / name) for name in paths])
    found = [EntryPoint(name, "jax_plugins", "jax_plugins") for name in plugins]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: found)
    assert platform.missing_accelerator().startswith(reason)
