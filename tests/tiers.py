"""Which values of a parametrized test are too slow for the default tier."""

from collections.abc import Iterable
from typing import Any

import pytest


def process_if(values: Iterable[Any], slow: Iterable[Any]) -> list[Any]:
    """Returns `values` for parametrize, with those in `slow` marked "process"."""
    slow = list(slow)
    assert (values := list(values)) and all(value in values for value in slow)
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)),
            marks=pytest.mark.process if value in slow else (),
        )
        for value in values
    ]
