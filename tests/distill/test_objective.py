"""Every term and method keeps the contract; an objective is the weighted sum it says it is."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camkd.distill.losses.features import Attention, Hint, RelationalAngle, RelationalDistance, Review, Similarity
from camkd.distill.losses.logits import DKD, KD, CrossEntropy, StandardisedKD, cross_entropy, dkd, kd
from camkd.distill.losses.maps import CAM, SDD, cam_distance, sdd
from camkd.distill.losses.registry import TERMS, NeedsAdapter, Term
from camkd.distill.methods import METHODS
from camkd.distill.objective import SCHEDULES, Objective, WeightedTerm, format_objective, parse_objective
from camkd.types import InputError, Prediction

N, K = 5, 3
PARTS = ("logits", "cams", "features")
RISING = ("ramp", "warm")


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def prediction(seed: int, side: int, channels: int) -> Prediction:
    logits, cams = draw(seed, N, K).requires_grad_(), draw(seed + 1, N, K, side, side).requires_grad_()
    shapes = [(N, channels * part, 4 * side // part, 4 * side // part) for part in (1, 2, 4)]
    return Prediction(logits, cams, tuple(draw(seed + n, *shape).requires_grad_() for n, shape in enumerate(shapes, 2)))


def student() -> Prediction:
    return prediction(10, 8, 2)


def teacher() -> Prediction:
    return prediction(20, 4, 3)


def connected(term: Term) -> Term:
    """With the weights that it needs, the same ones each time."""
    torch.manual_seed(0)
    return term.connect(student(), teacher()) if isinstance(term, NeedsAdapter) else term


#: every entry of TERMS as it comes, and more settings of those there are
VARIANTS: dict[str, Term] = {
    **{name: connected(make()) for name, make in TERMS.items()},
    "ce smoothed": CrossEntropy(0.1),
    "kd at T = 1": KD(1.0),
    "cam of the target": CAM("target"),
    "cam minmax": CAM(norm="minmax"),
    "cam raw": CAM(norm="raw", pool=2),
    "cam of the teacher's class": CAM("top-1"),
    "sdd on 2x2 cells": SDD(1.0, 0.5, 2),
}

#: those whose value for a picture depends on the others of the batch
RELATIONAL = {"sp", "rkd-d", "rkd-a", "review"}


def labels() -> Tensor:
    return torch.tensor([0, 2, 1, 1, 0])


def only(said: Prediction, needs: frozenset[str]) -> Prediction:
    return Prediction(*(getattr(said, part) if part in needs else None for part in PARTS))


def taken(said: Prediction, rows: Tensor) -> Prediction:
    assert said.features is not None
    return Prediction(*(part[rows] for part in said[:2]), tuple(stage[rows] for stage in said.features))


def parts_of(said: Prediction) -> list[Tensor]:
    assert said.cams is not None
    assert said.features is not None
    return [said.logits, said.cams, *said.features]


@pytest.fixture(params=VARIANTS)
def term(request: pytest.FixtureRequest) -> Term:
    return VARIANTS[request.param]


# --- every term


def test_a_term_gives_one_finite_value_a_picture_from_what_it_says_it_needs(term: Term) -> None:
    assert term.needs <= set(PARTS)
    values = term(only(student(), term.needs), only(teacher(), term.needs) if term.needs_teacher else None, labels())
    assert values.shape == (N,)
    assert values.isfinite().all()
    assert (values >= 0).all()
    torch.testing.assert_close(term(student(), teacher(), labels()), values)


@pytest.mark.parametrize(
    "name", [name for name, term in VARIANTS.items() if term.needs_teacher and not isinstance(term, nn.Module)]
)
def test_a_distance_is_nought_where_the_student_is_the_teacher(name: str) -> None:
    term = VARIANTS[name]
    assert term(teacher(), teacher(), labels()).abs().max() < 1e-5
    assert (term(student(), prediction(20, 8, 3), labels()) > 1e-5).all()


def test_a_term_teaches_the_student_and_never_the_teacher(term: Term) -> None:
    ours, theirs = student(), teacher()
    term(ours, theirs, labels()).sum().backward()
    slopes = [part.grad for part in parts_of(ours) if part.grad is not None]
    assert slopes
    assert all(slope.isfinite().all() and slope.any() for slope in slopes)
    assert all(part.grad is None for part in parts_of(theirs))


def test_the_order_of_the_pictures_is_the_order_of_the_values(term: Term) -> None:
    ours, theirs, order = student(), teacher(), torch.tensor([3, 0, 4, 1, 2])
    values = term(ours, theirs, labels())
    torch.testing.assert_close(term(taken(ours, order), taken(theirs, order), labels()[order]), values[order])


@pytest.mark.parametrize("name", VARIANTS)
def test_a_term_treats_each_picture_for_itself_unless_it_relates_them(name: str) -> None:
    term, ours, theirs = VARIANTS[name], student(), teacher()
    values = term(ours, theirs, labels())
    if name in RELATIONAL:
        three = torch.arange(3)
        assert not torch.allclose(term(taken(ours, three), taken(theirs, three), labels()[three]), values[three])
        return
    for n in range(N):
        alone = torch.tensor([n])
        torch.testing.assert_close(term(taken(ours, alone), taken(theirs, alone), labels()[alone]), values[alone])


def test_a_function_is_its_term_where_nothing_else_is_said() -> None:
    (ours, our_maps, _, _), (theirs, their_maps, _, _) = student(), teacher()
    assert our_maps is not None
    assert their_maps is not None
    expected = {name: term(student(), teacher(), labels()) for name, term in VARIANTS.items()}
    torch.testing.assert_close(cross_entropy(ours, labels()), expected["ce"])
    torch.testing.assert_close(kd(ours, theirs), expected["kd"])
    torch.testing.assert_close(dkd(ours, theirs, labels()), expected["dkd"])
    torch.testing.assert_close(cam_distance(our_maps, their_maps, labels()), expected["cam"])
    torch.testing.assert_close(sdd(student(), teacher()), expected["sdd"])


def test_certain_mixed_labels_are_the_labels(term: Term) -> None:
    hard = F.one_hot(labels(), K).float()
    torch.testing.assert_close(term(student(), teacher(), hard), term(student(), teacher(), labels()))


def test_a_term_leaves_what_it_is_given_as_it_was(term: Term) -> None:
    ours, theirs = student(), teacher()
    term(ours, theirs, labels())
    for said, before in ((ours, student()), (theirs, teacher())):
        assert all(torch.equal(*pair) for pair in zip(parts_of(said), parts_of(before), strict=True))


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_a_term_is_finite_on_constant_answers_and_so_are_its_gradients(term: Term, value: float) -> None:
    def constant(said: Prediction) -> Prediction:
        logits, cams, *stages = (torch.full_like(part, value, requires_grad=True) for part in parts_of(said))
        return Prediction(logits, cams, tuple(stages))

    for theirs in (constant(teacher()), teacher()):
        ours = constant(student())
        values = term(ours, theirs, labels())
        values.sum().backward()
        assert values.isfinite().all()
        assert all(part.grad.isfinite().all() for part in parts_of(ours) if part.grad is not None)


# --- every method


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_loss_is_its_weighted_sum(method: str) -> None:
    goal, ours, theirs = parse_objective(method), student(), teacher()
    if goal.has_adapters:
        torch.manual_seed(0)
        goal = goal.build_adapters(ours, theirs)
    answer = only(theirs, goal.needs) if goal.needs_teacher else None
    loss, means = goal(only(ours, goal.needs), answer, labels(), 0.0)
    assert loss.shape == ()
    expected = 0.0
    for name, weighted in goal.terms.items():
        mean = weighted.term(ours, theirs, labels()).mean()
        if weighted.schedule not in RISING:
            assert means[name].item() == pytest.approx(mean.item(), rel=1e-6)
            assert not means[name].requires_grad
        expected += weighted.weight_at(0.0) * mean.item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert ours.logits.grad is not None
    assert all(part.grad is None for part in parts_of(theirs))


@pytest.mark.parametrize("method", METHODS)
def test_a_method_says_what_it_is(method: str) -> None:
    assert METHODS[method].summary
    assert METHODS[method].source
    assert ("ce" in parse_objective(method).terms) == (method != "e2kd")


def test_the_methods_are_the_papers() -> None:
    weights = {name: {n: (w.weight, w.term) for n, w in parse_objective(name).terms.items()} for name in METHODS}
    assert weights["plain"] == {"ce": (1.0, CrossEntropy())}
    assert weights["kd"] == {"ce": (0.1, CrossEntropy()), "kd": (0.9, KD(4.0))}
    assert weights["lskd"] == {"ce": (0.1, CrossEntropy()), "lskd": (9.0, StandardisedKD(2.0))}
    assert weights["dkd"] == {"ce": (1.0, CrossEntropy()), "dkd": (1.0, DKD(1.0, 8.0, 4.0))}
    assert weights["at"] == {"ce": (1.0, CrossEntropy()), "at": (1000.0, Attention())}
    assert weights["sdd"] == {"ce": (0.1, CrossEntropy()), "sdd": (0.9, SDD(4.0, 2.0, 4))}
    assert weights["fitnet"] == {"ce": (1.0, CrossEntropy()), "hint": (100.0, Hint())}
    assert weights["sp"] == {"ce": (1.0, CrossEntropy()), "sp": (3000.0, Similarity())}
    rkd = {"rkd-d": (25.0, RelationalDistance()), "rkd-a": (50.0, RelationalAngle())}
    assert weights["rkd"] == {"ce": (1.0, CrossEntropy()), **rkd}
    assert weights["reviewkd"] == {"ce": (1.0, CrossEntropy()), "review": (1.0, Review())}
    assert (
        parse_objective("reviewkd").terms["review"].schedule == parse_objective("dkd").terms["dkd"].schedule == "warm"
    )
    assert weights["cat-kd"]["cam"] == (5.0, CAM("all", "l2", 2))
    assert weights["cat+kd"] == {**weights["kd"], "cam": weights["cat-kd"]["cam"]}
    assert weights["e2kd"] == {"kd": (1.0, KD(1.0)), "cam": (0.5, CAM("top-1", "l2", 8))}
    assert weights["cam-kd"] == {**weights["kd"], "cam": (1.0, CAM("all", "l2", 4))}
    assert not parse_objective("plain").needs_teacher
    assert all(parse_objective(name).needs_teacher for name in METHODS if name != "plain")
    assert parse_objective("kd").needs == {"logits"}
    assert parse_objective("at").needs == {"logits", "features"}
    for name in ("cam-kd", "sdd", "e2kd", "cat+kd"):  # what a store of answers has
        assert parse_objective(name).needs == {"logits", "cams"}
    assert {name for name in METHODS if parse_objective(name).has_adapters} == {"fitnet", "reviewkd"}


# --- objectives


@dataclass(frozen=True)
class Constant:
    """A term of known value that counts its calls."""

    value: float
    calls: list[None]
    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    needs_teacher: ClassVar[bool] = False

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        self.calls.append(None)
        return self.value * torch.arange(len(labels)).float()


def test_a_term_without_weight_is_not_computed() -> None:
    calls: list[None] = []
    goal = Objective({"a": WeightedTerm(Constant(2.0, []), 3.0), "b": WeightedTerm(Constant(5.0, calls), 1.0, "early")})
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
    Objective({"b": WeightedTerm(Constant(5.0, calls), 0.0)})(student(), None, labels(), 0.0)
    assert len(calls) == 2


def test_schedules_by_hand() -> None:
    assert [SCHEDULES["constant"](p) for p in (0.0, 0.5, 1.0)] == [1, 1, 1]
    assert [SCHEDULES["early"](p) for p in (0.0, 0.299, 0.3, 1.0)] == [1, 1, 0, 0]
    assert [SCHEDULES["decay"](p) for p in (0.0, 1 / 3, 0.5, 1.0)] == pytest.approx([1, 0.75, 0.5, 0])
    assert [SCHEDULES["ramp"](p) for p in (0.0, 0.15, 0.3, 1.0)] == pytest.approx([0, 0.5, 1, 1])
    assert [SCHEDULES["warm"](epoch / 240) for epoch in (0, 5, 20, 240)] == pytest.approx([0, 0.25, 1, 1])
    assert WeightedTerm(CrossEntropy(), 3.0, "decay").weight_at(0.25) == pytest.approx(1.5 * (1 + math.sqrt(0.5)))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_is_a_factor_within_0_and_1_that_goes_one_way(schedule: str) -> None:
    factors = [SCHEDULES[schedule](step / 100) for step in range(101)]
    downwards = factors[::-1] if schedule in RISING else factors
    assert downwards[0] == 1
    assert all(0 <= after <= before <= 1 for before, after in pairwise(downwards))


# --- terms with weights of their own


def test_connecting_makes_the_weights_and_leaves_the_rest() -> None:
    goal = parse_objective("ce=1,hint=2:schedule=decay,kd=3,hint=1,review=1")
    assert goal.has_adapters
    assert len(goal.modules()) == 0
    torch.manual_seed(0)
    ready = goal.build_adapters(student(), teacher())
    assert not ready.has_adapters
    assert goal.has_adapters
    assert list(ready.terms) == list(goal.terms)
    assert ready.terms["ce"] == goal.terms["ce"]
    assert [(w.weight, w.schedule) for w in ready.terms.values()] == [
        (w.weight, w.schedule) for w in goal.terms.values()
    ]
    assert (ready.needs, ready.needs_teacher) == (goal.needs, goal.needs_teacher)
    modules = list(ready.modules())
    assert modules == [ready.terms[name].term for name in ("hint", "hint 2", "review")]
    assert not torch.equal(modules[0].regressor.weight, modules[1].regressor.weight)  # type: ignore[arg-type, union-attr]
    ready(student(), teacher(), labels(), 0.0)[0].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ready.modules().parameters())
    plain = parse_objective("cam-kd")
    assert not plain.has_adapters
    assert plain.build_adapters(student(), teacher()) == plain
    assert len(plain.modules()) == 0


# --- sums of terms


def test_a_sum_is_read_as_it_is_written() -> None:
    terms = parse_objective("ce=0.1,kd=0.9:T=2 , cam=3:pool=8:norm=raw:classes=target:schedule=ramp").terms
    assert terms == {
        "ce": WeightedTerm(CrossEntropy(), 0.1),
        "kd": WeightedTerm(KD(2.0), 0.9),
        "cam": WeightedTerm(CAM("target", "raw", 8), 3.0, "ramp"),
    }
    assert parse_objective("ce=1+dkd=2:beta=0:temperature=3").terms == parse_objective("ce=1,dkd=2:T=3:beta=0").terms
    assert parse_objective("ce=1:schedule=decay").terms["ce"] == WeightedTerm(CrossEntropy(), 1.0, "decay")
    assert parse_objective("cam=1:pool=1").terms["cam"] == WeightedTerm(CAM(pool=1)), "the least there is"


def test_a_term_may_come_twice() -> None:
    terms = parse_objective("ce=1,cam=1:pool=2,cam=0.5:pool=8,cam=0.1").terms
    assert list(terms) == ["ce", "cam", "cam 2", "cam 3"]
    assert terms["cam 2"] == WeightedTerm(CAM(pool=8), 0.5)


def test_early_and_ramp_together_leave_no_gap_and_numbers_may_have_exponents() -> None:
    assert set(parse_objective("ce=1e+2:schedule=early+kd=1e-1:schedule=ramp").terms) == {"ce", "kd"}
    assert parse_objective("ce=1e+2,kd=1e-1").terms["ce"].weight == 100


@pytest.mark.parametrize("method", METHODS)
def test_a_sum_is_written_as_it_is_read_and_equal_ones_alike(method: str) -> None:
    text = format_objective(parse_objective(method))
    assert parse_objective(text) == parse_objective(method)
    assert format_objective(parse_objective(text)) == text
    assert " " not in text


def test_what_goes_without_saying_is_not_written() -> None:
    goal = parse_objective(
        "ce=1.0:label_smoothing=0,cam=2 : pool=4:norm=raw, cam=1:pool=2 , kd=0.50:temperature=4:schedule=constant"
    )
    assert format_objective(goal) == "ce=1+cam=2:norm=raw+cam=1:pool=2+kd=0.5"


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
def test_what_older_runs_wrote_down_still_means_the_same(method: str, text: str) -> None:
    """What goes without saying is the paper's, and stays so: another would turn a sum into another one."""
    assert format_objective(parse_objective(method)) == text
    assert parse_objective(text) == parse_objective(method)


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_sum_written_out_is_the_method(method: str) -> None:
    assert parse_objective(METHODS[method].terms) == parse_objective(method)


