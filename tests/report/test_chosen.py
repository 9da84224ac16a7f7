import numpy as np
import pytest

from resnet_jax.report import chosen


def test_the_surest_mistakes_come_first_and_say_what_is_true():
    probabilities = np.array([[0.6, 0.4], [0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    labels = np.array([1, 1, 1, 0])
    wrong, right = chosen.choose(probabilities, labels, ["a", "b"])
    assert list(wrong.indices) == [2, 3, 0]
    assert wrong.captions == [
        *("a 80.0 %\ntrue: b", "b 70.0 %\ntrue: a", "a 60.0 %\ntrue: b")
    ]
    assert list(right.indices) == [1] and right.captions == ["b 90.0 %"]


def test_correct_predictions_are_spread_over_the_test_split():
    labels = np.zeros(1000, int)
    probabilities = np.tile([0.9, 0.1], (1000, 1))
    probabilities[::2] = 0.1, 0.9  # mistakes
    _, right = chosen.choose(probabilities, labels, ["a", "b"])
    assert len(right.indices) == chosen.NUM_SHOWN
    assert right.indices[0] == 1 and right.indices[-1] == 999
    gaps = np.diff(right.indices)
    assert gaps.max() - gaps.min() <= 2  # one correct prediction
    assert set(right.captions) == {"a 90.0 %"}


@pytest.mark.parametrize("count", [0, 1, 5, 6])
def test_few_are_all_chosen(count):
    assert chosen.spread(count, 6).tolist() == list(range(count))
