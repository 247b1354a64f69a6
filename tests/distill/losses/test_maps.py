"""Terms on maps against literal loops over pictures, classes and cells, and their properties."""

from __future__ import annotations

import math
from itertools import product
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from camkd.cams import centre_prior
from camkd.distill.losses.logits import kd
from camkd.distill.losses.maps import (
    CAM,
    SDD,
    Classes,
    Control,
    Norm,
    cam_distance,
    control_maps,
    normalise,
    resize,
    sdd,
)
from camkd.types import Prediction
from literally import draw, resize_literally

NORMS: list[Norm] = ["l2", "minmax", "raw"]
CLASSES: list[Literal["all", "target"]] = ["all", "target"]

seeds = st.integers(0, 10_000)
sides = st.tuples(st.integers(1, 9), st.integers(1, 9))


# --- literal references


def normalise_literally(plane: np.ndarray, norm: Norm) -> np.ndarray:
    if norm == "l2":
        return plane / max(math.sqrt(sum(v * v for v in plane.flat)), 1e-6)
    if norm == "minmax":
        return (plane - plane.min()) / (plane.max() - plane.min() + 1e-6)
    return plane


def cam_literally(
    student: Tensor, teacher: Tensor, labels: list[list[float]], classes: Classes, norm: Norm, pool: int
) -> list[float]:
    values = []
    for ours, theirs, label in zip(student.numpy(), teacher.numpy(), labels, strict=True):
        distances, squares = [], []
        for a, b in zip(ours, theirs, strict=True):
            a, b = (normalise_literally(resize_literally(plane, (pool, pool)), norm) for plane in (a, b))
            distances.append(sum((x - y) ** 2 for x, y in zip(a.flat, b.flat, strict=True)))
            squares.append(sum(y**2 for y in b.flat))
        if norm == "raw":
            distances = [distance / (sum(squares) / len(squares) + 1e-6) for distance in distances]
        if classes == "all":
            values.append(sum(distances) / len(distances))
        else:
            values.append(sum(d * weight for d, weight in zip(distances, label, strict=True)))
    return values


# --- the terms are what they say


