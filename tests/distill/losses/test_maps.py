"""Terms on class activation maps against explicit loops over images, classes and cells, and their properties."""

from __future__ import annotations

import math
from itertools import product
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from camkd.cams import center_prior, predict, resize
from camkd.cams.gather import gather_classes
from camkd.distill.losses.logits import kd
from camkd.distill.losses.maps import (
    CAM,
    SDD,
    Classes,
    Control,
    Norm,
    cam_distance,
    control_maps,
    map_sizes,
    normalize_maps,
    sdd,
)
from camkd.distill.objective import parse_objective
from camkd.models import build
from camkd.types import Prediction
from support.reference_formulas import randn, reference_resize

NORMS: list[Norm] = ["l2", "minmax", "raw"]
CLASSES: list[Literal["all", "target"]] = ["all", "target"]

seeds = st.integers(0, 10_000)
grids = st.tuples(st.integers(1, 9), st.integers(1, 9))


# --- reference implementations


def reference_size(plane: np.ndarray, norm: Norm) -> float:
    return math.sqrt(sum(v * v for v in plane.flat)) if norm == "l2" else float(plane.max() - plane.min())


def reference_normalize(plane: np.ndarray, norm: Norm, smallest: float) -> np.ndarray:
    if norm == "raw":
        return plane
    return (plane - (plane.min() if norm == "minmax" else 0)) / max(reference_size(plane, norm), smallest)


def reference_cam_distance(
    student: Tensor, teacher: Tensor, labels: list[list[float]], classes: Classes, norm: Norm, pool: int
) -> list[float]:
    values = []
    for student_planes, teacher_planes, label in zip(student.numpy(), teacher.numpy(), labels, strict=True):
        distances = []
        student_pooled, teacher_pooled = (
            [reference_resize(plane, (pool, pool)) for plane in planes] for planes in (student_planes, teacher_planes)
        )
        mean_square = sum(reference_size(plane, norm) ** 2 for plane in teacher_pooled) / len(teacher_pooled)
        smallest = max(0.005 * math.sqrt(mean_square), 0.01)
        for planes in zip(student_pooled, teacher_pooled, strict=True):
            a, b = (reference_normalize(plane, norm, smallest) for plane in planes)
            distances.append(sum((x - y) ** 2 for x, y in zip(a.flat, b.flat, strict=True)))
        if norm == "raw":
            mean_square = sum(v**2 for plane in teacher_pooled for v in plane.flat) / len(teacher_pooled)
            distances = [distance / max(mean_square, 0.01**2) for distance in distances]
        if classes == "all":
            values.append(sum(distances) / len(distances))
        else:
            values.append(sum(d * weight for d, weight in zip(distances, label, strict=True)))
    return values


# --- resizing


