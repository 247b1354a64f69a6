"""Contract of every loss term and method; objectives as weighted sums, parsed and formatted."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camkd.distill.losses.features import Attention, Hint, RelationalAngle, RelationalDistance, Review, Similarity
from camkd.distill.losses.logits import DKD, KD, CrossEntropy, StandardizedKD, cross_entropy, dkd, kd
from camkd.distill.losses.maps import CAM, SDD, cam_distance, sdd
from camkd.distill.losses.registry import TERMS, NeedsAdapter, Term
from camkd.distill.methods import METHODS
from camkd.distill.objective import SCHEDULES, Objective, WeightedTerm, format_objective, parse_objective
from camkd.types import InputError, Prediction

BATCH = 5
CLASSES = 3
FIELDS = ("logits", "cams", "features")
RISING_SCHEDULES = ("ramp", "warm")


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_prediction(seed: int, side: int, channels: int) -> Prediction:
    logits = randn(seed, BATCH, CLASSES).requires_grad_()
    cams = randn(seed + 1, BATCH, CLASSES, side, side).requires_grad_()
    shapes = [(BATCH, channels * level, 4 * side // level, 4 * side // level) for level in (1, 2, 4)]
    stages = tuple(randn(seed + n, *shape).requires_grad_() for n, shape in enumerate(shapes, 2))
    return Prediction(logits, cams, stages)


def make_student() -> Prediction:
    return random_prediction(10, 8, 2)


def make_teacher() -> Prediction:
    return random_prediction(20, 4, 3)


def make_labels() -> Tensor:
    return torch.tensor([0, 2, 1, 1, 0])


def with_adapter(term: Term) -> Term:
    """Build the trainable weights of a term that needs them, always the same."""
    torch.manual_seed(0)
    return term.build_adapter(make_student(), make_teacher()) if isinstance(term, NeedsAdapter) else term


VARIANTS: dict[str, Term] = {
    **{name: with_adapter(make()) for name, make in TERMS.items()},
    "ce with label smoothing": CrossEntropy(0.1),
    "kd at T = 1": KD(1.0),
    "cam of the target": CAM("target"),
    "cam minmax": CAM(norm="minmax"),
    "cam raw": CAM(norm="raw", pool=2),
    "cam of the teacher's class": CAM("top-1"),
    "sdd on 2x2 cells": SDD(1.0, 0.5, 2),
}
"""Every term with its default settings, and some with other settings."""

RELATIONAL = {"sp", "rkd-d", "rkd-a", "review"}
"""Terms whose loss of an image depends on the other images of the batch."""


def select_fields(prediction: Prediction, needs: frozenset[str]) -> Prediction:
    return Prediction(*(getattr(prediction, name) if name in needs else None for name in FIELDS))


def select_rows(prediction: Prediction, rows: Tensor) -> Prediction:
    assert prediction.features is not None
    return Prediction(*(part[rows] for part in prediction[:2]), tuple(stage[rows] for stage in prediction.features))


def tensors_of(prediction: Prediction) -> list[Tensor]:
    assert prediction.cams is not None
    assert prediction.features is not None
    return [prediction.logits, prediction.cams, *prediction.features]


@pytest.fixture(params=VARIANTS)
def term(request: pytest.FixtureRequest) -> Term:
    return VARIANTS[request.param]


# --- every term


def test_term_returns_one_finite_value_per_image_from_its_needs(term: Term) -> None:
    assert term.needs <= set(FIELDS)
    student = select_fields(make_student(), term.needs)
    teacher = select_fields(make_teacher(), term.needs) if term.needs_teacher else None
    values = term(student, teacher, make_labels())
    assert values.shape == (BATCH,)
    assert values.isfinite().all()
    assert (values >= 0).all()
    torch.testing.assert_close(term(make_student(), make_teacher(), make_labels()), values)


@pytest.mark.parametrize(
    "name", [name for name, term in VARIANTS.items() if term.needs_teacher and not isinstance(term, nn.Module)]
)
def test_distance_is_zero_for_equal_predictions(name: str) -> None:
    term = VARIANTS[name]
    assert term(make_teacher(), make_teacher(), make_labels()).abs().max() < 1e-5
    assert (term(make_student(), random_prediction(20, 8, 3), make_labels()) > 1e-5).all()


def test_gradient_reaches_the_student_only(term: Term) -> None:
    student = make_student()
    teacher = make_teacher()
    term(student, teacher, make_labels()).sum().backward()
    gradients = [tensor.grad for tensor in tensors_of(student) if tensor.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)
    assert all(tensor.grad is None for tensor in tensors_of(teacher))


def test_values_follow_the_order_of_the_images(term: Term) -> None:
    student = make_student()
    teacher = make_teacher()
    labels = make_labels()
    order = torch.tensor([3, 0, 4, 1, 2])
    values = term(student, teacher, labels)
    permuted = term(select_rows(student, order), select_rows(teacher, order), labels[order])
    torch.testing.assert_close(permuted, values[order])


@pytest.mark.parametrize("name", VARIANTS)
def test_value_depends_on_other_images_only_for_relational_terms(name: str) -> None:
    term = VARIANTS[name]
    student = make_student()
    teacher = make_teacher()
    labels = make_labels()
    values = term(student, teacher, labels)
    if name in RELATIONAL:
        rows = torch.arange(3)
        assert not torch.allclose(
            term(select_rows(student, rows), select_rows(teacher, rows), labels[rows]), values[rows]
        )
        return
    for n in range(BATCH):
        row = torch.tensor([n])
        torch.testing.assert_close(term(select_rows(student, row), select_rows(teacher, row), labels[row]), values[row])


def test_functions_have_the_default_settings_of_their_terms() -> None:
    student = make_student()
    teacher = make_teacher()
    labels = make_labels()
    assert student.cams is not None
    assert teacher.cams is not None
    expected = {name: term(student, teacher, labels) for name, term in VARIANTS.items()}
    torch.testing.assert_close(cross_entropy(student.logits, labels), expected["ce"])
    torch.testing.assert_close(kd(student.logits, teacher.logits), expected["kd"])
    torch.testing.assert_close(dkd(student.logits, teacher.logits, labels), expected["dkd"])
    torch.testing.assert_close(cam_distance(student.cams, teacher.cams, labels), expected["cam"])
    torch.testing.assert_close(sdd(student, teacher), expected["sdd"])


def test_one_hot_labels_equal_class_indices(term: Term) -> None:
    one_hot = F.one_hot(make_labels(), CLASSES).float()
    values = term(make_student(), make_teacher(), one_hot)
    torch.testing.assert_close(values, term(make_student(), make_teacher(), make_labels()))


def test_term_does_not_modify_its_inputs(term: Term) -> None:
    student = make_student()
    teacher = make_teacher()
    term(student, teacher, make_labels())
    for prediction, unmodified in ((student, make_student()), (teacher, make_teacher())):
        pairs = zip(tensors_of(prediction), tensors_of(unmodified), strict=True)
        assert all(torch.equal(tensor, expected) for tensor, expected in pairs)


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_constant_predictions_give_finite_values_and_gradients(term: Term, value: float) -> None:
    def constant(prediction: Prediction) -> Prediction:
        tensors = tensors_of(prediction)
        logits, cams, *stages = (torch.full_like(tensor, value, requires_grad=True) for tensor in tensors)
        return Prediction(logits, cams, tuple(stages))

    for teacher in (constant(make_teacher()), make_teacher()):
        student = constant(make_student())
        values = term(student, teacher, make_labels())
        values.sum().backward()
        assert values.isfinite().all()
        assert all(tensor.grad.isfinite().all() for tensor in tensors_of(student) if tensor.grad is not None)


# --- every method


@pytest.mark.parametrize("method", METHODS)
def test_loss_of_a_method_is_its_weighted_sum(method: str) -> None:
    objective = parse_objective(method)
    student = make_student()
    teacher = make_teacher()
    labels = make_labels()
    if objective.needs_adapters:
        torch.manual_seed(0)
        objective = objective.build_adapters(student, teacher)
    teacher_fields = select_fields(teacher, objective.needs) if objective.needs_teacher else None
    loss, means = objective(select_fields(student, objective.needs), teacher_fields, labels, 0.0)
    assert loss.shape == ()
    expected = 0.0
    for name, weighted in objective.terms.items():
        mean = weighted.term(student, teacher, labels).mean()
        if weighted.schedule not in RISING_SCHEDULES:
            assert means[name].item() == pytest.approx(mean.item(), rel=1e-6)
            assert not means[name].requires_grad
        expected += weighted.weight_at(0.0) * mean.item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert student.logits.grad is not None
    assert all(tensor.grad is None for tensor in tensors_of(teacher))


@pytest.mark.parametrize("method", METHODS)
def test_method_has_summary_and_source(method: str) -> None:
    assert METHODS[method].summary
    assert METHODS[method].source
    assert ("ce" in parse_objective(method).terms) == (method != "e2kd")


def test_methods_have_the_weights_of_the_papers() -> None:
    objectives = {name: parse_objective(name) for name in METHODS}
    weights = {name: {n: (w.weight, w.term) for n, w in objectives[name].terms.items()} for name in METHODS}
    assert weights["plain"] == {"ce": (1.0, CrossEntropy())}
    assert weights["kd"] == {"ce": (0.1, CrossEntropy()), "kd": (0.9, KD(4.0))}
    assert weights["lskd"] == {"ce": (0.1, CrossEntropy()), "lskd": (9.0, StandardizedKD(2.0))}
    assert weights["dkd"] == {"ce": (1.0, CrossEntropy()), "dkd": (1.0, DKD(1.0, 8.0, 4.0))}
    assert weights["at"] == {"ce": (1.0, CrossEntropy()), "at": (1000.0, Attention())}
    assert weights["sdd"] == {"ce": (0.1, CrossEntropy()), "sdd": (0.9, SDD(4.0, 2.0, 4))}
    assert weights["fitnet"] == {"ce": (1.0, CrossEntropy()), "hint": (100.0, Hint())}
    assert weights["sp"] == {"ce": (1.0, CrossEntropy()), "sp": (3000.0, Similarity())}
    rkd = {"rkd-d": (25.0, RelationalDistance()), "rkd-a": (50.0, RelationalAngle())}
    assert weights["rkd"] == {"ce": (1.0, CrossEntropy()), **rkd}
    assert weights["reviewkd"] == {"ce": (1.0, CrossEntropy()), "review": (1.0, Review())}
    assert objectives["reviewkd"].terms["review"].schedule == "warm"
    assert objectives["dkd"].terms["dkd"].schedule == "warm"
    assert weights["cat-kd"]["cam"] == (5.0, CAM("all", "l2", 2))
    assert weights["cat+kd"] == {**weights["kd"], "cam": weights["cat-kd"]["cam"]}
    assert weights["e2kd"] == {"kd": (1.0, KD(1.0)), "cam": (0.5, CAM("top-1", "l2", 8))}
    assert weights["cam-kd"] == {**weights["kd"], "cam": (1.0, CAM("all", "l2", 4))}


def test_methods_state_their_needs() -> None:
    objectives = {name: parse_objective(name) for name in METHODS}
    assert {name for name in METHODS if not objectives[name].needs_teacher} == {"plain"}
    assert objectives["kd"].needs == {"logits"}
    assert objectives["at"].needs == {"logits", "features"}
    for name in ("cam-kd", "sdd", "e2kd", "cat+kd"):  # the fields of cached teacher outputs
        assert objectives[name].needs == {"logits", "cams"}
    assert {name for name in METHODS if objectives[name].needs_adapters} == {"fitnet", "reviewkd"}
    assert {name for name in METHODS if objectives[name].needs_other_images} == set()
    assert parse_objective("ce=1,cam=1:control=shuffled").needs_other_images


# --- objectives and schedules


@dataclass(frozen=True)
class CountingTerm:
    """A term of known value that counts its calls."""

    value: float
    calls: list[None] = field(default_factory=list)
    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    needs_teacher: ClassVar[bool] = False

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        self.calls.append(None)
        return self.value * torch.arange(len(labels)).float()


def test_term_with_zero_weight_is_not_computed() -> None:
    early = CountingTerm(5.0)
    objective = Objective({"a": WeightedTerm(CountingTerm(2.0), 3.0), "b": WeightedTerm(early, 1.0, "early")})
    for progress, num_calls, expected in (
        (0.0, 1, 3 * 4.0 + 10.0),
        (0.29, 2, 3 * 4.0 + 10.0),
        (0.3, 2, 12.0),
        (1.0, 2, 12.0),
    ):
        loss, means = objective(make_student(), None, make_labels(), progress)
        assert len(early.calls) == num_calls
        assert loss.item() == pytest.approx(expected)
        assert set(means) == ({"a", "b"} if progress < 0.3 else {"a"})
    Objective({"b": WeightedTerm(early, 0.0)})(make_student(), None, make_labels(), 0.0)
    assert len(early.calls) == 2


def test_schedules_by_hand() -> None:
    assert [SCHEDULES["constant"](p) for p in (0.0, 0.5, 1.0)] == [1, 1, 1]
    assert [SCHEDULES["early"](p) for p in (0.0, 0.299, 0.3, 1.0)] == [1, 1, 0, 0]
    assert [SCHEDULES["decay"](p) for p in (0.0, 1 / 3, 0.5, 1.0)] == pytest.approx([1, 0.75, 0.5, 0])
    assert [SCHEDULES["ramp"](p) for p in (0.0, 0.15, 0.3, 1.0)] == pytest.approx([0, 0.5, 1, 1])
    assert [SCHEDULES["warm"](epoch / 240) for epoch in (0, 5, 20, 240)] == pytest.approx([0, 0.25, 1, 1])
    assert WeightedTerm(CrossEntropy(), 3.0, "decay").weight_at(0.25) == pytest.approx(1.5 * (1 + math.sqrt(0.5)))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedule_is_monotonic_in_0_to_1(schedule: str) -> None:
    factors = [SCHEDULES[schedule](step / 100) for step in range(101)]
    falling = factors[::-1] if schedule in RISING_SCHEDULES else factors
    assert falling[0] == 1
    assert all(0 <= after <= before <= 1 for before, after in pairwise(falling))


# --- adapters


def test_build_adapters_replaces_only_terms_with_trainable_weights() -> None:
    objective = parse_objective("ce=1,hint=2:schedule=decay,kd=3,hint=1,review=1")
    assert objective.needs_adapters
    assert len(objective.modules()) == 0
    torch.manual_seed(0)
    built = objective.build_adapters(make_student(), make_teacher())
    assert not built.needs_adapters
    assert objective.needs_adapters
    assert list(built.terms) == list(objective.terms)
    assert built.terms["ce"] == objective.terms["ce"]
    for name, weighted in built.terms.items():
        assert (weighted.weight, weighted.schedule) == (objective.terms[name].weight, objective.terms[name].schedule)
    assert (built.needs, built.needs_teacher) == (objective.needs, objective.needs_teacher)
    modules = list(built.modules())
    assert modules == [built.terms[name].term for name in ("hint", "hint 2", "review")]
    assert not torch.equal(modules[0].regressor.weight, modules[1].regressor.weight)  # type: ignore[arg-type, union-attr]
    built(make_student(), make_teacher(), make_labels(), 0.0)[0].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in built.modules().parameters())


def test_build_adapters_without_trainable_weights_returns_an_equal_objective() -> None:
    objective = parse_objective("cam-kd")
    assert not objective.needs_adapters
    assert objective.build_adapters(make_student(), make_teacher()) == objective
    assert len(objective.modules()) == 0


# --- parsing and formatting


def test_parse_sum_of_terms() -> None:
    terms = parse_objective("ce=0.1,kd=0.9:T=2 , cam=3:pool=8:norm=raw:classes=target:schedule=ramp").terms
    assert terms == {
        "ce": WeightedTerm(CrossEntropy(), 0.1),
        "kd": WeightedTerm(KD(2.0), 0.9),
        "cam": WeightedTerm(CAM("target", "raw", 8), 3.0, "ramp"),
    }
    assert parse_objective("ce=1+dkd=2:beta=0:temperature=3").terms == parse_objective("ce=1,dkd=2:T=3:beta=0").terms
    assert parse_objective("ce=1:schedule=decay").terms["ce"] == WeightedTerm(CrossEntropy(), 1.0, "decay")
    assert parse_objective("cam=1:pool=1").terms["cam"] == WeightedTerm(CAM(pool=1)), "the smallest valid value"


def test_repeated_terms_are_numbered() -> None:
    terms = parse_objective("ce=1,cam=1:pool=2,cam=0.5:pool=8,cam=0.1").terms
    assert list(terms) == ["ce", "cam", "cam 2", "cam 3"]
    assert terms["cam 2"] == WeightedTerm(CAM(pool=8), 0.5)


def test_weights_may_have_exponents() -> None:
    assert parse_objective("ce=1e+2,kd=1e-1").terms["ce"].weight == 100


def test_early_and_ramp_together_cover_the_run() -> None:
    assert set(parse_objective("ce=1e+2:schedule=early+kd=1e-1:schedule=ramp").terms) == {"ce", "kd"}


@pytest.mark.parametrize("method", METHODS)
def test_format_and_parse_are_inverse(method: str) -> None:
    text = format_objective(parse_objective(method))
    assert parse_objective(text) == parse_objective(method)
    assert format_objective(parse_objective(text)) == text
    assert " " not in text


def test_format_leaves_out_defaults() -> None:
    objective = parse_objective(
        "ce=1.0:label_smoothing=0,cam=2 : pool=4:norm=raw, cam=1:pool=2 , kd=0.50:temperature=4:schedule=constant"
    )
    assert format_objective(objective) == "ce=1+cam=2:norm=raw+cam=1:pool=2+kd=0.5"


@pytest.mark.parametrize(
    ("method", "text"),
    [
        ("plain", "ce=1"),
        ("kd", "ce=0.1+kd=0.9"),
        ("lskd", "ce=0.1+lskd=9"),
        ("dkd", "ce=1+dkd=1:schedule=warm"),
        ("sdd", "ce=0.1+sdd=0.9"),
        ("cat+kd", "ce=0.1+kd=0.9+cam=5:pool=2"),
        ("e2kd", "kd=1:T=1+cam=0.5:classes=top-1:pool=8"),
        ("cam-kd", "ce=0.1+kd=0.9+cam=1"),
    ],
)
def test_text_in_existing_run_folders_keeps_its_meaning(method: str, text: str) -> None:
    """Defaults are those of the papers and must not change: they are left out of the text."""
    assert format_objective(parse_objective(method)) == text
    assert parse_objective(text) == parse_objective(method)


@pytest.mark.parametrize("method", METHODS)
def test_terms_of_a_method_parse_to_the_method(method: str) -> None:
    assert parse_objective(METHODS[method].terms) == parse_objective(method)


def test_label_smoothing_is_the_default_of_cross_entropy_terms() -> None:
    smoothed = parse_objective("cam-kd", label_smoothing=0.1)
    assert smoothed.terms["ce"] == WeightedTerm(CrossEntropy(0.1), 0.1)
    assert smoothed.terms["kd"] == parse_objective("cam-kd").terms["kd"]
    assert parse_objective("ce=1:label_smoothing=0.2").terms["ce"] == WeightedTerm(CrossEntropy(0.2))
    explicit = parse_objective("ce=1:label_smoothing=0.2", label_smoothing=0.1)
    assert explicit.terms["ce"] == WeightedTerm(CrossEntropy(0.2))
    both = parse_objective("ce=1:label_smoothing=0,ce=2", label_smoothing=0.1)
    assert both.terms == {"ce": WeightedTerm(CrossEntropy(0.0)), "ce 2": WeightedTerm(CrossEntropy(0.1), 2.0)}
    assert format_objective(both, label_smoothing=0.1) == "ce=1:label_smoothing=0+ce=2"


@pytest.mark.parametrize(
    ("method", "excerpts"),
    [
        ("hinton", ["method", "plain, kd", "got 'hinton'"]),
        ("", ["method", "got ''"]),
        ("ce=1,hinton=1", ["term", "ce, kd", "got 'hinton' in 'hinton=1'"]),
        ("ce=1,kd", ["weight", "got 'kd'", "kd=1"]),
        ("ce=1,,kd=1", ["term", "got '' in ''"]),
        ("ce=-1", ["weight", "0 or more", "got '-1' in 'ce=-1'"]),
        ("ce=nan", ["weight", "number", "got 'nan' in 'ce=nan'"]),
        ("ce=much", ["weight", "number", "got 'much' in 'ce=much'"]),
        ("ce=", ["weight", "number", "got '' in 'ce='"]),
        ("kd=1:T=0", ["temperature", "more than 0", "got '0' in 'kd=1:T=0'"]),
        ("ce=1:label_smoothing=3", ["label_smoothing", "between 0 and 1", "got '3'"]),
        ("ce=1,kd=1:T=4:T=2", ["temperature", "once", "'kd=1:T=4:T=2'"]),
        ("ce=0", ["weight above 0", "got 'ce=0'"]),
        ("kd=1:schedule=early", ["weight above 0", "got 'kd=1:schedule=early'"]),
        ("kd=1:schedule=ramp,ce=0", ["weight above 0", "got 'kd=1:schedule=ramp,ce=0'"]),
        ("kd=1:pool=2", ["kd", "temperature, schedule", "got 'pool' in 'kd=1:pool=2'"]),
        ("cam=1:pool=0", ["pool", "1 or more", "got '0' in 'cam=1:pool=0'"]),
        ("cam=1:pool=1.5", ["pool", "whole number", "got '1.5' in 'cam=1:pool=1.5'"]),
        ("cam=1:norm=l3", ["norm", "l2, minmax, raw", "got 'l3' in 'cam=1:norm=l3'"]),
        ("cam=1:schedule=late", ["schedule", "constant, early, decay, ramp, warm", "got 'late'"]),
        ("cam=1:schedule", ["schedule", "constant", "got '' in 'cam=1:schedule'"]),
    ],
)
def test_invalid_text_raises_with_value_and_choices(method: str, excerpts: list[str]) -> None:
    with pytest.raises(InputError, match=".*".join(map(re.escape, excerpts))):
        parse_objective(method)


def test_message_for_an_invalid_setting() -> None:
    with pytest.raises(InputError) as raised:
        parse_objective("cam=1:norm=l3")
    expected = "norm must be one of l2, minmax, raw, got 'l3' in 'cam=1:norm=l3'. Choose one of them."
    assert str(raised.value) == expected


# --- weights of the images


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_cross_entropy_is_torchs_with_class_weights(smoothing: float) -> None:
    """The mean of PyTorch's cross-entropy with ``weight`` is weighted by the class of each image."""
    student = random_prediction(0, 4, 3)
    labels = torch.tensor([0, 2, 1, 1, 0])
    class_weights = torch.tensor([0.5, 3.0, 0.0])
    losses = F.cross_entropy(student.logits, labels, label_smoothing=smoothing, reduction="none")
    expected = (class_weights[labels] * losses).sum() / class_weights[labels].sum()
    if not smoothing:  # with smoothing, PyTorch also weights the other classes
        torch.testing.assert_close(expected, F.cross_entropy(student.logits, labels, weight=class_weights))
    objective = parse_objective("ce=2", label_smoothing=smoothing)
    loss, means = objective(student, None, labels, 0.5, class_weights[labels])
    torch.testing.assert_close(loss, 2 * expected)
    torch.testing.assert_close(means["ce"], expected.detach())


