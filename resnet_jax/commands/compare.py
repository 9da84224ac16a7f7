"""Compare runs in one table and on one page that shows their curves.

    resnet-jax compare runs/hresnet runs/resnet20

A run is any directory with a metrics.jsonl file in the format that train.py writes, so
runs of PyTorch programs can be compared as well.
"""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from resnet_jax.errors import ConfigError
from resnet_jax.fields import Group, ranged


@dataclass(frozen=True)
class CompareConfig(Group):
    """The runs to compare and the page to write."""

    runs: Positional[tuple[str, ...]] = ranged((), path="as typed")
    """Run directories to compare."""
    page: str = ranged("comparison.html", path="as typed")
    """HTML page to write."""


def main(options: CompareConfig) -> None:
    """Prints a table of the runs and writes the page."""
    from resnet_jax.report import compare

    if not options.runs:
        raise ConfigError("specify the run directories: resnet-jax compare RUN RUN")
    print(compare.compare(options.runs, Path(options.page)))
    print(f"page: {options.page}")
