"""Train a residual network: `python train.py RECIPE ...`, see --help.

The story is in resnet_jax/commands/train.py.
"""

from resnet_jax.commands.train import cli, main  # noqa: F401

if __name__ == "__main__":
    cli()