def test_weights_leave_every_other_term_as_it_is() -> None:
    student, teacher = random_prediction(0, 4, 3), random_prediction(9, 4, 3)
    labels, weights = torch.tensor([0, 2, 1, 1, 0]), torch.tensor([0.0, 1.0, 5.0, 0.1, 2.0])
    for method in ("kd=1", "dkd=1", "cam=1", "lskd=1", "sp=1"):
        objective = parse_objective(method)
        expected, _ = objective(student, teacher, labels, 0.1)
        assert torch.equal(objective(student, teacher, labels, 0.1, weights)[0], expected)


def test_equal_weights_give_the_mean_and_zero_weights_give_zero() -> None:
    student, labels = random_prediction(0, 4, 3), torch.tensor([0, 2, 1, 1, 0])
    objective = parse_objective("ce=1")
    torch.testing.assert_close(
        objective(student, None, labels, 0.5, torch.full((5,), 7.0))[0], objective(student, None, labels, 0.5)[0]
    )
    loss, _ = objective(student, None, labels, 0.5, torch.zeros(5))
    assert loss.item() == 0
    (gradient,) = torch.autograd.grad(loss, student.logits)
    assert not gradient.any()


def test_each_part_of_a_mixed_image_has_its_own_weight() -> None:
    student = random_prediction(0, 4, 3)
    first, second = torch.tensor([0, 2, 1, 1, 0]), torch.tensor([1, 2, 0, 2, 0])
    own, partner = torch.tensor([0.0, 1.0, 2.0, 0.5, 0.0]), torch.tensor([1.0, 3.0, 0.0, 1.0, 0.0])
    share = torch.tensor([0.3, 0.5, 0.9, 0.0, 0.2])
    log_probabilities = student.logits.log_softmax(1)
    own_part, partner_part = (1 - share) * own, share * partner
    losses = [-log_probabilities[torch.arange(5), labels] for labels in (first, second)]
    expected = (own_part * losses[0] + partner_part * losses[1]).sum() / (own_part + partner_part).sum()
    labels = torch.lerp(F.one_hot(first, 3).float(), F.one_hot(second, 3).float(), share[:, None])
    weights = F.one_hot(first, 3) * own_part[:, None] + F.one_hot(second, 3) * partner_part[:, None]
    torch.testing.assert_close(parse_objective("ce=1")(student, None, labels, 0.5, weights)[0], expected)