@settings(max_examples=25)
@given(seeds, sides, sides)
def test_resizing_averages_where_it_shrinks_and_is_bilinear_where_it_grows(
    seed: int, before: tuple[int, int], after: tuple[int, int]
) -> None:
    maps = draw(seed, 2, 2, *before)
    resized = resize(maps, after)
    assert resized.shape == (2, 2, *after)
    for n, k in product(range(2), range(2)):
        expected = resize_literally(maps[n, k].numpy(), after)
        np.testing.assert_allclose(resized[n, k].numpy(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [(2, 8), (8, 2), (4, 4), (9, 9), (2, 3)])
def test_maps_of_any_number_of_dimensions_are_resized_alike(size: tuple[int, int]) -> None:
    maps = draw(0, 2, 3, 5, 4, 8)
    resized = resize(maps, size)
    assert resized.shape == (2, 3, 5, *size)
    for place in product(range(2), range(3), range(5)):
        torch.testing.assert_close(resize(maps[place], size), resized[place])
        torch.testing.assert_close(resized[place].numpy(), resize_literally(maps[place].numpy(), size))


@pytest.mark.parametrize("shape", [(0, 4, 6), (0, 3, 4, 6), (2, 0, 4, 6)])
def test_no_maps_become_no_maps_of_the_new_size(shape: tuple[int, ...]) -> None:
    for size in ((2, 3), (4, 6), (8, 2)):
        assert resize(torch.zeros(shape), size).shape == (*shape[:-2], *size)


@settings(max_examples=40)
@given(
    seeds,
    st.tuples(st.integers(1, 3), st.integers(1, 4)),
    sides,
    sides,
    st.sampled_from(CLASSES),
    st.sampled_from(NORMS),
    st.integers(1, 5),
)
def test_cam_distance_is_the_formula(
    seed: int,
    batch: tuple[int, int],
    ours: tuple[int, int],
    theirs: tuple[int, int],
    classes: Classes,
    norm: Norm,
    pool: int,
) -> None:
    student, teacher = draw(seed, *batch, *ours), draw(seed + 1, *batch, *theirs)
    labels = torch.randint(batch[1], batch[:1], generator=torch.Generator().manual_seed(seed))
    hard = torch.nn.functional.one_hot(labels, batch[1]).double()
    values = cam_distance(student, teacher, labels, classes, norm, pool)
    assert values.shape == batch[:1]
    expected = cam_literally(student, teacher, hard.tolist(), classes, norm, pool)
    assert values.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert cam_distance(student, teacher, hard, classes, norm, pool).tolist() == pytest.approx(values.tolist())
    soft = draw(seed + 2, *batch).softmax(1)
    expected = cam_literally(student, teacher, soft.tolist(), classes, norm, pool)
    assert cam_distance(student, teacher, soft, classes, norm, pool).tolist() == pytest.approx(
        expected, rel=1e-6, abs=1e-9
    )


def test_cam_distance_by_hand() -> None:
    one = torch.tensor([[[[3.0, 0.0], [4.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]]])
    two = torch.tensor([[[[0.0, 5.0], [0.0, 0.0]], [[-1.0, -1.0], [-1.0, -1.0]]]])
    first = torch.tensor([0])
    assert cam_distance(one, two, first, "target", "l2", 2).item() == pytest.approx(2)  # at right angles
    assert cam_distance(one, two, first, "all", "l2", 2).item() == pytest.approx((2 + 4) / 2)  # and opposite
    assert cam_distance(one, two, first, "target", "raw", 2).item() == pytest.approx((9 + 25 + 16) / ((25 + 4) / 2))
    assert cam_distance(one, two, first, "target", "raw", 1).item() == pytest.approx(
        (7 / 4 - 5 / 4) ** 2 / ((25 / 16 + 1) / 2)
    )
    expected = 0.75**2 + 1 + 1  # (3/4, 0, 1, 0) and (0, 1, 0, 0)
    assert cam_distance(one, two, first, "target", "minmax", 2).item() == pytest.approx(expected, rel=1e-5)


# --- where only some classes have maps


@settings(max_examples=40)
@given(
    seeds,
    st.tuples(st.integers(1, 3), st.integers(1, 6)),
    st.data(),
    st.sampled_from(CLASSES),
    st.sampled_from(NORMS),
    st.integers(1, 5),
)
def test_cam_distance_to_some_classes_is_the_formula_for_these(
    seed: int, batch: tuple[int, int], data: st.DataObject, classes: Classes, norm: Norm, pool: int
) -> None:
    count, width = batch[0], data.draw(st.integers(1, batch[1]))
    ours, theirs = data.draw(sides), data.draw(sides)
    orders = [data.draw(st.permutations(range(batch[1])))[:width] for _ in range(count)]
    student, teacher, shown = draw(seed, *batch, *ours), draw(seed + 1, count, width, *theirs), torch.tensor(orders)
    labels = torch.randint(batch[1], (count,), generator=torch.Generator().manual_seed(seed))
    hard = torch.nn.functional.one_hot(labels, batch[1]).double()
    soft = draw(seed + 2, *batch).softmax(1)
    chosen = torch.stack([maps[order] for maps, order in zip(student, orders, strict=True)])
    for given_, weights in ((labels, hard), (hard, hard), (soft, soft)):
        of_shown = [[row[k] for k in order] for row, order in zip(weights.tolist(), orders, strict=True)]
        expected = cam_literally(chosen, teacher, of_shown, classes, norm, pool)
        values = cam_distance(student, teacher, given_, classes, norm, pool, shown)
        assert values.shape == (count,)
        assert values.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("soft", [False, True])
def test_maps_of_all_classes_in_any_order_are_the_maps_of_all_classes(soft: bool, classes: Classes, norm: Norm) -> None:
    student, teacher = draw(1, 3, 4, 8, 8), draw(2, 3, 4, 4, 4)
    labels = draw(3, 3, 4).softmax(1) if soft else torch.tensor([0, 3, 1])
    shown = torch.stack([torch.randperm(4) for _ in range(3)])
    listed = teacher.gather(1, shown[:, :, None, None].expand(-1, -1, 4, 4))
    values = cam_distance(student, listed, labels, classes, norm, 4, shown)
    torch.testing.assert_close(values, cam_distance(student, teacher, labels, classes, norm, 4))


def test_a_label_without_a_map_costs_nothing_by_hand() -> None:
    student = torch.tensor([[[[3.0, 4.0]], [[1.0, 0.0]], [[0.0, 2.0]]]])
    teacher = torch.tensor([[[[0.0, 1.0]], [[-3.0, -4.0]]]])  # of classes 1 and 0
    shown = torch.tensor([[1, 0]])
    for label, expected in ((0, 4.0), (1, 2.0), (2, 0.0)):
        value = cam_distance(student, teacher, torch.tensor([label]), "target", "raw", 1, shown)
        assert value.item() == pytest.approx({0: (3.5 + 3.5) ** 2 / ((3.5**2 + 0.5**2) / 2), 1: 0.0, 2: 0.0}[label])
        wide = [maps.repeat_interleave(2, 2) for maps in (student, teacher)]  # a square, so that no cell is pooled
        value = cam_distance(*wide, torch.tensor([label]), "target", "l2", 2, shown)
        assert value.item() == pytest.approx(expected)
    mixed = torch.tensor([[0.25, 0.25, 0.5]])
    wide = [maps.repeat_interleave(2, 2) for maps in (student, teacher)]
    assert cam_distance(*wide, mixed, "target", "l2", 2, shown).item() == pytest.approx(0.25 * 4 + 0.25 * 2)
    assert cam_distance(*wide, mixed, "all", "l2", 2, shown).item() == pytest.approx((4 + 2) / 2)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", CLASSES)
def test_maps_of_classes_that_are_not_shown_get_no_gradient(classes: Classes, norm: Norm) -> None:
    student = draw(1, 2, 5, 4, 4).requires_grad_()
    teacher, shown, labels = draw(2, 2, 2, 4, 4), torch.tensor([[4, 0], [1, 2]]), torch.tensor([0, 1])
    value = cam_distance(student, teacher, labels, classes, norm, 4, shown)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    reached = gradient.flatten(2).abs().sum(2) > 0
    all_shown = torch.zeros(2, 5, dtype=torch.bool).scatter(1, shown, True)
    only_labels = torch.nn.functional.one_hot(labels, 5).bool()
    assert torch.equal(reached, all_shown if classes == "all" else only_labels)
    assert torch.autograd.gradcheck(lambda s: cam_distance(s, teacher, labels, classes, norm, 3, shown), student)


def test_the_term_reads_which_classes_the_teacher_shows() -> None:
    student, teacher, labels = draw(1, 2, 5, 8, 8), draw(2, 2, 3, 4, 4), torch.tensor([0, 2])
    shown = torch.tensor([[4, 0, 1], [2, 3, 0]])
    logits = draw(3, 2, 5)
    for classes in CLASSES:
        value = CAM(classes)(Prediction(logits, student), Prediction(logits, teacher, None, shown), labels)
        torch.testing.assert_close(value, cam_distance(student, teacher, labels, classes, shown=shown))


# --- properties


@settings(max_examples=40)
@given(seeds, sides, sides, st.sampled_from(CLASSES), st.integers(1, 5))
def test_l2_is_two_minus_two_cosines_within_0_and_4(
    seed: int, ours: tuple[int, int], theirs: tuple[int, int], classes: Classes, pool: int
) -> None:
    student, teacher = draw(seed, 2, 3, *ours), draw(seed + 1, 2, 3, *theirs)
    labels = torch.tensor([2, 0])
    values = cam_distance(student, teacher, labels, classes, "l2", pool)
    assert (values >= 0).all()
    assert (values <= 4 + 1e-9).all()
    angle = torch.nn.functional.cosine_similarity(
        resize(student, (pool, pool)).flatten(2), resize(teacher, (pool, pool)).flatten(2), dim=2
    )
    expected = 2 - 2 * (angle.mean(1) if classes == "all" else angle[torch.arange(2), labels])
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
    opposite = cam_distance(student, -student, labels, classes, "l2", pool)
    torch.testing.assert_close(opposite, torch.full_like(opposite, 4.0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("norm", "shift"), [("l2", 0.0), ("minmax", 7.0)])
def test_the_scale_of_a_map_makes_no_difference(norm: Norm, shift: float) -> None:
    student, teacher, labels = draw(1, 2, 3, 8, 8), draw(2, 2, 3, 4, 4), torch.tensor([0, 2])
    before = cam_distance(student, teacher, labels, "all", norm)
    after = cam_distance(30 * student + shift, 0.2 * teacher - shift, labels, "all", norm)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-6)
    raw = cam_distance(30 * student, teacher, labels, "all", "raw")
    assert (raw > 2 * cam_distance(student, teacher, labels, "all", "raw")).all(), "raw compares sizes"


@pytest.mark.parametrize("units", [1 / 50, 600])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", CLASSES)
def test_the_units_of_a_pair_of_networks_make_no_difference(classes: Classes, norm: Norm, units: float) -> None:
    student, teacher, labels = draw(1, 2, 3, 8, 8), draw(2, 2, 3, 4, 4), torch.tensor([0, 2])
    before = cam_distance(student, teacher, labels, classes, norm)
    after = cam_distance(units * student, units * teacher, labels, classes, norm)
    torch.testing.assert_close(after, before, rtol=2e-2, atol=0)


# --- the teacher's class, and false maps


def test_half_the_distance_of_the_teachers_class_is_e2kd() -> None:
    student, teacher = draw(1, 4, 3, 8, 8), draw(2, 4, 3, 8, 8)
    logits, labels = draw(3, 4, 3), torch.tensor([0, 1, 2, 0])
    value = CAM("top-1", pool=8)(Prediction(logits, student), Prediction(logits, teacher), labels)
    for n, k in enumerate(logits.argmax(1).tolist()):
        a, b = student[n, k].flatten(), teacher[n, k].flatten()
        assert value[n].item() / 2 == pytest.approx(1 - (a @ b / a.norm() / b.norm()).item())


def test_the_teachers_class_is_found_among_those_it_shows() -> None:
    student, teacher = draw(1, 2, 5, 8, 8), draw(2, 2, 5, 8, 8)
    logits = torch.tensor([[0.0, 1.0, 9.0, 2.0, 0.0], [3.0, 0.0, 0.0, 0.0, 8.0]])
    shown = logits.topk(2, dim=1).indices
    listed = teacher.gather(1, shown[:, :, None, None].expand(-1, -1, 8, 8))
    term, labels = CAM("top-1"), torch.tensor([0, 0])
    value = term(Prediction(logits, student), Prediction(logits, listed, None, shown), labels)
    torch.testing.assert_close(value, term(Prediction(logits, student), Prediction(logits, teacher), labels))


@pytest.mark.parametrize("control", ["shuffled", "centre"])
def test_false_maps_lie_about_places_alone(control: Control) -> None:
    maps = draw(4, 5, 3, 8, 6)
    false = control_maps(maps, control)
    torch.testing.assert_close(false.mean((2, 3)), maps.mean((2, 3)))
    assert control_maps(maps, "none") is maps
    layout = false - false.mean((2, 3), keepdim=True)
    if control == "shuffled":
        own = maps - maps.mean((2, 3), keepdim=True)
        torch.testing.assert_close(layout, own[[4, 0, 1, 2, 3]])
    else:
        blob = centre_prior(8, 6).double()
        torch.testing.assert_close(false / false[..., :1, :1], (blob / blob[0, 0]).expand_as(false))
    value = CAM(control=control)(Prediction(maps, maps), Prediction(maps, maps), torch.zeros(5).long())
    torch.testing.assert_close(value, cam_distance(maps, false, torch.zeros(5).long()))
    assert (value > 0.1).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", CLASSES)
def test_only_the_labels_class_counts_for_target(classes: Classes, norm: Norm) -> None:
    student, teacher, labels = draw(1, 2, 3, 4, 4), draw(2, 2, 3, 4, 4), torch.tensor([0, 2])
    before = cam_distance(student, teacher, labels, classes, norm)
    student[:, 1] += draw(3, 2, 4, 4)
    changed = (cam_distance(student, teacher, labels, classes, norm) != before).tolist()
    assert changed == [classes == "all"] * 2


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-9])
def test_constant_maps_have_finite_distances_and_gradients(value: float, norm: Norm) -> None:
    for student_value, teacher_value in ((value, 1.0), (1.0, value), (value, value)):
        student = torch.full((2, 3, 8, 8), student_value, requires_grad=True)
        teacher = torch.full((2, 3, 4, 4), teacher_value)
        loss = cam_distance(student, teacher, torch.tensor([0, 1]), "all", norm)
        loss.sum().backward()
        assert loss.isfinite().all()
        assert student.grad is not None
        assert student.grad.isfinite().all()


