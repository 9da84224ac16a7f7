"""Paths as users type them."""

import os
import re
import unicodedata

from resnet_jax.errors import ConfigError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def expand(path: str) -> str:
    """`path` with ~ and ~user as their home folders, as a shell has it.

    Raises:
      ConfigError: it is a URL, or there is no such home.
    """
    if _URL.match(path):
        raise ConfigError(
            f"{path} is a URL, and only folders and files of this machine are read and "
            "written: mount it, or copy what it names, and give the path"
        )
    if os.path.lexists(path):  # it may begin with ~
        return path
    found = os.path.expanduser(path)
    if path.startswith("~") and found == path:
        raise ConfigError(
            f"{path}: there is no such home folder: set HOME, or give the whole path"
        )
    return found


def has_home() -> bool:
    """Whether this user has a home folder; a container's need not."""
    return os.path.expanduser("~") != "~"


def as_text(name: str) -> str:
    """The name of a file as text that every printer and file takes.

    Its bytes are read as UTF-8, whatever the locale, in composed form, so that two
    spellings that look alike are one; bytes that are none are shown escaped.
    """
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return unicodedata.normalize("NFC", text)


def shown(text: str) -> str:
    """`text` with the bytes of file names that are no UTF-8 as \\xff, to be printed."""
    try:
        content = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate of another origin
        content = text.encode("utf-8", "backslashreplace")
    return content.decode("utf-8", "backslashreplace")
