"""Whose process this is: a command's own, or that of another program."""

import sys
from pathlib import Path

_OURS = ("train.py", "evaluate.py", "resnet-jax")


def owns_process() -> bool:
    """Whether this process was begun for one of our commands.

    In Jupyter, or under runpy or a debugger, it is another program's: it must not be
    begun anew, ended, or keep what a command changes for itself.
    """
    arguments = iter(sys.orig_argv[1:])
    for argument in arguments:
        if argument.startswith("--"):  # --check-hash-based-pycs alone has a value
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


def _split(argument: str) -> tuple[str, str]:
    """The option of Python's in `argument` that has a value, and the value in it."""
    for index, letter in enumerate(argument):
        if letter in "cmWX":
            return letter, argument[index + 1 :]
    return "", ""


def _is_our_script(name: str) -> bool:
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    if main is None or Path(name).name not in _OURS:
        return False
    return Path(name).resolve() == Path(main).resolve()