@settings(max_examples=25)
@given(seeds, grids, grids)
def test_resize_averages_where_it_shrinks_and_interpolates_where_it_grows(
    seed: int, before: tuple[int, int], after: tuple[int, int]
) -> None:
    maps = randn(seed, 2, 2, *before)
    resized = resize(maps, after)
    assert resized.shape == (2, 2, *after)
    for n, k in product(range(2), range(2)):
        expected = reference_resize(maps[n, k].numpy(), after)
        np.testing.assert_allclose(resized[n, k].numpy(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [(2, 8), (8, 2), (4, 4), (9, 9), (2, 3)])
def test_resize_is_independent_of_leading_dimensions(size: tuple[int, int]) -> None:
    maps = randn(0, 2, 3, 5, 4, 8)
    resized = resize(maps, size)
    assert resized.shape == (2, 3, 5, *size)
    for index in product(range(2), range(3), range(5)):
        torch.testing.assert_close(resize(maps[index], size), resized[index])
        torch.testing.assert_close(resized[index].numpy(), reference_resize(maps[index].numpy(), size))


@pytest.mark.parametrize("shape", [(0, 4, 6), (0, 3, 4, 6), (2, 0, 4, 6)])
def test_resize_of_empty_batch(shape: tuple[int, ...]) -> None:
    for size in ((2, 3), (4, 6), (8, 2)):
        assert resize(torch.zeros(shape), size).shape == (*shape[:-2], *size)


# --- distance between maps of all classes


@settings(max_examples=40)
@given(
    seeds,
    st.tuples(st.integers(1, 3), st.integers(1, 4)),
    grids,
    grids,
    st.sampled_from(CLASSES),
    st.sampled_from(NORMS),
    st.integers(1, 5),
)
def test_cam_distance_matches_formula(
    seed: int,
    batch: tuple[int, int],
    student_grid: tuple[int, int],
    teacher_grid: tuple[int, int],
    classes: Literal["all", "target"],
    norm: Norm,
    pool: int,
) -> None:
    student = randn(seed, *batch, *student_grid)
    teacher = randn(seed + 1, *batch, *teacher_grid)
    labels = torch.randint(batch[1], batch[:1], generator=torch.Generator().manual_seed(seed))
    one_hot = F.one_hot(labels, batch[1]).double()
    values = cam_distance(student, teacher, labels, classes, norm, pool)
    assert values.shape == batch[:1]
    expected = reference_cam_distance(student, teacher, one_hot.tolist(), classes, norm, pool)
    assert values.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert cam_distance(student, teacher, one_hot, classes, norm, pool).tolist() == pytest.approx(values.tolist())
    mixed = randn(seed + 2, *batch).softmax(1)
    values = cam_distance(student, teacher, mixed, classes, norm, pool)
    expected = reference_cam_distance(student, teacher, mixed.tolist(), classes, norm, pool)
    assert values.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_cam_distance_by_hand() -> None:
    student = torch.tensor([[[[3.0, 0.0], [4.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]]])
    teacher = torch.tensor([[[[0.0, 5.0], [0.0, 0.0]], [[-1.0, -1.0], [-1.0, -1.0]]]])
    labels = torch.tensor([0])
    assert cam_distance(student, teacher, labels, "target", "l2", 2).item() == pytest.approx(2)  # orthogonal
    assert cam_distance(student, teacher, labels, "all", "l2", 2).item() == pytest.approx((2 + 4) / 2)  # and opposite
    raw = cam_distance(student, teacher, labels, "target", "raw", 2).item()
    assert raw == pytest.approx((9 + 25 + 16) / ((25 + 4) / 2))
    raw = cam_distance(student, teacher, labels, "target", "raw", 1).item()
    assert raw == pytest.approx((7 / 4 - 5 / 4) ** 2 / ((25 / 16 + 1) / 2))
    expected = 0.75**2 + 1 + 1  # (3/4, 0, 1, 0) and (0, 1, 0, 0)
    assert cam_distance(student, teacher, labels, "target", "minmax", 2).item() == pytest.approx(expected, rel=1e-5)


# --- distance between maps of some classes


@settings(max_examples=40)
@given(
    seeds,
    st.tuples(st.integers(1, 3), st.integers(1, 6)),
    st.data(),
    st.sampled_from(CLASSES),
    st.sampled_from(NORMS),
    st.integers(1, 5),
)
def test_cam_distance_of_some_classes_matches_formula(
    seed: int,
    batch: tuple[int, int],
    data: st.DataObject,
    classes: Literal["all", "target"],
    norm: Norm,
    pool: int,
) -> None:
    count = batch[0]
    width = data.draw(st.integers(1, batch[1]))
    student = randn(seed, *batch, *data.draw(grids))
    teacher = randn(seed + 1, count, width, *data.draw(grids))
    selections = [data.draw(st.permutations(range(batch[1])))[:width] for _ in range(count)]
    class_ids = torch.tensor(selections)
    labels = torch.randint(batch[1], (count,), generator=torch.Generator().manual_seed(seed))
    one_hot = F.one_hot(labels, batch[1]).double()
    mixed = randn(seed + 2, *batch).softmax(1)
    selected = torch.stack([maps[selection] for maps, selection in zip(student, selections, strict=True)])
    for targets, weights in ((labels, one_hot), (one_hot, one_hot), (mixed, mixed)):
        selected_weights = [
            [row[k] for k in selection] for row, selection in zip(weights.tolist(), selections, strict=True)
        ]
        expected = reference_cam_distance(selected, teacher, selected_weights, classes, norm, pool)
        values = cam_distance(student, teacher, targets, classes, norm, pool, class_ids)
        assert values.shape == (count,)
        assert values.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("mixed", [False, True])
def test_class_ids_of_all_classes_in_any_order_change_nothing(
    mixed: bool, classes: Literal["all", "target"], norm: Norm
) -> None:
    student = randn(1, 3, 4, 8, 8)
    teacher = randn(2, 3, 4, 4, 4)
    labels = randn(3, 3, 4).softmax(1) if mixed else torch.tensor([0, 3, 1])
    class_ids = torch.stack([torch.randperm(4) for _ in range(3)])
    permuted = gather_classes(teacher, class_ids)
    values = cam_distance(student, permuted, labels, classes, norm, 4, class_ids)
    torch.testing.assert_close(values, cam_distance(student, teacher, labels, classes, norm, 4))


def test_target_without_a_map_has_zero_loss() -> None:
    student = torch.tensor([[[[3.0, 4.0]], [[1.0, 0.0]], [[0.0, 2.0]]]])
    teacher = torch.tensor([[[[0.0, 1.0]], [[-3.0, -4.0]]]])
    class_ids = torch.tensor([[1, 0]])
    square = [maps.repeat_interleave(2, 2) for maps in (student, teacher)]  # 2x2 cells, so that pool=2 averages nothing
    raw_by_label = {0: (3.5 + 3.5) ** 2 / ((3.5**2 + 0.5**2) / 2), 1: 0.0, 2: 0.0}
    l2_by_label = {0: 4.0, 1: 2.0, 2: 0.0}
    for label in range(3):
        labels = torch.tensor([label])
        raw = cam_distance(student, teacher, labels, "target", "raw", 1, class_ids)
        assert raw.item() == pytest.approx(raw_by_label[label])
        l2 = cam_distance(*square, labels, "target", "l2", 2, class_ids)
        assert l2.item() == pytest.approx(l2_by_label[label])
    mixed = torch.tensor([[0.25, 0.25, 0.5]])
    assert cam_distance(*square, mixed, "target", "l2", 2, class_ids).item() == pytest.approx(0.25 * 4 + 0.25 * 2)
    assert cam_distance(*square, mixed, "all", "l2", 2, class_ids).item() == pytest.approx((4 + 2) / 2)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", CLASSES)
def test_only_compared_classes_get_gradient(classes: Literal["all", "target"], norm: Norm) -> None:
    student = randn(1, 2, 5, 4, 4).requires_grad_()
    teacher = randn(2, 2, 2, 4, 4)
    class_ids = torch.tensor([[4, 0], [1, 2]])
    labels = torch.tensor([0, 1])
    loss = cam_distance(student, teacher, labels, classes, norm, 4, class_ids)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    has_gradient = gradient.flatten(2).abs().sum(2) > 0
    has_map = torch.zeros(2, 5, dtype=torch.bool).scatter(1, class_ids, True)
    is_target = F.one_hot(labels, 5).bool()
    assert torch.equal(has_gradient, has_map if classes == "all" else is_target)
    assert torch.autograd.gradcheck(lambda s: cam_distance(s, teacher, labels, classes, norm, 3, class_ids), student)


def test_cam_term_uses_class_ids_of_the_teacher() -> None:
    student = randn(1, 2, 5, 8, 8)
    teacher = randn(2, 2, 3, 4, 4)
    labels = torch.tensor([0, 2])
    class_ids = torch.tensor([[4, 0, 1], [2, 3, 0]])
    logits = randn(3, 2, 5)
    for classes in CLASSES:
        value = CAM(classes)(Prediction(logits, student), Prediction(logits, teacher, None, class_ids), labels)
        expected = cam_distance(student, teacher, labels, classes, class_ids=class_ids)
        torch.testing.assert_close(value, expected)


# --- properties


@settings(max_examples=40)
@given(seeds, grids, grids, st.sampled_from(CLASSES), st.integers(1, 5))
def test_l2_distance_is_two_minus_two_cosines(
    seed: int,
    student_grid: tuple[int, int],
    teacher_grid: tuple[int, int],
    classes: Literal["all", "target"],
    pool: int,
) -> None:
    student = randn(seed, 2, 3, *student_grid)
    teacher = randn(seed + 1, 2, 3, *teacher_grid)
    assume(min(map_sizes(resize(maps, (pool, pool)), "l2").min() for maps in (student, teacher)) > 0.1)
    labels = torch.tensor([2, 0])
    values = cam_distance(student, teacher, labels, classes, "l2", pool)
    assert (values >= 0).all()
    assert (values <= 4 + 1e-9).all()
    cosines = F.cosine_similarity(
        resize(student, (pool, pool)).flatten(2), resize(teacher, (pool, pool)).flatten(2), dim=2
    )
    expected = 2 - 2 * (cosines.mean(1) if classes == "all" else cosines[torch.arange(2), labels])
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
    opposite = cam_distance(student, -student, labels, classes, "l2", pool)
    torch.testing.assert_close(opposite, torch.full_like(opposite, 4.0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("norm", "shift"), [("l2", 0.0), ("minmax", 7.0)])
def test_normalized_distance_is_invariant_to_scale(norm: Norm, shift: float) -> None:
    student = randn(1, 2, 3, 8, 8)
    teacher = randn(2, 2, 3, 4, 4)
    labels = torch.tensor([0, 2])
    before = cam_distance(student, teacher, labels, "all", norm)
    after = cam_distance(30 * student + shift, 0.2 * teacher - shift, labels, "all", norm)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-6)
    raw = cam_distance(30 * student, teacher, labels, "all", "raw")
    assert (raw > 2 * cam_distance(student, teacher, labels, "all", "raw")).all(), "raw distances depend on scale"


@pytest.mark.parametrize("units", [1 / 50, 600])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", CLASSES)
def test_distance_is_invariant_to_common_units(classes: Literal["all", "target"], norm: Norm, units: float) -> None:
    student = randn(1, 2, 3, 8, 8)
    teacher = randn(2, 2, 3, 4, 4)
    labels = torch.tensor([0, 2])
    before = cam_distance(student, teacher, labels, classes, norm)
    after = cam_distance(units * student, units * teacher, labels, classes, norm)
    torch.testing.assert_close(after, before, rtol=2e-2, atol=0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", CLASSES)
def test_target_ignores_other_classes(classes: Literal["all", "target"], norm: Norm) -> None:
    student = randn(1, 2, 3, 4, 4)
    teacher = randn(2, 2, 3, 4, 4)
    labels = torch.tensor([0, 2])
    before = cam_distance(student, teacher, labels, classes, norm)
    student[:, 1] += randn(3, 2, 4, 4)
    has_changed = (cam_distance(student, teacher, labels, classes, norm) != before).tolist()
    assert has_changed == [classes == "all"] * 2


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-9])
def test_constant_maps_give_finite_distances_and_gradients(value: float, norm: Norm) -> None:
    for student_value, teacher_value in ((value, 1.0), (1.0, value), (value, value)):
        student = torch.full((2, 3, 8, 8), student_value, requires_grad=True)
        teacher = torch.full((2, 3, 4, 4), teacher_value)
        loss = cam_distance(student, teacher, torch.tensor([0, 1]), "all", norm)
        loss.sum().backward()
        assert loss.isfinite().all()
        assert student.grad is not None
        assert student.grad.isfinite().all()


def test_normalize_constant_maps() -> None:
    assert not normalize_maps(torch.full((1, 2, 3, 3), 4.0), "minmax").any()
    assert not normalize_maps(torch.zeros(1, 2, 3, 3), "l2").any()
    nearly_constant = torch.full((1, 1, 2, 2), 5.0)
    nearly_constant[..., 0] += 5e-7  # rounding of 5
    assert normalize_maps(nearly_constant, "minmax").max() < 1e-3


# --- gradients at maps near zero


@pytest.mark.parametrize("pool", [2, 4, 8])
def test_maps_of_ordinary_size_are_divided_by_their_norm_bit_for_bit(pool: int) -> None:
    student = 2 * randn(1, 8, 10, 16, 16).float()
    teacher = 20 * randn(2, 8, 10, 8, 8).float()
    unit = [F.normalize(resize(maps, (pool, pool)).flatten(2), dim=2) for maps in (student, teacher)]
    expected = (unit[0] - unit[1]).square().sum(2).mean(1)
    assert torch.equal(cam_distance(student, teacher, torch.zeros(8).long(), pool=pool), expected)


@pytest.mark.parametrize("teacher_size", [0.0, 1e-9, 1e-3, 1.0, 30.0])
@pytest.mark.parametrize("norm", NORMS)
def test_gradient_is_bounded_however_small_the_maps_are(norm: Norm, teacher_size: float) -> None:
    teacher = teacher_size * F.normalize(randn(1, 4, 3, 4, 4).flatten(2), dim=2).view(4, 3, 4, 4)
    direction = F.normalize(randn(2, 4, 3, 4, 4).flatten(2), dim=2).view(4, 3, 4, 4)
    smallest = max(0.005 * teacher_size, 0.01)
    for exponent in range(-12, 1):
        size = 0.0 if exponent == -12 else 10.0**exponent
        student = (size * direction).requires_grad_()
        loss = cam_distance(student, teacher, torch.zeros(4).long(), norm=norm)
        (gradient,) = torch.autograd.grad(loss.sum(), student)
        length = 3 * gradient.flatten(2).norm(dim=2).max().item()  # of the distance of one class
        if norm == "l2":
            assert length <= 4 / smallest * (1 + 1e-9)
        elif norm == "minmax":  # 16 cells in 0..1, and a range of less than 2 norms
            assert length <= 2 * 4 * 10 / (0.3 * smallest)
        else:
            assert length <= 2 * (size + teacher_size) / max(teacher_size**2, 0.01**2) * (1 + 1e-9)


class ZeroHead(nn.Module):
    """A network whose logits and maps are zero, as after the initialization of some heads and new classes."""

    def __init__(self, name: str, scale: float) -> None:
        super().__init__()
        self.network = build(name, 4, 32, seed=1)
        head = [layer for layer in self.network.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))][-1]
        with torch.no_grad():
            head.weight.mul_(scale)
            if head.bias is not None:
                head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits


