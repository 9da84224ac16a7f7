"""Runs `python -m resnet_jax COMMAND ...`, which is `resnet-jax COMMAND ...`."""

from resnet_jax.commands import main

main()