def test_minmax_turns_a_constant_map_into_noughts() -> None:
    assert not normalise(torch.full((1, 2, 3, 3), 4.0), "minmax").any()
    assert not normalise(torch.zeros(1, 2, 3, 3), "l2").any()


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_are_those_of_finite_differences(norm: Norm) -> None:
    teacher, labels = draw(2, 2, 2, 4, 4), torch.tensor([0, 1])
    student = draw(1, 2, 2, 6, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: cam_distance(s, teacher, labels, "all", norm, 3), student, fast_mode=True)


def test_the_terms_pass_their_settings_on() -> None:
    student, teacher, labels = draw(1, 2, 3, 8, 8), draw(2, 2, 3, 4, 4), torch.tensor([0, 2])
    for classes, norm, pool in product(CLASSES, NORMS, (2, 4)):
        value = CAM(classes, norm, pool)(Prediction(labels, student), Prediction(labels, teacher), labels)
        torch.testing.assert_close(value, cam_distance(student, teacher, labels, classes, norm, pool))
    assert (CAM().classes, CAM().norm, CAM().pool) == ("all", "l2", 4)


# --- logits of regions


def softmax(logits: list[float], temperature: float) -> list[float]:
    exponentials = [math.exp((z - max(logits)) / temperature) for z in logits]
    return [e / sum(exponentials) for e in exponentials]