@pytest.mark.parametrize("name", ["resnet8", "cam-net"])  # a linear head after pooling, a 1x1 convolution before it
@pytest.mark.parametrize("text", ["cam=1", "cam=1:classes=target", "cam=1:norm=minmax", "cam=1:norm=raw", "lskd=1"])
def test_zero_initialized_head_gets_a_gradient_of_the_size_of_other_terms(name: str, text: str) -> None:
    torch.manual_seed(0)
    x = torch.rand(8, 3, 32, 32)
    labels = torch.arange(8) % 4
    teacher = Prediction(8 * randn(1, 8, 4).float(), 20 * randn(2, 8, 4, 8, 8).float())
    norms = {}
    for scale in (0.0, 1e-6, 1e-3, 1.0):
        student = ZeroHead(name, scale).train()
        objective = parse_objective(text)
        loss, _ = objective(predict(student, x), teacher, labels, 0.0)
        gradients = torch.autograd.grad(loss, list(student.parameters()), allow_unused=True)
        norms[scale] = math.sqrt(sum(g.square().sum().item() for g in gradients if g is not None))
    assert min(norms.values()) > 0, "the head starts to learn"
    assert max(norms.values()) < 30 * norms[1.0]


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_match_finite_differences(norm: Norm) -> None:
    teacher = randn(2, 2, 2, 4, 4)
    student = randn(1, 2, 2, 6, 6).requires_grad_()
    labels = torch.tensor([0, 1])
    assert torch.autograd.gradcheck(lambda s: cam_distance(s, teacher, labels, "all", norm, 3), student, fast_mode=True)


