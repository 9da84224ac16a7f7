"""Which values of a parametrized test are too slow for the default tier."""

from collections.abc import Iterable
from typing import Any

import pytest


def by_tier(
    values: Iterable[Any], heavy: Iterable[Any], slow: Iterable[Any] = ()
) -> list[Any]:
    """Returns `values` for parametrize; some are marked "process" or "slow"."""
    values, heavy, slow = list(values), list(heavy), list(slow)
    assert values and all(value in values for value in heavy + slow)

    def marks(value: Any) -> list[pytest.MarkDecorator]:
        if value in slow:
            return [pytest.mark.slow]
        return [pytest.mark.process] if value in heavy else []

    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)), marks=marks(value)
        )
        for value in values
    ]
