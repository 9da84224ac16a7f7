"""Compare runs: one table, and one page with their curves.

    resnet-jax compare runs/hresnet runs/resnet20

It takes anything that left a metrics.jsonl of this form, PyTorch programs too.
"""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from resnet_jax.errors import ConfigError


@dataclass(frozen=True)
class CompareConfig:
    """Compare runs."""

    runs: Positional[tuple[str, ...]]
    """Run directories."""
    page: str = "comparison.html"
    """The page that is written."""


def main(options: CompareConfig) -> None:
    """Prints the table of the runs, and writes the page."""
    from resnet_jax.report import compare

    if not options.runs:
        raise ConfigError("name run directories: resnet-jax compare RUN RUN")
    print(compare.compare(options.runs, Path(options.page)))