def test_cam_term_applies_its_settings() -> None:
    student = randn(1, 2, 3, 8, 8)
    teacher = randn(2, 2, 3, 4, 4)
    labels = torch.tensor([0, 2])
    for classes, norm, pool in product(CLASSES, NORMS, (2, 4)):
        value = CAM(classes, norm, pool)(Prediction(labels, student), Prediction(labels, teacher), labels)
        torch.testing.assert_close(value, cam_distance(student, teacher, labels, classes, norm, pool))
    assert (CAM().classes, CAM().norm, CAM().pool) == ("all", "l2", 4)


# --- the class that the teacher predicts, and control maps


def test_half_of_top_1_distance_is_e2kd() -> None:
    student = randn(1, 4, 3, 8, 8)
    teacher = randn(2, 4, 3, 8, 8)
    logits = randn(3, 4, 3)
    labels = torch.tensor([0, 1, 2, 0])
    value = CAM("top-1", pool=8)(Prediction(logits, student), Prediction(logits, teacher), labels)
    for n, k in enumerate(logits.argmax(1).tolist()):
        a = student[n, k].flatten()
        b = teacher[n, k].flatten()
        assert value[n].item() / 2 == pytest.approx(1 - (a @ b / a.norm() / b.norm()).item())


def test_top_1_is_found_among_class_ids() -> None:
    student = randn(1, 2, 5, 8, 8)
    teacher = randn(2, 2, 5, 8, 8)
    logits = torch.tensor([[0.0, 1.0, 9.0, 2.0, 0.0], [3.0, 0.0, 0.0, 0.0, 8.0]])
    class_ids = logits.topk(2, dim=1).indices
    labels = torch.tensor([0, 0])
    term = CAM("top-1")
    some = Prediction(logits, gather_classes(teacher, class_ids), None, class_ids)
    value = term(Prediction(logits, student), some, labels)
    torch.testing.assert_close(value, term(Prediction(logits, student), Prediction(logits, teacher), labels))


