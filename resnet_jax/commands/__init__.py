"""The `resnet-jax NAME ...` commands, each in its own module."""

import importlib
import sys
import typing

COMMANDS = (
    *("train", "evaluate", "predict", "compare", "export"),
    *("models", "data", "prepare", "doctor"),
)


def main() -> None:
    """Entry point of `resnet-jax NAME ...` and `python -m resnet_jax NAME ...`."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        sys.argv = [f"resnet-jax {name}", *sys.argv[2:]]
        run(name, sys.argv[0])
    if name == "--version":
        _print_version()
    if name not in ("-h", "--help"):
        from resnet_jax.commands.usage import did_you_mean

        hint = did_you_mean(name, COMMANDS)
        said = (
            f"unknown command {name!r}{hint} (`resnet-jax --help` lists the commands)"
        )
        print(f"resnet-jax: {said}", file=sys.stderr)
        raise SystemExit(2)
    print("usage: resnet-jax COMMAND ... (each has its own --help)\n")
    for command in COMMANDS:
        module = importlib.import_module(f"resnet_jax.commands.{command}")
        print(f"  {command:10}{str(module.__doc__).splitlines()[0]}")
    print(f"  {'--version':10}Print the version.")


def _print_version() -> typing.NoReturn:
    from resnet_jax.version import __version__

    print(f"resnet-jax {__version__}")
    raise SystemExit(0)


def run(name: str, program: str) -> typing.NoReturn:
    """Runs the command `name` with the command-line options, then exits.

    The parameter type of the command's main function determines how the options
    are parsed: as a Config based on a recipe, or as the command's own options
    class.
    """
    if "--version" in sys.argv[1:]:
        _print_version()
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