def sdd_literally(
    student: Prediction, teacher: Prediction, beta: float, temperature: float, sides: list[int]
) -> list[float]:
    values = []
    for n in range(len(teacher.logits)):
        classes = range(teacher.logits.shape[1])
        known = list(classes) if teacher.class_ids is None else teacher.class_ids[n].tolist()
        whole = max(classes, key=lambda k: teacher.logits[n, k].item())
        parts = []
        for side in sides:
            grids: list[list[np.ndarray]] = []
            for said, rows in ((student, known), (teacher, range(len(known)))):
                assert said.cams is not None
                planes = []
                for row, k in zip(rows, known, strict=True):
                    plane = said.cams[n, row].numpy()
                    bias = said.logits[n, k].item() - sum(plane.flat) / plane.size
                    planes.append(resize_literally(plane + bias, (side, side)))
                grids.append(planes)
            for i, j in product(range(side), range(side)):
                ours, theirs = ([plane[i, j] for plane in planes] for planes in grids)
                if side == 1:
                    ours, theirs = student.logits[n].tolist(), teacher.logits[n].tolist()
                q, p = softmax(ours, temperature), softmax(theirs, temperature)
                here = whole if side == 1 else known[max(range(len(known)), key=lambda k: theirs[k])]
                weight = 1 if here == whole else beta
                parts.append(weight * temperature**2 * sum(b * math.log(b / a) for a, b in zip(q, p, strict=True)))
        values.append(sum(parts) / len(parts))
    return values


