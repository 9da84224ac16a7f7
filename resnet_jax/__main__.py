"""Makes `python -m resnet_jax COMMAND ...` equivalent to `resnet-jax COMMAND`."""

from resnet_jax.commands import main

main()
