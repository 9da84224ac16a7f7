import numpy as np
from PIL import Image

from resnet_jax.report import figures


def records(offset):
    return [
        {
            **{"epoch": e, "train_loss": offset / e, "seconds": 60.0 * offset},
            "test_accuracy": 1 - offset / 2 / e,
        }
        for e in (1, 2, 3)
    ]


def test_curves_are_drawn_for_every_run(tmp_path):
    one, two = tmp_path / "one.png", tmp_path / "deep" / "two.png"
    figures.plot_curves({"a": records(1.0)}, one)
    figures.plot_curves({"a": records(1.0), "b": records(0.5)}, two)
    drawn = [np.asarray(Image.open(path).convert("RGB")) for path in (one, two)]
    assert drawn[0].shape == drawn[1].shape == (480, 1680, 3)
    # The second colour is there for the second run alone.
    second = [int(figures.COLOURS[1][i : i + 2], 16) for i in (1, 3, 5)]
    orange = [((p == second).all(-1)).sum() for p in drawn]
    assert orange[0] == 0 and orange[1] > 100


def test_accuracy_is_drawn_against_the_time_that_training_took(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        figures, "save_figure", lambda figure, path: drawn.append(figure)
    )
    figures.plot_curves({"a": records(1.0), "b": records(0.5)}, tmp_path / "x.png")
    by_time = drawn[0].axes[2]
    assert [line.get_xdata().tolist() for line in by_time.lines] == [
        [1.0, 2.0, 3.0],
        [0.5, 1.0, 1.5],
    ]
    assert list(by_time.lines[0].get_ydata()) == [
        100 * (1 - 0.5 / e) for e in (1, 2, 3)
    ]
