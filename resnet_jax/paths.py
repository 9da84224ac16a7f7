"""Expands paths that users type."""

import os
import re
import unicodedata

from resnet_jax.errors import ConfigError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def expand(path: str) -> str:
    """Expands ~ and ~user in `path` to home folders, as a shell does.

    Raises:
      ConfigError: if `path` is a URL, or if the home folder does not exist.
    """
    if _URL.match(path):
        raise ConfigError(
            f"{path} is a URL, but only local files and folders are supported: "
            "download or mount the data, and give the local path"
        )
    if os.path.lexists(path):  # a file name may start with ~
        return path
    found = os.path.expanduser(path)
    if path.startswith("~") and found == path:
        raise ConfigError(
            f"{path}: no such home folder; set HOME or give the full path"
        )
    return found


def has_home() -> bool:
    """Returns whether this user has a home folder; a container may have none."""
    return os.path.expanduser("~") != "~"


def as_text(name: str) -> str:
    """Returns a file name as text that can be printed and stored anywhere.

    Decodes the name's bytes as UTF-8 in any locale, normalizes the text so that names
    that look the same are equal, and escapes invalid bytes.
    """
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return unicodedata.normalize("NFC", text)


def shown(text: str) -> str:
    """Escapes the bytes in `text` that are not valid UTF-8, for example as \\xff."""
    try:
        content = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a surrogate that does not represent a byte
        content = text.encode("utf-8", "backslashreplace")
    return content.decode("utf-8", "backslashreplace")
