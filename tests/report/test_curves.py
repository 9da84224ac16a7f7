import numpy as np
import pytest
from PIL import Image

from resnet_jax.report import curves, figures


def records(offset, epochs=(1, 2, 3)):
    return [
        {
            **{"epoch": e, "train_loss": offset / e, "seconds": 60.0 * offset},
            **{"test_accuracy": 1 - offset / 2 / e, "test_loss": offset / e + 1},
            **{"train_accuracy": 0.5, "lr": 0.1 / e},
        }
        for e in epochs
    ]


def color_at(path, point):
    """Returns the pixels near a point of an image."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    height, width = pixels.shape[:2]
    y, x = round(point.y * height), round(point.x * width)
    near = pixels[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3)
    return near


def test_a_history_is_drawn_with_its_points_on_the_curves(tmp_path):
    paths = tmp_path / "deep" / "loss.png", tmp_path / "accuracy.png"
    both = curves.plot_history(records(1.0), *paths)
    assert [picture.path for picture in both] == list(paths)
    texts = [[point.text for point in picture.points] for picture in both]
    assert texts[0][:2] == ["training, epoch 1: 1", "training, epoch 2: 0.5"]
    assert texts[0][3:6] == [f"test, epoch {e}: {1 / e + 1:.4g}" for e in (1, 2, 3)]
    assert texts[1][3] == "test, epoch 1: 50 %"
    rates = [f"learning rate, epoch {e}: {0.1 / e:.4g}" for e in (1, 2, 3)]
    assert texts[0][6:] == texts[1][6:] == rates
    for path, picture in zip(paths, both, strict=True):
        for index, point in enumerate(picture.points):
            hexadecimal = [*figures.COLOURS[:2], figures.COLOURS[-1]][index // 3]
            own = [int(hexadecimal[i : i + 2], 16) for i in (1, 3, 5)]
            away = np.abs(color_at(path, point) - own).sum(-1).min()
            assert away < 60, (path.name, point)


def test_runs_are_drawn_by_epoch_and_by_the_time_that_training_took(tmp_path):
    two = {"a": records(1.0), "b": records(0.5)}
    pictures = curves.plot_runs(two, tmp_path)
    assert [picture.path.name for picture in pictures] == [
        "loss.png",
        "accuracy.png",
        "accuracy-by-time.png",
    ]
    texts = [point.text for point in pictures[2].points]
    assert texts[1] == f"a, 2.0 minutes: {100 * 0.75:.4g} %"
    assert texts[4] == f"b, 1.0 minutes: {100 * 0.875:.4g} %"
    assert "a, b" in pictures[0].alt


def test_a_history_comes_with_its_values_by_epoch(tmp_path):
    loss, accuracy = curves.plot_history(
        records(1.0), tmp_path / "a.png", tmp_path / "b.png"
    )
    assert loss.values.caption == "Loss by epoch"
    assert loss.values.header == ("epoch", "training", "test", "learning rate")
    assert loss.values.rows[1] == (2, "0.5000", "1.5000", "0.05")
    assert accuracy.values.rows[1] == (2, "50.00 %", "75.00 %", "0.05")


def test_runs_come_with_their_values_by_epoch(tmp_path):
    runs = {"a": records(1.0), "b": records(0.5, (2, 3, 4))}
    loss, accuracy, by_time = (
        picture.values for picture in curves.plot_runs(runs, tmp_path)
    )
    assert loss.header == ("epoch", "a", "b")
    assert loss.rows == [
        (1, "1.0000", "-"),
        (2, "0.5000", "0.2500"),
        (3, "0.3333", "0.1667"),
        (4, "-", "0.1250"),
    ]
    assert accuracy.rows[1] == (2, "75.00 %", "87.50 %")
    assert by_time.header == ("epoch", "a, minutes", "a", "b, minutes", "b")
    assert by_time.rows[1] == (2, "2.0", "75.00 %", "0.5", "87.50 %")
    assert "minutes of training" in by_time.caption


@pytest.mark.parametrize("epochs", [(7,), (1, 2)])
def test_epochs_have_ticks_at_whole_numbers(tmp_path, monkeypatch, epochs):
    drawn = []
    save = curves.save_figure
    monkeypatch.setattr(
        curves,
        "save_figure",
        lambda figure, path: (drawn.append(figure), save(figure, path)),
    )
    curves.plot_history(records(1.0, epochs), tmp_path / "a.png", tmp_path / "b.png")
    for axes in drawn[0].axes:
        ticks = [
            t
            for t in axes.get_xticks()
            if axes.get_xlim()[0] <= t <= axes.get_xlim()[1]
        ]
        assert ticks == list(epochs)
    rates = drawn[0].axes[1].lines[0]
    assert (rates.get_marker() == "o") == (len(epochs) == 1)


def test_values_that_are_not_finite_have_no_point(tmp_path):
    lines = {"a": ([1, 2, 3], [1.0, float("nan"), 2.0])}
    points = curves.plot(lines, tmp_path / "x.png", "t", "epoch", "loss")
    assert [point.text for point in points] == ["a, epoch 1: 1", "a, epoch 3: 2"]
