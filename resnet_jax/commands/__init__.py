"""What a user types, each command a story: `resnet-jax NAME ...`."""

import importlib
import sys
import typing

COMMANDS = (
    *("train", "evaluate", "predict", "compare", "export"),
    *("models", "data", "prepare", "doctor"),
)


def main() -> None:
    """`resnet-jax NAME ...`, or `python -m resnet_jax NAME ...`."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        sys.argv = [f"resnet-jax {name}", *sys.argv[2:]]
        run(name, sys.argv[0])
    print("usage: resnet-jax COMMAND ... (each has its own --help)\n")
    for command in COMMANDS:
        module = importlib.import_module(f"resnet_jax.commands.{command}")
        print(f"  {command:10}{str(module.__doc__).splitlines()[0]}")
    if name not in ("-h", "--help"):
        print(f"\nresnet-jax: no command {name!r}", file=sys.stderr)
        raise SystemExit(2)


def run(name: str, program: str) -> typing.NoReturn:
    """Runs a command on what the command line says of its options, and ends.

    The options are what its main takes: a Config, from a recipe, or a class of its own.
    """
    from resnet_jax.commands.command_line import command_line, parse, parse_recipe
    from resnet_jax.config import Config
    from resnet_jax.hosting import owns_process

    module = importlib.import_module(f"resnet_jax.commands.{name}")
    (options,) = {
        hint
        for argument, hint in typing.get_type_hints(module.main).items()
        if argument != "return"
    }
    is_config = options is Config
    with command_line(program, owns_process=owns_process(), is_printed=not is_config):
        if is_config:
            module.main(parse_recipe(module.__doc__))
        else:
            module.main(parse(options, module.__doc__))
    raise SystemExit(0)
