"""Terms on logits against the papers' formulas, written out picture by picture and class by class."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from camkd.distill.losses.logits import DKD, KD, CrossEntropy, StandardisedKD, cross_entropy, dkd, kd, standardised
from camkd.types import Prediction

seeds = st.integers(0, 10_000)
shapes = st.tuples(st.integers(1, 5), st.integers(2, 6))


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(logits: list[float]) -> list[float]:
    exponentials = [math.exp(z - max(logits)) for z in logits]
    return [e / sum(exponentials) for e in exponentials]


def kd_literally(student: Tensor, teacher: Tensor, temperature: float) -> list[float]:
    values = []
    for ours, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = softmax([z / temperature for z in ours]), softmax([z / temperature for z in theirs])
        values.append(temperature**2 * sum(b * math.log(b / a) for a, b in zip(q, p, strict=True)))
    return values


def cross_entropy_literally(logits: Tensor, targets: Tensor, label_smoothing: float) -> list[float]:
    values = []
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        p, k = softmax(row), len(row)
        q = [(1 - label_smoothing) * t + label_smoothing / k for t in target]
        values.append(-sum(b * math.log(a) for a, b in zip(p, q, strict=True)))
    return values


@settings(max_examples=25)
@given(seeds, shapes, st.sampled_from([0.5, 1.0, 4.0, 20.0]))
def test_kd_is_hintons_formula(seed: int, shape: tuple[int, int], temperature: float) -> None:
    student, teacher = 3 * draw(seed, *shape), 3 * draw(seed + 1, *shape)
    values = kd(student, teacher, temperature)
    assert values.shape == shape[:1]
    assert values.tolist() == pytest.approx(kd_literally(student, teacher, temperature), rel=1e-9, abs=1e-12)
    assert (values >= -1e-12).all()


def test_kd_by_hand() -> None:
    teacher, student = torch.tensor([[2 * math.log(3.0), 0.0]]), torch.tensor([[0.0, 0.0]])
    expected = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))  # at T = 2: (3/4, 1/4), (1/2, 1/2)
    assert kd(student, teacher, 2.0).item() == pytest.approx(expected, rel=1e-6)
    backwards = 4 * (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    assert kd(teacher, student, 2.0).item() == pytest.approx(backwards, rel=1e-6)
    assert expected != pytest.approx(backwards, rel=0.05)


@settings(max_examples=25)
@given(seeds, shapes, st.floats(-5, 5))
def test_kd_is_nought_for_equal_predictions_and_a_shift_changes_nothing(
    seed: int, shape: tuple[int, int], shift: float
) -> None:
    student, teacher = draw(seed, *shape), draw(seed + 1, *shape)
    assert kd(teacher + shift, teacher).abs().max() < 1e-12
    torch.testing.assert_close(kd(student + shift, teacher), kd(student, teacher), rtol=1e-9, atol=1e-10)


def test_kds_gradient_keeps_its_scale_at_high_temperature() -> None:
    """At high T the gradient is (z - v) / K for logits without mean (section 2.1 of the paper)."""
    student, teacher = draw(1, 2, 5), draw(2, 2, 5)
    student, teacher = student - student.mean(1, keepdim=True), teacher - teacher.mean(1, keepdim=True)
    student.requires_grad_()
    kd(student, teacher, 1000.0).sum().backward()
    torch.testing.assert_close(student.grad, ((student - teacher) / 5).detach(), rtol=1e-2, atol=1e-3)


@settings(max_examples=25)
@given(seeds, shapes, st.sampled_from([0.0, 0.1, 0.9]))
def test_cross_entropy_is_the_formula_for_both_kinds_of_labels(
    seed: int, shape: tuple[int, int], label_smoothing: float
) -> None:
    logits = 3 * draw(seed, *shape)
    labels = torch.randint(shape[1], shape[:1], generator=torch.Generator().manual_seed(seed))
    hard = F.one_hot(labels, shape[1]).double()
    expected = cross_entropy_literally(logits, hard, label_smoothing)
    assert cross_entropy(logits, labels, label_smoothing).tolist() == pytest.approx(expected, rel=1e-9)
    assert cross_entropy(logits, hard, label_smoothing).tolist() == pytest.approx(expected, rel=1e-9)
    soft = draw(seed + 1, *shape).softmax(1)
    expected = cross_entropy_literally(logits, soft, label_smoothing)
    assert cross_entropy(logits, soft, label_smoothing).tolist() == pytest.approx(expected, rel=1e-9)


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0]])
    assert cross_entropy(logits, torch.tensor([0])).item() == pytest.approx(-math.log(0.75), rel=1e-6)
    mixed = cross_entropy(logits, torch.tensor([[0.25, 0.75]])).item()
    assert mixed == pytest.approx(-0.25 * math.log(0.75) - 0.75 * math.log(0.25), rel=1e-6)


def test_enormous_logits_stay_finite() -> None:
    student = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0.0]])
    loss = kd(student, teacher) + cross_entropy(student, torch.tensor([1]), 0.1)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_the_terms_pass_their_settings_on() -> None:
    student, teacher, labels = draw(1, 3, 4), draw(2, 3, 4), torch.tensor([0, 3, 1])
    torch.testing.assert_close(
        CrossEntropy(0.2)(Prediction(student), None, labels), cross_entropy(student, labels, 0.2)
    )
    torch.testing.assert_close(KD(2.5)(Prediction(student), Prediction(teacher), labels), kd(student, teacher, 2.5))
    assert KD().temperature == 4.0


# --- what became of Hinton's


def dkd_literally(student: Tensor, teacher: Tensor, labels: list[int], a: float, b: float, t: float) -> list[float]:
    values = []
    for ours, theirs, label in zip(student.tolist(), teacher.tolist(), labels, strict=True):
        q, p = softmax([z / t for z in ours]), softmax([z / t for z in theirs])
        target = p[label] * math.log(p[label] / q[label]) + (1 - p[label]) * math.log((1 - p[label]) / (1 - q[label]))
        others = [k for k in range(len(p)) if k != label]
        rest = sum(p[k] / (1 - p[label]) * math.log(p[k] / (1 - p[label]) * (1 - q[label]) / q[k]) for k in others)
        values.append(t**2 * (a * target + b * rest))
    return values


@settings(max_examples=25)
@given(seeds, shapes, st.sampled_from([1.0, 4.0]), st.floats(0, 10), st.floats(0, 10))
def test_dkd_is_its_formula(seed: int, shape: tuple[int, int], temperature: float, alpha: float, beta: float) -> None:
    student, teacher = 3 * draw(seed, *shape), 3 * draw(seed + 1, *shape)
    labels = torch.arange(shape[0]) % shape[1]
    values = dkd(student, teacher, labels, alpha, beta, temperature)
    expected = dkd_literally(student, teacher, labels.tolist(), alpha, beta, temperature)
    assert values.tolist() == pytest.approx(expected, rel=1e-7, abs=1e-9)


@settings(max_examples=25)
@given(seeds, shapes, st.sampled_from([1.0, 4.0]))
def test_dkd_coupled_again_is_hintons(seed: int, shape: tuple[int, int], temperature: float) -> None:
    student, teacher = 3 * draw(seed, *shape), 3 * draw(seed + 1, *shape)
    labels = torch.arange(shape[0]) % shape[1]
    others = 1 - F.softmax(teacher / temperature, 1).gather(1, labels[:, None]).squeeze(1)
    target, rest = (dkd(student, teacher, labels, *weights, temperature) for weights in ((1.0, 0.0), (0.0, 1.0)))
    torch.testing.assert_close(target + others * rest, kd(student, teacher, temperature))


def test_dkd_of_mixed_labels_is_that_of_the_larger_part() -> None:
    student, teacher, labels = draw(0, 4, 5), draw(1, 4, 5), torch.tensor([0, 4, 2, 2])
    mixed = 0.7 * F.one_hot(labels, 5) + 0.3 * F.one_hot((labels + 1) % 5, 5)
    torch.testing.assert_close(dkd(student, teacher, mixed), dkd(student, teacher, labels))


def test_dkd_is_finite_where_a_prediction_is_certain() -> None:
    student = torch.tensor([[200.0, 0.0, 0.0], [0.0, 200.0, 0.0]], requires_grad=True)
    values = dkd(student, torch.tensor([[0.0, 100.0, 0.0], [300.0, 0.0, 0.0]]), torch.tensor([0, 0]))
    values.sum().backward()
    assert values.isfinite().all()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def standardised_literally(row: list[float]) -> list[float]:
    """With the deviation of a sample."""
    mean = sum(row) / len(row)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in row) / (len(row) - 1))
    return [(value - mean) / deviation for value in row]


def test_standardised_logits_have_mean_nought_and_deviation_one() -> None:
    logits = 5 * draw(3, 6, 7) + 2
    torch.testing.assert_close(standardised(logits).mean(1), torch.zeros(6).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(standardised(logits).std(1), torch.ones(6).double(), atol=1e-6, rtol=0)
    assert not standardised(torch.full((1, 4), 3.0)).any()


@settings(max_examples=25)
@given(seeds, st.tuples(st.integers(1, 5), st.integers(3, 6)), st.floats(0.1, 10), st.floats(-5, 5))
def test_scale_and_shift_of_logits_are_nothing_to_standardised_kd(
    seed: int, shape: tuple[int, int], scale: float, shift: float
) -> None:
    student, teacher, labels = draw(seed, *shape), draw(seed + 1, *shape), torch.zeros(shape[0]).long()
    term = StandardisedKD()
    values = term(Prediction(student), Prediction(teacher), labels)
    z = [torch.tensor([standardised_literally(row) for row in x.tolist()]).double() for x in (student, teacher)]
    assert values.tolist() == pytest.approx(kd_literally(*z, 2.0), rel=1e-5, abs=1e-9)
    changed = term(Prediction(scale * student + shift), Prediction(teacher), labels)
    torch.testing.assert_close(changed, values, rtol=1e-4, atol=1e-7)
    assert DKD().needs == term.needs == {"logits"}
