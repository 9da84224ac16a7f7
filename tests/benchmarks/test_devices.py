"""The comparison of layouts reports differences, and fails."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import devices
from resnet_jax.errors import ConfigError


def test_a_part_is_of_the_largest_value():
    theirs = [np.array([1.0, -8.0]), np.array([2.0])]
    ours = [np.array([1.0, -8.5]), np.array([1.8])]
    assert devices.part(ours, theirs) == 0.5 / 8
    assert devices.part(theirs, theirs) == 0.0


@pytest.fixture
def faked(monkeypatch):
    """Replaces runs by given results, by layout."""
    found = {}

    def read(run_dir):
        return {"loss": [np.array([found[run_dir.name][0]])]}

    def train(cfg, layout, run_dir, environ):
        highest = {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}
        assert environ == (highest if "differently" in run_dir.name else {})

    monkeypatch.setattr(devices, "train", train)
    monkeypatch.setattr(devices, "read", read)
    monkeypatch.setattr(
        devices, "count", lambda layout, run_dir: found[run_dir.name][1]
    )
    return found


CFG = devices.Devices(layouts=("1", "4", "2x2"))


def test_layouts_that_agree_pass(faked, capsys):
    faked |= {"1": (2.0, 1003), "4": (2.0, 1003), "2x2": (2.0 + 1e-5, 1003)}
    devices.main(CFG)
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| 1 | 0.0e+00 | 1,003 |",
        "| 4 | 0.0e+00 | 1,003 |",
        "| 2x2 | 5.0e-06 | 1,003 |",
    ]


@pytest.mark.parametrize(
    "last, message",
    [
        ((2.1, 1003), "more than 1e-05: 2x2: loss by 5.0e-02"),
        ((np.nan, 1003), "2x2: loss by nan"),
        ((2.0, 1004), "2x2: 1004 test images, not 1003"),
    ],
)
def test_layouts_that_part_fail(faked, last, message):
    faked |= {"1": (2.0, 1003), "4": (2.0, 1003), "2x2": last}
    with pytest.raises(SystemExit) as raised:  # a text gives exit code 1
        devices.main(CFG)
    assert str(raised.value).startswith("benchmarks.devices: ")
    assert message in str(raised.value)


def test_a_control_that_parts_fails_nothing(faked, capsys):
    faked |= {name: (2.0, 1003) for name in CFG.layouts}
    faked["1, rounded differently"] = (2.1, 1003)
    devices.main(replace(CFG, control=True))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "| 1, rounded differently | 5.0e-02 | 1,003 |"


def test_layouts_are_numbers():
    assert [devices.sizes(layout) for layout in CFG.layouts] == [(1, 1), (1, 4), (2, 2)]
    for layout in ("0", "x2", "2x", "a"):
        with pytest.raises(ConfigError, match="use DEVICES or PROCESSESxDEVICES"):
            devices.Devices(layouts=(layout,))
