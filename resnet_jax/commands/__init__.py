"""What a user types, each command a story: `resnet-jax NAME ...`."""

import importlib
import sys

COMMANDS = ("train", "evaluate", "predict", "compare", "export", "models", "doctor")


def main() -> None:
    """`resnet-jax NAME ...`, or `python -m resnet_jax NAME ...`."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        module = importlib.import_module(f"resnet_jax.commands.{name}")
        program = f"resnet-jax {name}"
        sys.argv = [program, *sys.argv[2:]]
        module.cli(program)
    print("usage: resnet-jax COMMAND ... (each has its own --help)\n")
    for command in COMMANDS:
        module = importlib.import_module(f"resnet_jax.commands.{command}")
        print(f"  {command:10}{str(module.__doc__).splitlines()[0]}")
    if name not in ("-h", "--help"):
        print(f"\nresnet-jax: no command {name!r}", file=sys.stderr)
        raise SystemExit(2)