def answer(seed: int, count: int, classes: int, side: tuple[int, int]) -> Prediction:
    return Prediction(draw(seed, count, classes), 3 * draw(seed + 1, count, classes, *side))


@settings(max_examples=30)
@given(
    seeds,
    st.tuples(st.integers(1, 3), st.integers(2, 5)),
    sides,
    sides,
    st.sampled_from([0.0, 1.0, 2.0]),
    st.sampled_from([1.0, 4.0]),
    st.integers(1, 9),
    st.data(),
)
def test_sdd_is_its_formula(
    seed: int,
    batch: tuple[int, int],
    ours: tuple[int, int],
    theirs: tuple[int, int],
    beta: float,
    temperature: float,
    pool: int,
    data: st.DataObject,
) -> None:
    student, teacher = answer(seed, *batch, ours), answer(seed + 2, *batch, theirs)
    grids = [side for side in (1, 2, 4, 8) if side <= pool]
    values = sdd(student, teacher, beta, temperature, pool)
    assert values.shape == batch[:1]
    expected = sdd_literally(student, teacher, beta, temperature, grids)
    assert values.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)
    width = data.draw(st.integers(1, batch[1]))
    shown = torch.tensor([data.draw(st.permutations(range(batch[1])))[:width] for _ in range(batch[0])])
    assert teacher.cams is not None
    kept = teacher.cams.gather(1, shown[:, :, None, None].expand(-1, -1, *theirs))
    some = teacher._replace(cams=kept, class_ids=shown)
    values = sdd(student, some, beta, temperature, pool)
    assert values.tolist() == pytest.approx(sdd_literally(student, some, beta, temperature, grids), rel=1e-6, abs=1e-9)


