"""The version of this package, installed or in a checkout."""

import importlib.metadata
import tomllib
from pathlib import Path

_NAME = "resnet-flax-linen"  # on PyPI


def find_version(home: Path = Path(__file__).parents[1]) -> str:
    """Returns the version in the checkout at `home`, else that of what is installed.

    A checkout comes first: an editable install keeps the version of the day it was
    made. Returns "unknown" if neither is there.
    """
    try:
        project = tomllib.loads((home / "pyproject.toml").read_text(encoding="utf-8"))
        if project["project"]["name"] == _NAME:
            return str(project["project"]["version"])
    except (OSError, ValueError, KeyError):
        pass
    try:
        return importlib.metadata.version(_NAME)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


__version__ = find_version()
