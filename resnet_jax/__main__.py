"""`python -m resnet_jax COMMAND ...`, as `resnet-jax COMMAND ...`."""

from resnet_jax.commands import main

main()
