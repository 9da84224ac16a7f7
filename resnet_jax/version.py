"""The version of this package, whether installed or in a checkout."""

import importlib.metadata
import tomllib
from pathlib import Path

_NAME = "resnet-flax-linen"  # on PyPI


def find_version(home: Path = Path(__file__).parents[1]) -> str:
    """Returns the version of the checkout at `home`, or else the installed version.

    A checkout takes precedence, because an editable install keeps reporting the version
    that it had when it was installed. Returns "unknown" if there is neither a checkout
    nor an installed package.
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
