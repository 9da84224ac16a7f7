import logging
import sys

import pytest


@pytest.fixture(autouse=True)
def _restore_logging():
    """As it was before a command set it up."""
    log = logging.getLogger("resnet_jax")
    before = log.handlers[:], log.level, log.propagate
    hook = sys.unraisablehook
    yield
    sys.unraisablehook = hook
    log.handlers[:], log.level, log.propagate = before
    for narrator in ("absl", "asyncio"):
        logging.getLogger(narrator).setLevel(logging.NOTSET)
