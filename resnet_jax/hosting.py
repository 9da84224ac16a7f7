"""Detects how a command was started, and whether it runs inside another program."""

import sys
from pathlib import Path

_OURS = ("train.py", "evaluate.py", "resnet-jax")


def owns_process() -> bool:
    """Returns whether this process was started to run one of this package's commands.

    In Jupyter, under runpy or in a debugger, the process belongs to another program. A
    command must not restart or end such a process, and must undo the changes that it
    makes.
    """
    arguments = iter(sys.orig_argv[1:])
    for argument in arguments:
        if argument.startswith("--"):  # only --check-hash-based-pycs takes a value
            next(arguments, "")
            continue
        if not argument.startswith("-"):
            return _is_our_script(argument)
        kind, value = _split(argument)
        if kind == "c":
            return False
        if kind and not value:
            value = next(arguments, "")
        if kind == "m":
            return value.split(".")[0] == "resnet_jax"
    return False


def invocation(name: str) -> list[str]:
    """Returns the words that start the command `name`, train or evaluate.

    A user who started this command with resnet-jax may not have the scripts.
    """
    is_installed = sys.argv[0].startswith("resnet-jax ")  # as commands.main sets it
    return ["resnet-jax", name] if is_installed else ["python", f"{name}.py"]


def _split(argument: str) -> tuple[str, str]:
    """Splits a Python flag, such as -Wignore, into the option letter and its value."""
    for index, letter in enumerate(argument):
        if letter in "cmWX":
            return letter, argument[index + 1 :]
    return "", ""


def _is_our_script(name: str) -> bool:
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    if main is None or Path(name).name not in _OURS:
        return False
    return Path(name).resolve() == Path(main).resolve()
