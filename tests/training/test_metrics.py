import json

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from resnet_jax.training import metrics


def test_eval_sums_by_hand():
    logits = jnp.array([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    labels = jnp.array([1, 2, 1])
    sums = metrics.eval_sums(logits, labels, jnp.ones(3))
    logits = np.asarray(logits, np.float64)
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(3), labels]
    np.testing.assert_allclose(sums["loss"], losses.sum(), rtol=1e-6)
    # The third's tie goes to the lower class, as in argmax.
    assert sums["correct"] == 1 and sums["count"] == 3 and sums["correct_top5"] == 3
    np.testing.assert_array_equal(sums["class_correct"], [0, 1, 0])
    np.testing.assert_array_equal(sums["class_count"], [0, 2, 1])


def test_top5_counts_the_rank_of_the_label():
    logits = jnp.broadcast_to(-jnp.arange(10.0), (10, 10))  # class k has rank k
    sums = metrics.eval_sums(logits, jnp.arange(10), jnp.ones(10))
    assert sums["correct"] == 1 and sums["correct_top5"] == 5


def test_masked_examples_count_nothing_even_where_they_are_nan():
    logits = jnp.array([[2.0, 0.0], [jnp.nan, jnp.nan]])
    sums = metrics.eval_sums(logits, jnp.array([0, 0]), jnp.array([1.0, 0.0]))
    assert sums["count"] == sums["correct"] == sums["correct_top5"] == 1
    np.testing.assert_allclose(sums["loss"], np.log1p(np.exp(-2.0)), rtol=1e-6)


def test_a_nan_is_never_right():
    logits = jnp.array([[jnp.nan, 0.0], [0.0, jnp.nan]])
    sums = metrics.eval_sums(logits, jnp.array([0, 0]), jnp.ones(2))
    assert sums["correct"] == 0 and not np.isfinite(sums["loss"])


def test_sums_add_exactly_in_float64():
    big = {"count": jnp.float32(2**24), "loss": jnp.float32(0.1)}
    one = {"count": jnp.float32(1), "loss": jnp.float32(0.1)}
    total = metrics.add(metrics.add(None, big), one)
    assert total["count"] == 2**24 + 1
    assert total["loss"] == 2 * float(np.float32(0.1))


def test_means_and_summary_line():
    sums = {"loss": 3.0, "correct": 3.0, "correct_top5": 4.0, "count": 4.0}
    assert metrics.means(sums, "val") == {"val_loss": 0.75, "val_accuracy": 0.75}
    line = metrics.summary_line(sums)
    assert line == "Acc@1 75.000 Acc@5 100.000 loss 0.750000 n 4"


@pytest.mark.parametrize("there", [4, 3])  # of the five classes
def test_balance_is_scikit_learns(there):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, there, 200) ** 2 // 3  # skewed
    logits = rng.normal(size=(200, 5)) + 2 * np.eye(5)[labels]
    logits[:, 4] -= 20  # never predicted
    sums = metrics.add(
        None, metrics.eval_sums(jnp.asarray(logits), jnp.asarray(labels), jnp.ones(200))
    )
    predicted = logits.argmax(1)
    assert set(predicted) > set(labels)
    found = metrics.balance(sums)
    recall = sklearn_metrics.recall_score(
        labels, predicted, labels=np.unique(labels), average="macro"
    )
    f1 = sklearn_metrics.f1_score(labels, predicted, average="macro", zero_division=0)
    assert found["balanced_accuracy"] == pytest.approx(recall, rel=1e-12)
    assert found["macro_f1"] == pytest.approx(f1, rel=1e-12)
    assert metrics.report(sums, list("abcde")).items() > found.items()
    assert metrics.balance_line(sums) == (
        f"balanced accuracy {100 * recall:.3f} macro-F1 {100 * f1:.3f}"
    )


def test_a_padded_row_is_no_prediction():
    logits = jnp.array([[2.0, 0.0], [0.0, 2.0]])
    sums = metrics.eval_sums(logits, jnp.array([0, 0]), jnp.array([1.0, 0.0]))
    np.testing.assert_array_equal(sums["class_predicted"], [1, 0])


def test_class_table_and_report():
    logits = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    sums = metrics.add(
        None, metrics.eval_sums(logits, jnp.array([0, 1, 1]), jnp.ones(3))
    )
    table = metrics.class_table(sums, ("cat", "horse"))
    assert table == "cat    100.00%  1 of 1\nhorse   50.00%  1 of 2"
    report = metrics.report(sums, ("cat", "horse"))
    assert report["class_accuracy"] == {"cat": 1.0, "horse": 0.5}
    assert report["count"] == 3 and report["accuracy"] == pytest.approx(2 / 3)
    json.dumps(report)
