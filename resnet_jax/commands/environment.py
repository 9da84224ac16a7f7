"""What the environment asks of JAX, looked at before JAX reads it."""

import logging
import os
import subprocess
import sys

from resnet_jax.errors import ConfigError, first_line

log = logging.getLogger(__name__)

# To be strict with the arithmetic and the transfers of libraries, too.
_STRICT = ("JAX_NUMPY_DTYPE_PROMOTION", "JAX_TRANSFER_GUARD")


def look() -> None:
    """Sets aside what no program with libraries can bear, and tries XLA_FLAGS.

    Raises:
      ConfigError: XLA does not know a flag; it would end this process.
    """
    for name in [name for name in os.environ if name.startswith(_STRICT)]:
        del os.environ[name]
        log.warning("%s is set aside: it is for a program's own code", name)
    if not os.environ.get("XLA_FLAGS"):
        return
    probe = "from jaxlib import xla_client; xla_client.make_cpu_client()"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["XLA_FLAGS"]
        said = [line for line in lines if "XLA_FLAGS" in line] or lines
        reason = first_line(said[-1]).split("] ")[-1]
        raise ConfigError(f"{reason}: put it right, or unset XLA_FLAGS")
