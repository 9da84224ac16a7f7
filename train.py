"""Trains a residual network: `python train.py RECIPE ...` (see --help).

The code is in resnet_jax/commands/train.py.
"""

from resnet_jax import commands
from resnet_jax.commands.train import main  # noqa: F401

if __name__ == "__main__":
    commands.run("train", "train.py")
