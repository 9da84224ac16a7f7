import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from resnet_jax.report import scores


@pytest.fixture
def predictions():
    """Probabilities, labels of 200 examples of 4 classes; one is never predicted."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(200, 4)) * 2
    logits[:, 3] -= 20
    labels = np.where(rng.random(200) < 0.5, logits.argmax(1), rng.integers(0, 4, 200))
    return scores.softmax(logits), labels


def test_softmax_sums_to_one_and_stands_large_logits():
    found = scores.softmax(np.array([[1e4, 1e4, 0.0]], np.float32))
    np.testing.assert_allclose(found, [[0.5, 0.5, 0.0]])


def test_figures_are_scikit_learns(predictions):
    probabilities, labels = predictions
    found = scores.score(probabilities, labels, ["a", "b", "c", "d"])
    predicted = probabilities.argmax(1)
    assert found["count"] == 200
    assert found["accuracy"] == sklearn_metrics.accuracy_score(labels, predicted)
    recall = sklearn_metrics.balanced_accuracy_score(labels, predicted)
    assert found["balanced_accuracy"] == pytest.approx(recall, rel=1e-12)
    f1 = sklearn_metrics.f1_score(labels, predicted, average="macro", zero_division=0)
    assert found["macro_f1"] == f1
    expected = sklearn_metrics.log_loss(labels, probabilities, labels=range(4))
    assert found["nll"] == pytest.approx(expected, rel=1e-12)
    expected = sklearn_metrics.confusion_matrix(labels, predicted)
    np.testing.assert_array_equal(found["confusion"], expected)
    report = sklearn_metrics.classification_report(
        labels, predicted, target_names=list("abcd"), output_dict=True, zero_division=0
    )
    for row in found["classes"]:
        theirs = report[row["name"]]
        assert (
            row["precision"] == theirs["precision"] and row["f1"] == theirs["f1-score"]
        )
        assert row["recall"] == theirs["recall"] and row["support"] == theirs["support"]
    assert found["classes"][3]["precision"] == 0  # and no warning


def test_a_class_without_images_is_in_no_mean():
    labels = np.array([0, 0, 1, 1])
    predicted = np.eye(4)[[0, 2, 1, 1]]  # 2 is predicted, but 3 is not
    found = scores.score(predicted, labels, ["a", "b", "c", "d"])
    assert found["balanced_accuracy"] == 0.75
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_calibration_is_the_mean_gap_over_the_bins(predictions):
    probabilities, labels = predictions
    confidences = probabilities.max(1)
    correct = probabilities.argmax(1) == labels
    ece, bins = scores.calibration(confidences, correct)
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidences > low) & (confidences <= low + 1 / 15)
        if inside.any():
            gap = abs(correct[inside].mean() - confidences[inside].mean())
            expected += inside.mean() * gap
    assert ece == pytest.approx(expected, rel=1e-9)
    assert sum(b["count"] for b in bins) == 200


def test_a_sure_and_right_network_is_calibrated():
    ece, bins = scores.calibration(np.ones(3), np.ones(3, bool))
    assert ece == 0.0
    assert [b["high"] for b in bins] == [1.0]


def test_a_confidence_on_an_edge_belongs_to_the_lower_bin():
    edge = float(np.linspace(0, 1, 16)[3])
    _, bins = scores.calibration(np.array([edge]), np.array([True]))
    assert bins[0]["high"] == edge
