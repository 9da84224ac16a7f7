import numpy as np
from PIL import Image

from resnet_jax import figures


def records(offset):
    return [
        {"epoch": e, "train_loss": offset / e, "test_accuracy": 1 - offset / 2 / e}
        for e in (1, 2, 3)
    ]


def test_curves_are_drawn_for_every_run(tmp_path):
    one, two = tmp_path / "one.png", tmp_path / "deep" / "two.png"
    figures.plot_curves({"a": records(1.0)}, one)
    figures.plot_curves({"a": records(1.0), "b": records(0.5)}, two)
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in (one, two)]
    assert pictures[0].shape == pictures[1].shape == (480, 1200, 3)
    # The second colour is there for the second run alone.
    second = [int(figures.COLOURS[1][i : i + 2], 16) for i in (1, 3, 5)]
    orange = [((p == second).all(-1)).sum() for p in pictures]
    assert orange[0] == 0 and orange[1] > 100