def test_smoothing_is_the_cross_entropys() -> None:
    assert parse_objective("cam-kd", label_smoothing=0.1).terms["ce"] == WeightedTerm(CrossEntropy(0.1), 0.1)
    assert parse_objective("cam-kd", label_smoothing=0.1).terms["kd"] == parse_objective("cam-kd").terms["kd"]
    assert parse_objective("ce=1:label_smoothing=0.2").terms["ce"] == WeightedTerm(CrossEntropy(0.2))
    assert parse_objective("ce=1:label_smoothing=0.2", label_smoothing=0.1).terms["ce"] == WeightedTerm(
        CrossEntropy(0.2)
    ), "said of the term"
    sharp = parse_objective("ce=1:label_smoothing=0,ce=2", label_smoothing=0.1)
    assert sharp.terms == {"ce": WeightedTerm(CrossEntropy(0.0)), "ce 2": WeightedTerm(CrossEntropy(0.1), 2.0)}
    assert format_objective(sharp, label_smoothing=0.1) == "ce=1:label_smoothing=0+ce=2"


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("hinton", "there is no method 'hinton': choose one of plain, kd"),
        ("", "there is no method ''"),
        ("ce=1,hinton=1", "there is no term 'hinton' in 'hinton=1': choose one of ce, kd"),
        ("ce=1,kd", "the term 'kd' has no weight: write kd=1"),
        ("ce=1,,kd=1", "there is no term '' in ''"),
        ("ce=-1", "'-1' in 'ce=-1' has to be a number of 0 or more"),
        ("ce=nan", "'nan' in 'ce=nan' has to be a number"),
        ("ce=much", "'much' in 'ce=much' has to be a number"),
        ("ce=", "'' in 'ce=' has to be a number"),
        ("kd=1:T=0", "temperature in 'kd=1:T=0' has to be more than 0"),
        ("ce=1:label_smoothing=3", "smoothing in 'ce=1:label_smoothing=3' has to be between 0 and 1"),
        ("ce=1,kd=1:T=4:T=2", "temperature is said twice in 'kd=1:T=4:T=2'"),
        ("ce=0", "nothing is learnt in a part of the run from 'ce=0'"),
        ("kd=1:schedule=early", "nothing is learnt in a part of the run"),
        ("kd=1:schedule=ramp,ce=0", "nothing is learnt in a part of the run"),
        ("kd=1:pool=2", "kd has no setting 'pool' in 'kd=1:pool=2': choose from temperature, schedule"),
        ("cam=1:pool=0", "'0' in 'cam=1:pool=0' has to be a whole number of 1 or more"),
        ("cam=1:pool=1.5", "'1.5' in 'cam=1:pool=1.5' has to be a whole number"),
        ("cam=1:norm=l3", "'l3' in 'cam=1:norm=l3' is none of l2, minmax, raw"),
        ("cam=1:schedule=late", "'late' in 'cam=1:schedule=late' is none of constant, early, decay, ramp, warm"),
        ("cam=1:schedule", "'' in 'cam=1:schedule' is none of constant"),
    ],
)
def test_what_is_not_there_is_refused_with_the_choices(method: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        parse_objective(method)
