"""Terms on logits against the formulas of the papers, computed with explicit loops over images and classes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from camkd.distill.losses.logits import (
    DKD,
    KD,
    AdjustedCrossEntropy,
    CrossEntropy,
    StandardizedKD,
    cross_entropy,
    dkd,
    kd,
    log_prior,
    standardize,
)
from camkd.types import Prediction
from support.reference_formulas import randn

seeds = st.integers(0, 10_000)
shapes = st.tuples(st.integers(1, 5), st.integers(2, 6))


def softmax(logits: list[float]) -> list[float]:
    exponentials = [math.exp(z - max(logits)) for z in logits]
    return [e / sum(exponentials) for e in exponentials]


def reference_kd(student: Tensor, teacher: Tensor, temperature: float) -> list[float]:
    values = []
    for student_row, teacher_row in zip(student.tolist(), teacher.tolist(), strict=True):
        q = softmax([z / temperature for z in student_row])
        p = softmax([z / temperature for z in teacher_row])
        values.append(temperature**2 * sum(b * math.log(b / a) for a, b in zip(q, p, strict=True)))
    return values


def reference_cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float) -> list[float]:
    values = []
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        p = softmax(row)
        q = [(1 - label_smoothing) * t + label_smoothing / len(row) for t in target]
        values.append(-sum(b * math.log(a) for a, b in zip(p, q, strict=True)))
    return values


# --- knowledge distillation


@settings(max_examples=25)
@given(seeds, shapes, st.sampled_from([0.5, 1.0, 4.0, 20.0]))
def test_kd_matches_formula(seed: int, shape: tuple[int, int], temperature: float) -> None:
    student = 3 * randn(seed, *shape)
    teacher = 3 * randn(seed + 1, *shape)
    values = kd(student, teacher, temperature)
    assert values.shape == shape[:1]
    assert values.tolist() == pytest.approx(reference_kd(student, teacher, temperature), rel=1e-9, abs=1e-12)
    assert (values >= -1e-12).all()


def test_kd_by_hand() -> None:
    teacher = torch.tensor([[2 * math.log(3.0), 0.0]])
    student = torch.tensor([[0.0, 0.0]])
    expected = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))  # at T = 2: (3/4, 1/4), (1/2, 1/2)
    assert kd(student, teacher, 2.0).item() == pytest.approx(expected, rel=1e-6)
    swapped = 4 * (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    assert kd(teacher, student, 2.0).item() == pytest.approx(swapped, rel=1e-6)
    assert expected != pytest.approx(swapped, rel=0.05)


@settings(max_examples=25)
@given(seeds, shapes, st.floats(-5, 5))
def test_kd_is_zero_for_equal_predictions_and_invariant_to_shift(
    seed: int, shape: tuple[int, int], shift: float
) -> None:
    student = randn(seed, *shape)
    teacher = randn(seed + 1, *shape)
    assert kd(teacher + shift, teacher).abs().max() < 1e-12
    torch.testing.assert_close(kd(student + shift, teacher), kd(student, teacher), rtol=1e-9, atol=1e-10)


def test_kd_gradient_at_high_temperature() -> None:
    """At high T the gradient is (z - v) / K for zero-mean logits (section 2.1 of the paper)."""
    student = randn(1, 2, 5)
    teacher = randn(2, 2, 5)
    student = student - student.mean(1, keepdim=True)
    teacher = teacher - teacher.mean(1, keepdim=True)
    student.requires_grad_()
    kd(student, teacher, 1000.0).sum().backward()
    torch.testing.assert_close(student.grad, ((student - teacher) / 5).detach(), rtol=1e-2, atol=1e-3)


# --- cross-entropy


@settings(max_examples=25)
@given(seeds, shapes, st.sampled_from([0.0, 0.1, 0.9]))
def test_cross_entropy_matches_formula_for_indices_and_probabilities(
    seed: int, shape: tuple[int, int], label_smoothing: float
) -> None:
    logits = 3 * randn(seed, *shape)
    labels = torch.randint(shape[1], shape[:1], generator=torch.Generator().manual_seed(seed))
    one_hot = F.one_hot(labels, shape[1]).double()
    expected = reference_cross_entropy(logits, one_hot, label_smoothing)
    assert cross_entropy(logits, labels, label_smoothing).tolist() == pytest.approx(expected, rel=1e-9)
    assert cross_entropy(logits, one_hot, label_smoothing).tolist() == pytest.approx(expected, rel=1e-9)
    mixed = randn(seed + 1, *shape).softmax(1)
    expected = reference_cross_entropy(logits, mixed, label_smoothing)
    assert cross_entropy(logits, mixed, label_smoothing).tolist() == pytest.approx(expected, rel=1e-9)


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0]])
    assert cross_entropy(logits, torch.tensor([0])).item() == pytest.approx(-math.log(0.75), rel=1e-6)
    mixed = cross_entropy(logits, torch.tensor([[0.25, 0.75]])).item()
    assert mixed == pytest.approx(-0.25 * math.log(0.75) - 0.75 * math.log(0.25), rel=1e-6)


def test_large_logits_give_finite_losses_and_gradients() -> None:
    student = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0.0]])
    loss = kd(student, teacher) + cross_entropy(student, torch.tensor([1]), 0.1)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_terms_apply_their_settings() -> None:
    student = randn(1, 3, 4)
    teacher = randn(2, 3, 4)
    labels = torch.tensor([0, 3, 1])
    smoothed = CrossEntropy(0.2)(Prediction(student), None, labels)
    torch.testing.assert_close(smoothed, cross_entropy(student, labels, 0.2))
    torch.testing.assert_close(KD(2.5)(Prediction(student), Prediction(teacher), labels), kd(student, teacher, 2.5))
    assert KD().temperature == 4.0


# --- decoupled and standardized knowledge distillation


def reference_dkd(student: Tensor, teacher: Tensor, labels: list[int], a: float, b: float, t: float) -> list[float]:
    values = []
    for student_row, teacher_row, label in zip(student.tolist(), teacher.tolist(), labels, strict=True):
        q = softmax([z / t for z in student_row])
        p = softmax([z / t for z in teacher_row])
        tckd = p[label] * math.log(p[label] / q[label]) + (1 - p[label]) * math.log((1 - p[label]) / (1 - q[label]))
        others = [k for k in range(len(p)) if k != label]
        nckd = sum(p[k] / (1 - p[label]) * math.log(p[k] / (1 - p[label]) * (1 - q[label]) / q[k]) for k in others)
        values.append(t**2 * (a * tckd + b * nckd))
    return values


@settings(max_examples=25)
@given(seeds, shapes, st.sampled_from([1.0, 4.0]), st.floats(0, 10), st.floats(0, 10))
def test_dkd_matches_formula(seed: int, shape: tuple[int, int], temperature: float, alpha: float, beta: float) -> None:
    student = 3 * randn(seed, *shape)
    teacher = 3 * randn(seed + 1, *shape)
    labels = torch.arange(shape[0]) % shape[1]
    values = dkd(student, teacher, labels, alpha, beta, temperature)
    expected = reference_dkd(student, teacher, labels.tolist(), alpha, beta, temperature)
    assert values.tolist() == pytest.approx(expected, rel=1e-7, abs=1e-9)


@settings(max_examples=25)
@given(seeds, shapes, st.sampled_from([1.0, 4.0]))
def test_dkd_parts_recombine_to_kd(seed: int, shape: tuple[int, int], temperature: float) -> None:
    student = 3 * randn(seed, *shape)
    teacher = 3 * randn(seed + 1, *shape)
    labels = torch.arange(shape[0]) % shape[1]
    non_target = 1 - F.softmax(teacher / temperature, 1).gather(1, labels[:, None]).squeeze(1)
    tckd = dkd(student, teacher, labels, 1.0, 0.0, temperature)
    nckd = dkd(student, teacher, labels, 0.0, 1.0, temperature)
    torch.testing.assert_close(tckd + non_target * nckd, kd(student, teacher, temperature))


def test_dkd_takes_the_most_probable_class_of_mixed_labels() -> None:
    student = randn(0, 4, 5)
    teacher = randn(1, 4, 5)
    labels = torch.tensor([0, 4, 2, 2])
    mixed = 0.7 * F.one_hot(labels, 5) + 0.3 * F.one_hot((labels + 1) % 5, 5)
    torch.testing.assert_close(dkd(student, teacher, mixed), dkd(student, teacher, labels))


def test_dkd_is_finite_for_saturated_predictions() -> None:
    student = torch.tensor([[200.0, 0.0, 0.0], [0.0, 200.0, 0.0]], requires_grad=True)
    values = dkd(student, torch.tensor([[0.0, 100.0, 0.0], [300.0, 0.0, 0.0]]), torch.tensor([0, 0]))
    values.sum().backward()
    assert values.isfinite().all()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def reference_standardize(row: list[float]) -> list[float]:
    """Standardize with the sample standard deviation."""
    mean = sum(row) / len(row)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in row) / (len(row) - 1))
    return [(value - mean) / deviation for value in row]


def test_standardized_logits_have_mean_zero_and_deviation_one() -> None:
    logits = 5 * randn(3, 6, 7) + 2
    torch.testing.assert_close(standardize(logits).mean(1), torch.zeros(6).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(standardize(logits).std(1), torch.ones(6).double(), atol=1e-6, rtol=0)
    assert not standardize(torch.full((1, 4), 3.0)).any()


@settings(max_examples=25)
@given(seeds, st.tuples(st.integers(1, 5), st.integers(3, 6)), st.floats(0.1, 10), st.floats(-5, 5))
def test_standardized_kd_matches_formula_and_is_invariant_to_scale_and_shift(
    seed: int, shape: tuple[int, int], scale: float, shift: float
) -> None:
    student = randn(seed, *shape)
    teacher = randn(seed + 1, *shape)
    labels = torch.zeros(shape[0]).long()
    term = StandardizedKD()
    values = term(Prediction(student), Prediction(teacher), labels)
    z = [torch.tensor([reference_standardize(row) for row in x.tolist()]).double() for x in (student, teacher)]
    assert values.tolist() == pytest.approx(reference_kd(*z, 2.0), rel=1e-5, abs=1e-9)
    rescaled = term(Prediction(scale * student + shift), Prediction(teacher), labels)
    torch.testing.assert_close(rescaled, values, rtol=1e-4, atol=1e-7)
    assert DKD().needs == term.needs == {"logits"}


# --- logit adjustment


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("mixed", [False, True])
@settings(max_examples=30, deadline=None)
@given(seeds, shapes)
def test_logit_adjustment_is_that_of_the_paper(
    label_smoothing: float, mixed: bool, seed: int, shape: tuple[int, int]
) -> None:
    """Menon et al. 2021, equation 10: ``log(1 + sum_{k != y} (prior[k] / prior[y]) * exp(f[k] - f[y]))``."""
    count, classes = shape
    logits = randn(seed, count, classes)
    train_labels = torch.arange(classes).repeat_interleave(torch.arange(1, classes + 1))
    prior = [(k + 1) / len(train_labels) for k in range(classes)]
    labels = torch.arange(count) % classes
    targets = randn(seed + 1, count, classes).softmax(1) if mixed else F.one_hot(labels, classes).float()
    expected = []
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        losses = [
            math.log(1 + sum(prior[k] / prior[y] * math.exp(row[k] - row[y]) for k in range(classes) if k != y))
            for y in range(classes)
        ]
        q = [(1 - label_smoothing) * t + label_smoothing / classes for t in target]
        expected.append(sum(weight * loss for weight, loss in zip(q, losses, strict=True)))
    term = AdjustedCrossEntropy(label_smoothing, log_prior=log_prior(train_labels, classes))
    loss = term(Prediction(logits), None, targets if mixed else labels)
    assert loss.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_prior_of_a_class_without_images_is_finite() -> None:
    assert log_prior(torch.tensor([0, 0, 2]), 4).exp().tolist() == pytest.approx([2 / 3, 1 / 3, 1 / 3, 1 / 3])
