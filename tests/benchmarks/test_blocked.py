import numpy as np
import pytest

from benchmarks import blocked
from resnet_jax.layers.grouped import by_xla


@pytest.mark.parametrize("pixels", [1, 2, 4])
def test_a_banded_kernel_computes_the_same(pixels):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 8, 5)).astype("f4")
    kernel = rng.normal(size=(3, 3, 5, 6)).astype("f4")
    wide = x.reshape(2, 3, 8 // pixels, pixels * 5)
    y = by_xla(1, 1, wide, blocked.banded(kernel, pixels), groups=1)
    expected = by_xla(1, 1, x, kernel, groups=1)
    np.testing.assert_allclose(y.reshape(expected.shape), expected, atol=1e-5)
    assert np.abs(expected).max() > 1


def test_each_form_is_timed(capsys):
    blocked.main(blocked.Blocked(batch_size=1, side=4, channels=2, depth=2, rounds=1))
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["| 1", "| 2", "| 4"]
    assert all(float(row[-1].rstrip(" |")) < 1e-5 for row in rows)
