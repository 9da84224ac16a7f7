"""Scores a run on all test images: `python evaluate.py RUN ...` (see --help).

The code is in resnet_jax/commands/evaluate.py.
"""

from resnet_jax import commands
from resnet_jax.commands.evaluate import main  # noqa: F401

if __name__ == "__main__":
    commands.run("evaluate", "evaluate.py")
