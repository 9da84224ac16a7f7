import logging
import os
import subprocess
import sys

import pytest

from resnet_jax.commands import environment
from resnet_jax.errors import ConfigError


def test_what_is_strict_with_libraries_is_set_aside(monkeypatch, caplog):
    monkeypatch.setenv("JAX_NUMPY_DTYPE_PROMOTION", "strict")
    monkeypatch.setenv("JAX_TRANSFER_GUARD_HOST_TO_DEVICE", "disallow")
    monkeypatch.setenv("JAX_NUMPY_RANK_PROMOTION", "raise")  # which training tolerates
    with caplog.at_level(logging.WARNING):
        environment.look()
    assert "JAX_NUMPY_DTYPE_PROMOTION" not in os.environ
    assert "JAX_TRANSFER_GUARD_HOST_TO_DEVICE" not in os.environ
    assert os.environ["JAX_NUMPY_RANK_PROMOTION"] == "raise"
    assert [r.getMessage().split()[0] for r in caplog.records] == [
        "JAX_NUMPY_DTYPE_PROMOTION",
        "JAX_TRANSFER_GUARD_HOST_TO_DEVICE",
    ]


def test_a_misspelt_flag_of_xla_is_named(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_no_such_flag=1")
    with pytest.raises(ConfigError, match="^Unknown flag in XLA_FLAGS: --xla_no_such"):
        environment.look()
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    environment.look()


def test_a_library_s_warning_is_one_line_without_its_source():
    program = (
        "import warnings\n"
        "from resnet_jax.commands.command_line import command_line\n"
        "with command_line('train.py'):\n"
        "    warnings.warn('corrupt EXIF data\\nof a file')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "corrupt EXIF data\n")


@pytest.mark.parametrize(
    ("errno", "code"), [("EROFS", 2), ("ESTALE", 2), ("EDQUOT", 2), ("ENOENT", 1)]
)
def test_what_a_file_system_answers_is_one_line(errno, code):
    program = (
        "import errno, os\n"
        "from resnet_jax.commands.command_line import command_line\n"
        "with command_line('train.py'):\n"
        f"    raise OSError(errno.{errno}, os.strerror(errno.{errno}), 'runs/a')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert done.returncode == code
    is_line = (
        done.stderr.startswith("train.py: runs/a: ") and done.stderr.count("\n") == 1
    )
    assert is_line == (code == 2)


def test_a_value_that_xla_cannot_take_is_named(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=0")
    with pytest.raises(ConfigError) as caught:
        environment.look()
    assert not str(caught.value).startswith("Traceback")