@pytest.mark.parametrize("control", ["shuffled", "center"])
def test_control_maps_change_layout_but_not_mean(control: Control) -> None:
    maps = randn(4, 5, 3, 8, 6)
    changed = control_maps(maps, control)
    torch.testing.assert_close(changed.mean((2, 3)), maps.mean((2, 3)))
    assert control_maps(maps, "none") is maps
    if control == "shuffled":
        layout = changed - changed.mean((2, 3), keepdim=True)
        original_layout = maps - maps.mean((2, 3), keepdim=True)
        torch.testing.assert_close(layout, original_layout[[4, 0, 1, 2, 3]])
    else:
        prior = center_prior(8, 6).double()
        torch.testing.assert_close(changed / changed[..., :1, :1], (prior / prior[0, 0]).expand_as(changed))
    labels = torch.zeros(5).long()
    value = CAM(control=control)(Prediction(maps, maps), Prediction(maps, maps), labels)
    torch.testing.assert_close(value, cam_distance(maps, changed, labels))
    assert (value > 0.1).all()


# --- scale decoupled distillation


def softmax(logits: list[float], temperature: float) -> list[float]:
    exponentials = [math.exp((z - max(logits)) / temperature) for z in logits]
    return [e / sum(exponentials) for e in exponentials]


def reference_sdd(
    student: Prediction, teacher: Prediction, beta: float, temperature: float, sides: list[int]
) -> list[float]:
    values = []
    num_classes = teacher.logits.shape[1]
    for n in range(len(teacher.logits)):
        class_ids = list(range(num_classes)) if teacher.class_ids is None else teacher.class_ids[n].tolist()
        predicted = max(range(num_classes), key=lambda k: teacher.logits[n, k].item())
        losses = []
        for side in sides:
            grids: list[list[np.ndarray]] = []
            for prediction, rows in ((student, class_ids), (teacher, range(len(class_ids)))):
                assert prediction.cams is not None
                planes = []
                for row, k in zip(rows, class_ids, strict=True):
                    plane = prediction.cams[n, row].numpy()
                    bias = prediction.logits[n, k].item() - sum(plane.flat) / plane.size
                    planes.append(reference_resize(plane + bias, (side, side)))
                grids.append(planes)
            for i, j in product(range(side), range(side)):
                student_logits, teacher_logits = ([plane[i, j] for plane in planes] for planes in grids)
                region_class = class_ids[max(range(len(class_ids)), key=lambda k: teacher_logits[k])]
                if side == 1:
                    student_logits = student.logits[n].tolist()
                    teacher_logits = teacher.logits[n].tolist()
                    region_class = predicted
                q = softmax(student_logits, temperature)
                p = softmax(teacher_logits, temperature)
                weight = 1 if region_class == predicted else beta
                losses.append(weight * temperature**2 * sum(b * math.log(b / a) for a, b in zip(q, p, strict=True)))
        values.append(sum(losses) / len(losses))
    return values