# --- logit adjustment


@pytest.mark.parametrize("method", ["ce=0.3:label_smoothing=0.1,kd=0.9:T=4", "ce=1,dkd=1,cam=1", "plain"])
def test_logits_are_adjusted_in_the_cross_entropy_only(method: str) -> None:
    objective = parse_objective(method)
    student, teacher, labels = make_student(), make_teacher(), make_labels()
    log_prior = torch.tensor([0.7, 0.2, 0.1]).log()
    loss, means = objective.adjust_logits(log_prior)(student, teacher, labels, 0.5)
    _, plain = objective(student, teacher, labels, 0.5)
    smoothing = objective.terms["ce"].term.label_smoothing  # type: ignore[attr-defined]
    shifted = nn.functional.cross_entropy(student.logits.detach() + log_prior, labels, label_smoothing=smoothing)
    assert means["ce"] == pytest.approx(float(shifted))
    assert means["ce"] != pytest.approx(float(plain["ce"]))
    assert {name: mean for name, mean in means.items() if name != "ce"} == {
        name: mean for name, mean in plain.items() if name != "ce"
    }
    weights = {name: weighted.weight_at(0.5) for name, weighted in objective.terms.items()}
    assert loss.item() == pytest.approx(float(sum(weights[name] * means[name] for name in means)))