def test_sdd_by_hand() -> None:
    ours, theirs = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    theirs[0, 0] = torch.tensor([[3.0, 3.0], [3.0, -5.0]])  # 1 on the average: class 0, but for one cell
    logits = torch.tensor([[2.0, 0.0]])  # so that 1 is added on each cell
    unsure = Prediction(torch.zeros(1, 2), ours)

    def divergence(z: float) -> float:
        p = 1 / (1 + math.exp(-z))
        return p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))

    expected = (divergence(2) + 3 * divergence(4) + 5 * divergence(-4)) / 5
    assert sdd(unsure, Prediction(logits, theirs), 5.0, 1.0, 2).item() == pytest.approx(expected, rel=1e-6)
    assert sdd(unsure, Prediction(logits, theirs), 5.0, 1.0, 1).item() == pytest.approx(divergence(2), rel=1e-6)


def test_sdd_of_flat_maps_is_hintons() -> None:
    student, teacher = (Prediction(draw(n, 3, 4), draw(n, 3, 4, 1, 1).expand(-1, -1, 4, 4)) for n in (1, 2))
    torch.testing.assert_close(sdd(student, teacher, 7.0, 2.0), kd(student.logits, teacher.logits, 2.0))


def test_sdds_settings_are_passed_on() -> None:
    student, teacher, labels = answer(1, 2, 3, (8, 8)), answer(5, 2, 3, (4, 4)), torch.tensor([0, 2])
    value = SDD(2.0, 3.0, 2)(student, teacher, labels)
    torch.testing.assert_close(value, sdd(student, teacher, 3.0, 2.0, 2))
    assert (SDD().temperature, SDD().beta, SDD().pool) == (4.0, 2.0, 4)
    all_shown = torch.arange(3).expand(2, 3)
    torch.testing.assert_close(SDD()(student, teacher._replace(class_ids=all_shown), labels), sdd(student, teacher))