def random_prediction(seed: int, count: int, classes: int, grid: tuple[int, int]) -> Prediction:
    return Prediction(randn(seed, count, classes), 3 * randn(seed + 1, count, classes, *grid))


@settings(max_examples=30)
@given(
    seeds,
    st.tuples(st.integers(1, 3), st.integers(2, 5)),
    grids,
    grids,
    st.sampled_from([0.0, 1.0, 2.0]),
    st.sampled_from([1.0, 4.0]),
    st.integers(1, 9),
    st.data(),
)
def test_sdd_matches_formula(
    seed: int,
    batch: tuple[int, int],
    student_grid: tuple[int, int],
    teacher_grid: tuple[int, int],
    beta: float,
    temperature: float,
    pool: int,
    data: st.DataObject,
) -> None:
    student = random_prediction(seed, *batch, student_grid)
    teacher = random_prediction(seed + 2, *batch, teacher_grid)
    sides = [side for side in (1, 2, 4, 8) if side <= pool]
    values = sdd(student, teacher, beta, temperature, pool)
    assert values.shape == batch[:1]
    expected = reference_sdd(student, teacher, beta, temperature, sides)
    assert values.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)
    width = data.draw(st.integers(1, batch[1]))
    class_ids = torch.tensor([data.draw(st.permutations(range(batch[1])))[:width] for _ in range(batch[0])])
    assert teacher.cams is not None
    some = teacher._replace(cams=gather_classes(teacher.cams, class_ids), class_ids=class_ids)
    values = sdd(student, some, beta, temperature, pool)
    assert values.tolist() == pytest.approx(reference_sdd(student, some, beta, temperature, sides), rel=1e-6, abs=1e-9)