# --- unlabeled images


def _unlabeled_batch() -> tuple[Prediction, Prediction]:
    generator = torch.Generator().manual_seed(3)
    return Prediction(torch.randn(5, 3, generator=generator)), Prediction(torch.randn(5, 3, generator=generator))


def test_unlabeled_images_are_left_out_of_the_cross_entropy_only() -> None:
    student, teacher = _unlabeled_batch()
    labels = torch.tensor([2, -1, 0, -1, 1])
    weights = torch.tensor([1.0, 0, 1, 0, 1])
    loss, means = parse_objective("ce=0.5,kd=2:T=3")(student, teacher, labels, 0.5, weights)
    known = [0, 2, 4]
    ce = torch.nn.functional.cross_entropy(student.logits[known], labels[known])
    _, expected = parse_objective("kd=1:T=3")(student, teacher, labels.clamp_min(0), 0.5)
    torch.testing.assert_close(means["ce"], ce)
    torch.testing.assert_close(means["kd"], expected["kd"])
    torch.testing.assert_close(loss, 0.5 * ce + 2 * expected["kd"])


@pytest.mark.parametrize("method", ["dkd=1", "ce=1,dkd=1"])
def test_label_of_an_unlabeled_image_is_the_class_that_the_teacher_predicts(method: str) -> None:
    student, teacher = _unlabeled_batch()
    predicted = teacher.logits.argmax(1)
    labels = torch.tensor([2, -1, 0, -1, 1])
    weights = torch.tensor([1.0, 0, 1, 0, 1])
    _, means = parse_objective(method)(student, teacher, labels, 0.5, weights)
    _, expected = parse_objective("dkd=1")(student, teacher, torch.where(labels < 0, predicted, labels), 0.5)
    torch.testing.assert_close(means["dkd"], expected["dkd"])


def test_unlabeled_part_of_a_mixed_image() -> None:
    """A labeled image of class 2 with a share of 0.7, mixed with an unlabeled one."""
    student, teacher = (Prediction(prediction.logits[:2]) for prediction in _unlabeled_batch())
    labels = torch.tensor([[0, 0, 0.7], [0, 1, 0]])
    _, means = parse_objective("ce=1,dkd=1")(student, teacher, labels, 0.5, labels)
    losses = torch.nn.functional.cross_entropy(student.logits, torch.tensor([2, 1]), reduction="none")
    torch.testing.assert_close(means["ce"], (0.7 * losses[0] + losses[1]) / 1.7)
    completed = labels.clone()
    completed[0, teacher.logits[0].argmax()] += 0.3
    _, expected = parse_objective("dkd=1")(student, teacher, completed, 0.5)
    torch.testing.assert_close(means["dkd"], expected["dkd"])


def test_batch_without_labels_has_no_cross_entropy() -> None:
    student, teacher = _unlabeled_batch()
    loss, means = parse_objective("ce=1,kd=1")(student, teacher, torch.full((5,), -1), 0.5, torch.zeros(5))
    assert means["ce"] == 0
    assert torch.equal(loss, means["kd"])
