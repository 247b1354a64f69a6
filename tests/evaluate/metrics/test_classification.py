"""Classification metrics against values by hand and a NumPy reference."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from camkd.evaluate import metrics

LOGIT_METRICS = [metrics.accuracy, metrics.nll, metrics.ece]
LogitMetric = Callable[[Tensor, Tensor], float]
Shapes = tuple[tuple[int, ...], tuple[int, ...]]


def random_logits(seed: int, n: int, k: int) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def test_accuracy_and_nll_by_hand() -> None:
    logits = torch.tensor([[0.0, np.log(3.0)], [np.log(3.0), 0.0], [0.0, np.log(3.0)]])
    labels = torch.tensor([1, 0, 0])
    assert metrics.accuracy(logits, labels) == pytest.approx(2 / 3)
    assert metrics.nll(logits, labels) == pytest.approx(-(2 * np.log(0.75) + np.log(0.25)) / 3, abs=1e-6)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=6))
def test_balanced_accuracy_over_all_orders(pairs: list[tuple[int, int]]) -> None:
    """The value is that of the first order, and the standard error that of all orders of the predictions."""
    predicted, labels = (np.array(column) for column in zip(*pairs, strict=True))
    result = metrics.balanced_accuracy(torch.tensor(predicted), torch.tensor(labels))
    values = [
        np.mean([np.mean(np.array(order)[labels == k] == k) for k in np.unique(labels)])
        for order in permutations(predicted)
    ]
    assert result.value == pytest.approx(values[0])
    assert result.chance == pytest.approx(1 / len(np.unique(labels)))
    assert result.standard_error == pytest.approx(np.std(values), abs=1e-7)
    assert np.mean(values) <= result.chance + 1e-9


labeled = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40)
"""Predicted and true classes, among them classes without images that are predicted, and the other way around."""


@settings(max_examples=100, deadline=None)
@given(labeled)
def test_balanced_accuracy_and_macro_f1_equal_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    predicted, labels = (np.array(column) for column in zip(*pairs, strict=True))
    with warnings.catch_warnings():  # scikit-learn warns about predictions of classes without images
        warnings.simplefilter("ignore")
        balanced = sklearn.metrics.balanced_accuracy_score(labels, predicted)
        f1 = sklearn.metrics.f1_score(labels, predicted, labels=np.unique(labels), average="macro")
    assert metrics.balanced_accuracy(torch.tensor(predicted), torch.tensor(labels)).value == pytest.approx(balanced)
    correct = np.bincount(labels[predicted == labels], minlength=6)
    images = np.bincount(labels, minlength=6)
    assert metrics.mean_recall(torch.tensor(correct), torch.tensor(images)) == pytest.approx(balanced)
    assert metrics.macro_f1(torch.tensor(predicted), torch.tensor(labels)) == pytest.approx(f1)


def test_confusion_matrix_has_true_rows_and_predicted_columns() -> None:
    counts = metrics.confusion_matrix(torch.tensor([2, 2, 0, 1]), torch.tensor([0, 0, 0, 1]), 3)
    assert counts.tolist() == [[1, 0, 2], [0, 1, 0], [0, 0, 0]]
    assert counts.dtype == torch.int64


@pytest.mark.parametrize(
    ("shapes", "got"), [(((2,), (3,)), r"got \(2,\) and \(3,\)"), (((1, 2), (1, 2)), r"got \(1, 2\) and \(1, 2\)")]
)
def test_confusion_matrix_rejects_mismatched_shapes(shapes: Shapes, got: str) -> None:
    predicted, labels = (torch.zeros(shape, dtype=torch.int64) for shape in shapes)
    with pytest.raises(ValueError, match=got):
        metrics.confusion_matrix(predicted, labels, 3)


@pytest.mark.parametrize(("invalid", "got"), [(-1, r"got -1\.\.1"), (3, r"got 0\.\.3")])
def test_confusion_matrix_rejects_out_of_range_class(invalid: int, got: str) -> None:
    with pytest.raises(ValueError, match=rf"0\.\.2, {got}"):
        metrics.confusion_matrix(torch.tensor([0, invalid]), torch.tensor([0, 1]), 3)


def reference_ece(logits: np.ndarray, labels: np.ndarray, bins: int) -> float:
    """Expected calibration error, bin by bin."""
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = shifted / shifted.sum(1, keepdims=True)
    total = 0.0
    for b in range(bins):
        in_bin = [i for i in range(len(labels)) if b / bins < probabilities[i].max() <= (b + 1) / bins]
        if in_bin:
            accuracy = np.mean([probabilities[i].argmax() == labels[i] for i in in_bin])
            confidence = np.mean([probabilities[i].max() for i in in_bin])
            total += len(in_bin) / len(labels) * abs(accuracy - confidence)
    return total


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(2, 6), st.integers(1, 20))
def test_ece_matches_reference(seed: int, n: int, k: int, bins: int) -> None:
    logits = 3 * random_logits(seed, n, k)
    labels = torch.randint(k, (n,), generator=torch.Generator().manual_seed(seed))
    expected = reference_ece(logits.double().numpy(), labels.numpy(), bins)
    assert metrics.ece(logits, labels, bins) == pytest.approx(expected, abs=1e-5)


def test_ece_is_zero_for_calibrated_predictions() -> None:
    three_quarters = torch.log(torch.tensor([[3.0, 1.0]])).expand(4, 2)
    assert metrics.ece(three_quarters, torch.tensor([0, 0, 0, 1])) == pytest.approx(0, abs=1e-6)


def test_ece_does_not_cancel_errors_across_bins() -> None:
    over_and_under_confident = torch.tensor([[50.0, 0.0], [0.2, 0.0]])  # errors of +1 and -0.45
    expected = pytest.approx((1 + 0.45) / 2, abs=1e-3)
    assert metrics.ece(over_and_under_confident, torch.tensor([1, 0])) == expected


def test_ece_assigns_bin_edge_to_lower_bin() -> None:
    logits = torch.log(torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.1, 0.3, 0.3, 0.3]]))
    assert metrics.ece(logits, torch.tensor([0, 0]), 4) == pytest.approx((0.75 + 0.3) / 2, abs=1e-6)


@pytest.mark.parametrize("metric", LOGIT_METRICS)
@pytest.mark.parametrize("shapes", [((0, 3), (0,)), ((2, 3), (3,)), ((2,), (2,))])
def test_mismatched_or_empty_inputs_are_rejected(metric: LogitMetric, shapes: Shapes) -> None:
    with pytest.raises(ValueError, match="logits and labels") as caught:
        metric(torch.zeros(shapes[0]), torch.zeros(shapes[1], dtype=torch.int64))
    assert f"got {shapes[0]} and {shapes[1]}" in str(caught.value)


def test_shape_error_message() -> None:
    message = "logits and labels must be (N, K) and (N,) with N >= 1, got (2, 3) and (3,)."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        metrics.accuracy(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("metric", LOGIT_METRICS)
def test_half_precision_is_computed_in_single_precision(metric: LogitMetric) -> None:
    logits = random_logits(3, 50, 4).bfloat16()
    labels = torch.arange(50) % 4
    assert metric(logits, labels) == metric(logits.float(), labels)
    assert type(metric(logits, labels)) is float, "must be JSON-serializable"
