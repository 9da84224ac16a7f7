"""The benchmark of transfer learning refuses what it cannot run."""

import pytest

from benchmarks import transfer


def test_only_pytorch_trains_the_backbone():
    with pytest.raises(SystemExit, match="only PyTorch trains the backbone"):
        transfer.main(transfer.Transfer("backbone", framework="jax"))
