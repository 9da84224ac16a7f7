"""Runs one case of test_training for each optimizer in every test run.

Muon is not among them: PyTorch's computes its matrices in bfloat16.
"""

import pytest

pytest.importorskip("torchvision", reason="parity needs torch and torchvision")
import steps

pytestmark = pytest.mark.optimized

WHOLE = (8,) * 20  # batches of one size are compiled once


@pytest.mark.parametrize(
    ("optimizer", "sizes"),
    [("adam", steps.SIZES), ("nesterov", WHOLE), ("adamw", WHOLE)],
)
def test_twenty_steps_in_float64(optimizer, sizes):
    steps.check_float64("resnet8", None, optimizer, sizes)
