"""Checks environment variables of JAX and XLA before JAX reads them."""

import logging
import os
import subprocess
import sys

from resnet_jax.errors import ConfigError, first_line

log = logging.getLogger(__name__)

# These variables make JAX strict about all code, including code in other libraries.
_STRICT = ("JAX_NUMPY_DTYPE_PROMOTION", "JAX_TRANSFER_GUARD")


def look() -> None:
    """Checks XLA_FLAGS and removes environment variables that break other libraries.

    Raises:
      ConfigError: if XLA_FLAGS contains a flag that XLA does not know. Without this
        check, XLA would abort this process.
    """
    for name in [name for name in os.environ if name.startswith(_STRICT)]:
        del os.environ[name]
        log.warning("%s is ignored: other libraries in use do not support it", name)
    if not os.environ.get("XLA_FLAGS"):
        return
    probe = "from jaxlib import xla_client; xla_client.make_cpu_client()"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["XLA_FLAGS"]
        said = [line for line in lines if "XLA_FLAGS" in line] or lines
        reason = first_line(said[-1]).split("] ")[-1]
        raise ConfigError(f"{reason}: correct or unset XLA_FLAGS")
