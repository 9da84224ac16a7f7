"""Whether a command owns its process, or runs inside another program."""

import sys
from pathlib import Path

_OURS = ("train.py", "evaluate.py", "resnet-jax")


def owns_process() -> bool:
    """Returns whether this process was started for one of our commands.

    In Jupyter, or under runpy or a debugger, it belongs to another program: it must not
    be restarted or ended, and everything that a command changes must be undone.
    """
    arguments = iter(sys.orig_argv[1:])
    for argument in arguments:
        if argument.startswith("--"):  # only --check-hash-based-pycs has a value
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
    """Returns Python's option with a value in `argument`, and that value."""
    for index, letter in enumerate(argument):
        if letter in "cmWX":
            return letter, argument[index + 1 :]
    return "", ""


def _is_our_script(name: str) -> bool:
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    if main is None or Path(name).name not in _OURS:
        return False
    return Path(name).resolve() == Path(main).resolve()
