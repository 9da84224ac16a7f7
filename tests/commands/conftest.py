"""Fixtures that run commands like a user, but in this process."""

import logging
import sys

import numpy as np
import pytest
from PIL import Image

from resnet_jax import commands
from resnet_jax.data import sources


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `resnet-jax ARGUMENTS`; returns exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["resnet-jax", *map(str, arguments)])
        logging.getLogger("resnet_jax").handlers.clear()  # another command's
        capsys.readouterr()
        code = 0
        try:
            commands.main()
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def image(tmp_path):
    """The path of an image file with one of the digits."""
    test = sources.load_dataset("digits")[1]
    Image.fromarray(np.asarray(test.images[0])).save(tmp_path / "a.png")
    return tmp_path / "a.png"
