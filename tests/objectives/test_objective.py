"""Every term and method keeps the contract; an objective is the weighted sum it says it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from camkd.objectives import METHODS, SCHEDULES, TERMS, Objective, Term, Weighted, objective
from camkd.objectives.logits import KD, CrossEntropy
from camkd.objectives.maps import CAM
from camkd.types import InputError, Prediction

N, K = 5, 3
PARTS = ("logits", "cams", "features")

#: every entry of TERMS as it comes, and more settings of those there are
VARIANTS: dict[str, Term] = {
    **{name: make() for name, make in TERMS.items()},
    "ce smoothed": CrossEntropy(0.1),
    "kd at T = 1": KD(1.0),
    "cam of the target": CAM("target"),
    "cam minmax": CAM(norm="minmax"),
    "cam raw": CAM(norm="raw", pool=2),
}


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def prediction(seed: int, side: int, channels: int) -> Prediction:
    parts = draw(seed, N, K), draw(seed + 1, N, K, side, side), draw(seed + 2, N, channels, side, side)
    return Prediction(*(part.requires_grad_() for part in parts))


def student() -> Prediction:
    return prediction(10, 8, 4)


def teacher() -> Prediction:
    return prediction(20, 4, 6)


def labels() -> Tensor:
    return torch.tensor([0, 2, 1, 1, 0])


def only(said: Prediction, needs: frozenset[str]) -> Prediction:
    return Prediction(*(getattr(said, part) if part in needs else None for part in PARTS))


def taken(said: Prediction, rows: Tensor) -> Prediction:
    return Prediction(*(None if part is None else part[rows] for part in said))


@pytest.fixture(params=VARIANTS)
def term(request: pytest.FixtureRequest) -> Term:
    return VARIANTS[request.param]


# --- every term


def test_a_term_gives_one_finite_value_a_picture_from_what_it_says_it_needs(term: Term) -> None:
    assert term.needs <= set(PARTS)
    values = term(only(student(), term.needs), only(teacher(), term.needs) if term.asks_teacher else None, labels())
    assert values.shape == (N,)
    assert values.isfinite().all()
    assert (values >= 0).all()
    torch.testing.assert_close(term(student(), teacher(), labels()), values)


@pytest.mark.parametrize("name", [name for name, term in VARIANTS.items() if term.asks_teacher])
def test_a_distance_is_nought_where_the_student_is_the_teacher(name: str) -> None:
    term = VARIANTS[name]
    assert term(teacher(), teacher(), labels()).abs().max() < 1e-5
    assert (term(student(), prediction(20, 8, 4), labels()) > 1e-4).all()


def test_a_term_teaches_the_student_and_never_the_teacher(term: Term) -> None:
    ours, theirs = student(), teacher()
    term(ours, theirs, labels()).sum().backward()
    slopes = [part.grad for part in ours if part is not None and part.grad is not None]
    assert slopes
    assert all(slope.isfinite().all() and slope.any() for slope in slopes)
    assert all(part is not None and part.grad is None for part in theirs[:3])


def test_a_term_treats_each_picture_for_itself(term: Term) -> None:
    ours, theirs, order = student(), teacher(), torch.tensor([3, 0, 4, 1, 2])
    values = term(ours, theirs, labels())
    torch.testing.assert_close(term(taken(ours, order), taken(theirs, order), labels()[order]), values[order])
    for n in range(N):
        alone = torch.tensor([n])
        torch.testing.assert_close(term(taken(ours, alone), taken(theirs, alone), labels()[alone]), values[alone])


def test_certain_mixed_labels_are_the_labels(term: Term) -> None:
    hard = F.one_hot(labels(), K).float()
    torch.testing.assert_close(term(student(), teacher(), hard), term(student(), teacher(), labels()))


def test_a_term_leaves_what_it_is_given_as_it_was(term: Term) -> None:
    ours, theirs = student(), teacher()
    term(ours, theirs, labels())
    for part, other in zip((*ours[:3], *theirs[:3]), (*student()[:3], *teacher()[:3]), strict=True):
        assert part is not None
        assert other is not None
        assert torch.equal(part, other)


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_a_term_is_finite_on_constant_answers_and_so_are_its_gradients(term: Term, value: float) -> None:
    def constant(side: int, channels: int) -> Prediction:
        shapes = (N, K), (N, K, side, side), (N, channels, side, side)
        return Prediction(*(torch.full(shape, value, requires_grad=True) for shape in shapes))

    for theirs in (constant(4, 6), teacher()):
        ours = constant(8, 4)
        values = term(ours, theirs, labels())
        values.sum().backward()
        assert values.isfinite().all()
        assert all(part.grad.isfinite().all() for part in ours if part is not None and part.grad is not None)


# --- every method


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_loss_is_its_weighted_sum(method: str) -> None:
    goal, ours, theirs = objective(method), student(), teacher()
    answer = only(theirs, goal.needs) if goal.asks_teacher else None
    loss, means = goal(only(ours, goal.needs), answer, labels(), 0.0)
    assert loss.shape == ()
    expected = 0.0
    for name, weighted in METHODS[method].terms.items():
        mean = weighted.term(ours, theirs, labels()).mean()
        assert means[name].item() == pytest.approx(mean.item(), rel=1e-6)
        assert not means[name].requires_grad
        expected += weighted.weight * mean.item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert ours.logits.grad is not None
    assert all(part is not None and part.grad is None for part in theirs[:3])


@pytest.mark.parametrize("method", METHODS)
def test_a_method_says_what_it_is(method: str) -> None:
    entry = METHODS[method]
    assert entry.summary
    assert entry.source
    assert "ce" in entry.terms
    assert {type(weighted.term) for weighted in entry.terms.values()} <= {type(make()) for make in TERMS.values()}
    assert all(weighted.schedule in SCHEDULES for weighted in entry.terms.values())


def test_the_methods_are_the_papers() -> None:
    weights = {name: {n: (w.weight, w.term) for n, w in m.terms.items()} for name, m in METHODS.items()}
    assert weights["plain"] == {"ce": (1.0, CrossEntropy())}
    assert weights["kd"] == {"ce": (0.1, CrossEntropy()), "kd": (0.9, KD(4.0))}
    assert weights["at"]["at"][0] == 1000.0
    assert weights["cat-kd"]["cam"] == (5.0, CAM("all", "l2", 2))
    assert not objective("plain").asks_teacher
    assert all(objective(name).asks_teacher for name in METHODS if name != "plain")
    assert objective("kd").needs == {"logits"}
    assert objective("at").needs == {"logits", "features"}
    assert objective("cam-kd").needs == {"logits", "cams"}


# --- objectives


@dataclass(frozen=True)
class Constant:
    """A term of known value that counts its calls."""

    value: float
    calls: list[None]
    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    asks_teacher: ClassVar[bool] = False

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        self.calls.append(None)
        return self.value * torch.arange(len(labels)).float()


def test_a_term_without_weight_is_not_computed() -> None:
    calls: list[None] = []
    goal = Objective({"a": Weighted(Constant(2.0, []), 3.0), "b": Weighted(Constant(5.0, calls), 1.0, "early")})
    for progress, times, expected in (
        (0.0, 1, 3 * 4.0 + 10.0),
        (0.29, 2, 3 * 4.0 + 10.0),
        (0.3, 2, 12.0),
        (1.0, 2, 12.0),
    ):
        loss, means = goal(student(), None, labels(), progress)
        assert len(calls) == times
        assert loss.item() == pytest.approx(expected)
        assert set(means) == ({"a", "b"} if progress < 0.3 else {"a"})
    Objective({"b": Weighted(Constant(5.0, calls), 0.0)})(student(), None, labels(), 0.0)
    assert len(calls) == 2


def test_schedules_by_hand() -> None:
    assert [SCHEDULES["constant"](p) for p in (0.0, 0.5, 1.0)] == [1, 1, 1]
    assert [SCHEDULES["early"](p) for p in (0.0, 0.299, 0.3, 1.0)] == [1, 1, 0, 0]
    assert [SCHEDULES["decay"](p) for p in (0.0, 1 / 3, 0.5, 1.0)] == pytest.approx([1, 0.75, 0.5, 0])
    assert Weighted(CrossEntropy(), 3.0, "decay").weight_at(0.25) == pytest.approx(1.5 * (1 + math.sqrt(0.5)))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_is_a_factor_within_0_and_1_that_never_rises(schedule: str) -> None:
    factors = [SCHEDULES[schedule](step / 100) for step in range(101)]
    assert factors[0] == 1
    assert all(0 <= after <= before <= 1 for before, after in pairwise(factors))


def test_smoothing_and_the_maps_schedule_are_passed_on() -> None:
    goal = objective("cam-kd", smoothing=0.1, cam_schedule="decay")
    assert goal.terms["ce"] == Weighted(CrossEntropy(0.1), 0.1)
    assert goal.terms["cam"].schedule == "decay"
    assert goal.terms["kd"] == METHODS["cam-kd"].terms["kd"]
    assert METHODS["cam-kd"].terms["ce"] == Weighted(CrossEntropy(), 0.1), "the table itself stays"
    assert METHODS["cam-kd"].terms["cam"].schedule == "constant"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "hinton"}, "there is no method 'hinton': choose one of plain, kd"),
        ({"method": "cam-kd", "cam_schedule": "late"}, "there is no schedule 'late': choose one of constant"),
        ({"method": "kd", "cam_schedule": "decay"}, "method 'kd' has no CAM term"),
    ],
)
def test_what_is_not_there_is_refused_with_the_choices(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        objective(**arguments)