def test_sdd_by_hand() -> None:
    student_maps = torch.zeros(1, 2, 2, 2)
    teacher_maps = torch.zeros(1, 2, 2, 2)
    teacher_maps[0, 0] = torch.tensor([[3.0, 3.0], [3.0, -5.0]])  # mean 1: class 0 in all cells but one
    teacher = Prediction(torch.tensor([[2.0, 0.0]]), teacher_maps)  # logit 2, so that 1 is added to each cell
    uniform = Prediction(torch.zeros(1, 2), student_maps)

    def divergence(z: float) -> float:
        p = 1 / (1 + math.exp(-z))
        return p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))

    expected = (divergence(2) + 3 * divergence(4) + 5 * divergence(-4)) / 5
    assert sdd(uniform, teacher, 5.0, 1.0, 2).item() == pytest.approx(expected, rel=1e-6)
    assert sdd(uniform, teacher, 5.0, 1.0, 1).item() == pytest.approx(divergence(2), rel=1e-6)


def test_sdd_of_constant_maps_is_kd() -> None:
    student, teacher = (Prediction(randn(n, 3, 4), randn(n, 3, 4, 1, 1).expand(-1, -1, 4, 4)) for n in (1, 2))
    torch.testing.assert_close(sdd(student, teacher, 7.0, 2.0), kd(student.logits, teacher.logits, 2.0))


def test_sdd_term_applies_its_settings() -> None:
    student = random_prediction(1, 2, 3, (8, 8))
    teacher = random_prediction(5, 2, 3, (4, 4))
    labels = torch.tensor([0, 2])
    torch.testing.assert_close(SDD(2.0, 3.0, 2)(student, teacher, labels), sdd(student, teacher, 3.0, 2.0, 2))
    assert (SDD().temperature, SDD().beta, SDD().pool) == (4.0, 2.0, 4)
    all_classes = torch.arange(3).expand(2, 3)
    torch.testing.assert_close(SDD()(student, teacher._replace(class_ids=all_classes), labels), sdd(student, teacher))
