"""Whose process this is: a command's own, or that of another program."""

import sys
from pathlib import Path

_OURS = ("train.py", "evaluate.py", "resnet-jax")
_WITH_VALUE = ("-W", "-X", "--check-hash-based-pycs")


def owns_process() -> bool:
    """Whether this process was begun for one of our commands.

    In Jupyter, or under runpy or a debugger, it is another program's: it must not be
    begun anew, ended, or keep what a command changes for itself.
    """
    arguments = iter(sys.orig_argv[1:])
    for argument in arguments:
        if argument == "-m":
            return next(arguments, "").split(".")[0] == "resnet_jax"
        if argument in _WITH_VALUE:
            next(arguments, "")
        elif not argument.startswith("-"):
            return _is_our_script(argument)
        elif argument.startswith("-c"):
            return False
    return False


def _is_our_script(name: str) -> bool:
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    if main is None or Path(name).name not in _OURS:
        return False
    return Path(name).resolve() == Path(main).resolve()
