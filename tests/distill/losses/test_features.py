"""Terms on features against the formulas of the papers, with explicit loops over images, channels and cells."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from camkd.distill.losses.features import (
    Attention,
    Fusion,
    Hint,
    Regressor,
    RelationalAngle,
    RelationalDistance,
    Review,
    Reviewer,
    Similarity,
    attention_distance,
    hierarchical_context_loss,
    middle_stage,
    relational_angle,
    relational_distance,
    similarity_distance,
)
from camkd.types import Prediction
from support.reference_formulas import randn, reference_pool, reference_resize

LABELS = torch.zeros(4).long()

seeds = st.integers(0, 10_000)
grids = st.tuples(st.integers(1, 9), st.integers(1, 9))


def with_features(*stages: Tensor) -> Prediction:
    return Prediction(torch.zeros(len(stages[0]), 2), features=stages)


def random_features(seed: int, count: int, *shapes: tuple[int, int]) -> Prediction:
    """A prediction with random stages of ``(channels, side)``."""
    return with_features(*(randn(seed + n, count, channels, side, side) for n, (channels, side) in enumerate(shapes)))


def huber(x: float) -> float:
    return x * x / 2 if abs(x) <= 1 else abs(x) - 0.5


# --- attention transfer


def reference_attention(student: Tensor, teacher: Tensor) -> list[float]:
    """The code of arXiv 1910.10699: features are pooled to the smaller grid, then squared, averaged, normalized."""
    grid = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    values = []
    for images in zip(student.numpy(), teacher.numpy(), strict=True):
        attention = []
        for channels in images:
            squares = [reference_pool(channel, grid) ** 2 for channel in channels]
            mean = sum(squares) / len(squares)
            attention.append(mean / math.sqrt(sum(v * v for v in mean.flat)))
        values.append(float(((attention[0] - attention[1]) ** 2).mean()))
    return values


@settings(max_examples=40)
@given(seeds, st.integers(1, 3), st.tuples(st.integers(1, 4), st.integers(1, 4)), grids, grids)
def test_attention_distance_matches_formula(
    seed: int, batch: int, channels: tuple[int, int], student_grid: tuple[int, int], teacher_grid: tuple[int, int]
) -> None:
    student = randn(seed, batch, channels[0], *student_grid)
    teacher = randn(seed + 1, batch, channels[1], *teacher_grid)
    values = attention_distance(student, teacher)
    assert values.shape == (batch,)
    assert values.tolist() == pytest.approx(reference_attention(student, teacher), rel=1e-6, abs=1e-12)


def test_attention_distance_by_hand() -> None:
    student = torch.tensor([[[[1.0, 0.0]], [[1.0, 0.0]]]])  # Q = (2, 0)
    teacher = torch.tensor([[[[0.0, -3.0]]]])  # Q = (0, 9)
    assert attention_distance(student, teacher).item() == pytest.approx((1 + 1) / 2)
    assert attention_distance(student, -5 * student).item() == pytest.approx(0, abs=1e-9)


def test_attention_of_unequal_grids_pools_the_features_before_they_are_squared() -> None:
    fine = torch.tensor([[[[2.0, -2.0, 3.0, 1.0]]]])  # pooled (0, 2), Q = (0, 4); the mean of the squares is (4, 5)
    coarse = torch.tensor([[[[1.0, 0.0]]]])  # Q = (1, 0)
    assert attention_distance(fine, coarse).item() == pytest.approx((1 + 1) / 2)
    assert attention_distance(coarse, fine).item() == pytest.approx((1 + 1) / 2), "the finer grid may be the teacher's"
    tall = torch.ones(1, 1, 4, 1)  # each side is pooled on its own: the common grid is 2 x 1
    wide = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    expected = ((math.sqrt(0.5) - 1) ** 2 + 0.5) / 2
    assert attention_distance(tall, wide).item() == pytest.approx(expected)


def test_attention_sums_stages_paired_from_the_deepest() -> None:
    first = randn(1, 4, 3, 8, 8)
    second = randn(2, 4, 5, 4, 4)
    teacher_stages = [randn(3, 4, 2, 16, 16), randn(4, 4, 2, 8, 8), randn(5, 4, 6, 4, 4)]
    teacher = with_features(*teacher_stages)
    value = Attention()(with_features(first, second), teacher, LABELS)
    expected = attention_distance(first, teacher_stages[1]) + attention_distance(second, teacher_stages[2])
    torch.testing.assert_close(value, expected)
    value = Attention()(with_features(second), teacher, LABELS)
    torch.testing.assert_close(value, attention_distance(second, teacher_stages[2]))


def test_zero_features_give_finite_attention_and_gradients() -> None:
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    for teacher in (torch.zeros(2, 5, 4, 4), torch.rand(2, 5, 8, 8)):
        loss = attention_distance(student, teacher)
        loss.sum().backward()
        assert loss.isfinite().all()
        assert student.grad is not None
        assert student.grad.isfinite().all()


# --- relations between the images of a batch


def reference_similarity(student: Tensor, teacher: Tensor) -> float:
    """Equation 4 of the paper for one pair of layers."""
    matrices = []
    for features in (student.flatten(1).tolist(), teacher.flatten(1).tolist()):
        rows = [[sum(a * b for a, b in zip(row, other, strict=True)) for other in features] for row in features]
        matrices.append([[value / max(math.sqrt(sum(v * v for v in row)), 1e-6) for value in row] for row in rows])
    size = len(student)
    return sum((a - b) ** 2 for x, y in zip(*matrices, strict=True) for a, b in zip(x, y, strict=True)) / size**2


def reference_distances(embedding: list[list[float]]) -> list[list[float]]:
    distances = [[math.dist(point, other) for other in embedding] for point in embedding]
    nonzero = [value for row in distances for value in row if value > 0]
    mean = sum(nonzero) / len(nonzero) if nonzero else 1.0
    return [[value / mean for value in row] for row in distances]


def reference_cosine(i: list[float], n: list[float], k: list[float]) -> float:
    u, v = ([a - b for a, b in zip(point, n, strict=True)] for point in (i, k))
    lengths = math.hypot(*u) * math.hypot(*v)
    return sum(a * b for a, b in zip(u, v, strict=True)) / lengths if lengths else 0.0


@settings(max_examples=25)
@given(seeds, st.integers(1, 5), st.tuples(st.integers(1, 4), st.integers(1, 4)), st.booleans())
def test_relational_terms_match_formulas(seed: int, count: int, widths: tuple[int, int], duplicates: bool) -> None:
    student = randn(seed, count, widths[0])
    teacher = 3 * randn(seed + 1, count, widths[1])
    if duplicates:  # two equal embeddings in each network
        student[-1] = student[0]
        teacher[0] = teacher[-1]
    values = similarity_distance(student, teacher)
    assert values.shape == (count,)
    assert values.mean().item() == pytest.approx(reference_similarity(student, teacher), rel=1e-6, abs=1e-12)
    e_s = student.tolist()
    e_t = teacher.tolist()
    d_s = reference_distances(e_s)
    d_t = reference_distances(e_t)
    batch = range(count)
    expected = [sum(huber(d_s[n][m] - d_t[n][m]) for m in batch) / count for n in batch]
    assert relational_distance(student, teacher).tolist() == pytest.approx(expected, rel=1e-6, abs=1e-12)
    expected = [
        sum(
            huber(reference_cosine(e_s[i], e_s[n], e_s[k]) - reference_cosine(e_t[i], e_t[n], e_t[k]))
            for i, k in product(batch, batch)
        )
        / count**2
        for n in batch
    ]
    assert relational_angle(student, teacher).tolist() == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_relational_distance_and_angle_by_hand() -> None:
    triangle = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    line = torch.tensor([[0.0], [1.0], [2.0]])
    triangle_distances = [3 / 4, 4 / 4, 5 / 4]  # of 0-1, 0-2 and 1-2, divided by their mean
    line_distances = [1 * 3 / 4, 2 * 3 / 4, 1 * 3 / 4]
    squares = [(a - b) ** 2 / 2 for a, b in zip(triangle_distances, line_distances, strict=True)]
    expected = [(squares[0] + squares[1]) / 3, (squares[0] + squares[2]) / 3, (squares[1] + squares[2]) / 3]
    assert relational_distance(triangle, line).tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)
    triangle_cosines = [0, 3 / 5, 4 / 5]  # at image 0, 1 and 2
    line_cosines = [1, -1, 1]
    expected = [2 * huber(a - b) / 9 for a, b in zip(triangle_cosines, line_cosines, strict=True)]
    assert relational_angle(triangle, line).tolist() == pytest.approx(expected, rel=1e-6)


def test_similarity_distance_by_hand() -> None:
    row = [25 / math.hypot(25, 24), 24 / math.hypot(25, 24)]
    expected = ((row[0] - 1) ** 2 + row[1] ** 2) / 2
    values = similarity_distance(torch.tensor([[3.0, 4.0], [4.0, 3.0]]), torch.eye(2))
    assert values.tolist() == pytest.approx([expected] * 2, rel=1e-6)


@settings(max_examples=25)
@given(seeds, st.floats(0.1, 10), st.floats(-5, 5))
def test_relational_terms_are_invariant_to_scale_rotation_and_shift(seed: int, scale: float, shift: float) -> None:
    """Similarities are invariant to scale and rotation only."""
    student = randn(seed, 5, 4)
    teacher = randn(seed + 1, 5, 3)
    rotation = torch.linalg.qr(randn(seed + 2, 4, 4))[0]
    rotated = scale * student @ rotation
    for term in (relational_distance, relational_angle):
        torch.testing.assert_close(term(rotated + shift, teacher), term(student, teacher))
    torch.testing.assert_close(similarity_distance(rotated, teacher), similarity_distance(student, teacher))


def test_equal_embeddings_give_finite_gradients() -> None:
    for count in (1, 2, 4):
        student = torch.zeros(count, 3)
        student[: count // 2] = 1.0
        student.requires_grad_()
        for term in (relational_distance, relational_angle, similarity_distance):
            (gradient,) = torch.autograd.grad(term(student, torch.randn(count, 5)).sum(), student)
            assert gradient.isfinite().all()
            assert gradient.abs().max() < 100


def test_relational_terms_read_the_last_stage() -> None:
    student = random_features(1, 4, (2, 8), (3, 4))
    teacher = random_features(5, 4, (5, 6))
    assert student.features is not None
    assert teacher.features is not None
    student_stage = student.features[-1]
    teacher_stage = teacher.features[-1]
    expected = similarity_distance(student_stage, teacher_stage)
    torch.testing.assert_close(Similarity()(student, teacher, LABELS), expected)
    embeddings = student_stage.mean((2, 3)), teacher_stage.mean((2, 3))
    torch.testing.assert_close(RelationalDistance()(student, teacher, LABELS), relational_distance(*embeddings))
    torch.testing.assert_close(RelationalAngle()(student, teacher, LABELS), relational_angle(*embeddings))


@pytest.mark.parametrize("term", [attention_distance, similarity_distance, relational_distance, relational_angle])
@pytest.mark.parametrize("kind", ["all features near zero", "one image near zero", "equal features"])
def test_gradient_is_bounded_however_short_the_features_are(
    term: Callable[[Tensor, Tensor], Tensor], kind: str
) -> None:
    shape = (6, 3, 4, 4) if term in (attention_distance, similarity_distance) else (6, 8)
    features = randn(1, *shape)
    teacher = randn(2, *shape)
    for exponent in range(-12, 1):
        size = 0.0 if exponent == -12 else 10.0**exponent
        scale = torch.full((6, *[1] * (len(shape) - 1)), size).double()
        if kind == "one image near zero":
            scale[1:] = 1
        student = (scale * features + (1 if kind == "equal features" else 0)).requires_grad_()
        (gradient,) = torch.autograd.grad(term(student, teacher).sum(), student)
        assert gradient.flatten(1).norm(dim=1).max() < 200


# --- hints


@pytest.mark.parametrize(("count", "index"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2)])
def test_middle_stage(count: int, index: int) -> None:
    stages = tuple(torch.zeros(1, 1, side, side) for side in range(count))
    assert middle_stage(stages) is stages[index]


@settings(max_examples=15)
@given(seeds, st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))
def test_hint_matches_formula(seed: int, count: int, student_side: int, teacher_side: int) -> None:
    student = random_features(seed, count, (4, 9), (2, student_side), (3, 2))
    teacher = random_features(seed + 5, count, (3, teacher_side), (2, 2))
    term = Hint().build_adapter(student, teacher).double()
    values = term(student, teacher, LABELS)
    assert student.features is not None
    assert teacher.features is not None
    weight = term.regressor.weight.detach().numpy()[:, :, 0, 0]
    bias = term.regressor.bias
    assert weight.shape == (3, 2)
    assert bias is not None
    for n in range(count):
        planes = [reference_resize(plane, (teacher_side, teacher_side)) for plane in student.features[1][n].numpy()]
        total = 0.0
        for c, y, x in product(range(3), range(teacher_side), range(teacher_side)):
            regressed = sum(weight[c, k] * planes[k][y, x] for k in range(2)) + bias[c].item()
            total += (regressed - teacher.features[0][n, c, y, x].item()) ** 2
        assert values[n].item() == pytest.approx(total / (3 * teacher_side * teacher_side), rel=1e-6)


def test_exact_regression_has_zero_hint_loss() -> None:
    student = random_features(1, 4, (2, 8), (3, 4), (4, 2))
    term = Regressor(3, 3).double()
    with torch.no_grad():
        term.regressor.weight.copy_(2 * torch.eye(3)[:, :, None, None])
        assert term.regressor.bias is not None
        term.regressor.bias.fill_(0.5)
    assert student.features is not None
    teacher = with_features(student.features[0], 2 * student.features[1] + 0.5, student.features[2])
    assert term(student, teacher, LABELS).abs().max() < 1e-12


# --- knowledge review


@settings(max_examples=25)
@given(seeds, st.integers(1, 3), st.integers(1, 3), grids)
def test_hierarchical_context_loss_matches_formula(seed: int, count: int, channels: int, grid: tuple[int, int]) -> None:
    student = randn(seed, count, channels, *grid)
    teacher = randn(seed + 1, count, channels, *grid)
    values = hierarchical_context_loss(student, teacher)
    for n in range(count):
        losses = []
        weights = []
        for cells in (None, 4, 2, 1):
            if cells is not None and cells >= min(grid):
                continue
            errors = []
            for planes in zip(student[n].numpy(), teacher[n].numpy(), strict=True):
                a, b = (plane if cells is None else reference_pool(plane, (cells, cells)) for plane in planes)
                errors += [(x - y) ** 2 for x, y in zip(a.flat, b.flat, strict=True)]
            weights.append(0.5 ** len(losses))
            losses.append(sum(errors) / len(errors))
        expected = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
        assert values[n].item() == pytest.approx(expected, rel=1e-6)


def test_hierarchical_context_loss_by_hand() -> None:
    difference = torch.tensor([[[[1.0, -1.0], [1.0, 3.0]]]])  # mean square 3, mean 1
    value = hierarchical_context_loss(difference, torch.zeros(1, 1, 2, 2)).item()
    assert value == pytest.approx((3 + 1 / 2) / (1 + 1 / 2))
    row = difference[..., :1, :]
    assert hierarchical_context_loss(row, torch.zeros(1, 1, 1, 2)).item() == pytest.approx(1)


def reference_conv(planes: np.ndarray, layer: nn.Module) -> np.ndarray:
    """Convolution of odd kernel size with zero padding, ``(C, h, w) -> (C', h, w)``."""
    assert isinstance(layer, nn.Conv2d)
    weight = layer.weight.detach().numpy()
    _, height, width = planes.shape
    radius = weight.shape[2] // 2
    out = np.zeros((len(weight), height, width))
    for c, y, x in product(range(len(weight)), range(height), range(width)):
        for k, i, j in product(range(len(planes)), range(-radius, radius + 1), range(-radius, radius + 1)):
            if 0 <= y + i < height and 0 <= x + j < width:
                out[c, y, x] += weight[c, k, i + radius, j + radius] * planes[k, y + i, x + j]
        out[c, y, x] += 0.0 if layer.bias is None else layer.bias[c].item()
    return out


def reference_batch_norm(planes: np.ndarray, layer: nn.Module) -> np.ndarray:
    assert isinstance(layer, nn.BatchNorm2d)
    mean, variance, scale, shift = (
        t.detach().numpy() for t in (layer.running_mean, layer.running_var, layer.weight, layer.bias) if t is not None
    )
    return np.stack(
        [(p - mean[c]) / math.sqrt(variance[c] + layer.eps) * scale[c] + shift[c] for c, p in enumerate(planes)]
    )


def reference_nearest(planes: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    _, height, width = planes.shape
    rows, columns = ([i * old // new for i in range(new)] for old, new in zip((height, width), grid, strict=True))
    return planes[:, rows][:, :, columns]


def test_review_matches_formula() -> None:
    student = random_features(1, 2, (2, 9), (2, 6), (3, 3))
    teacher = random_features(6, 2, (4, 4), (2, 3))
    torch.manual_seed(3)
    term = Review().build_adapter(student, teacher).double().eval()
    with torch.no_grad():
        for module in term.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                    assert tensor is not None
                    tensor.copy_(0.5 + torch.rand(len(tensor)))
    values = term(student, teacher, LABELS)
    assert student.features is not None
    assert teacher.features is not None
    assert len(term.fusions) == 3
    for n in range(2):
        student_last = student.features[-1][n].numpy()
        teacher_last = teacher.features[-1][n].numpy()
        student_levels = [student_last.mean((1, 2), keepdims=True), student_last, student.features[1][n].numpy()]
        teacher_levels = [teacher_last.mean((1, 2), keepdims=True), teacher_last, teacher.features[0][n].numpy()]
        expected = 0.0
        deeper = None
        for fusion, x, target in zip(term.fusions, student_levels, teacher_levels, strict=True):
            assert isinstance(fusion, Fusion)
            fused = reference_batch_norm(reference_conv(x, fusion.reduce[0]), fusion.reduce[1])
            if deeper is not None:
                assert fusion.attention is not None
                grown = reference_nearest(deeper, fused.shape[1:])
                gates = 1 / (1 + np.exp(-reference_conv(np.concatenate([fused, grown]), fusion.attention[0])))
                fused = fused * gates[0] + grown * gates[1]
            deeper = fused
            resized = reference_nearest(fused, target.shape[1:])
            output = reference_batch_norm(reference_conv(resized, fusion.expand[0]), fusion.expand[1])
            expected += hierarchical_context_loss(torch.tensor(output)[None], torch.tensor(target)[None]).item()
        assert values[n].item() == pytest.approx(expected, rel=1e-6)


def test_channels_of_the_review_levels() -> None:
    term = Reviewer([16, 40, 48], [64, 128, 256])
    widths = [(f.reduce[0].in_channels, f.reduce[0].out_channels, f.expand[0].out_channels) for f in term.fusions]  # type: ignore[union-attr, index]
    assert widths == [(48, 48, 256), (48, 48, 256), (40, 48, 128), (16, 48, 64)]
    assert [fusion.attention is None for fusion in term.fusions] == [True, False, False, False]
    assert Reviewer([1024], [3, 8]).fusions[1].reduce[0].out_channels == 512  # type: ignore[union-attr, index]
    assert len(Reviewer([4], [3, 8]).fusions) == 2


# --- all terms


@pytest.mark.parametrize("make", [Hint, Review])
def test_term_without_adapter_raises(make: type[Hint] | type[Review]) -> None:
    student = random_features(1, 4, (2, 8), (3, 4))
    with pytest.raises(RuntimeError, match=rf"{make.__name__} .*Objective\.build_adapters"):
        make()(student, student, LABELS)


def test_gradients_match_finite_differences() -> None:
    teacher = randn(2, 3, 2, 4, 4)
    student = randn(1, 3, 2, 6, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: attention_distance(s, teacher), student, fast_mode=True)
    assert torch.autograd.gradcheck(lambda s: similarity_distance(s, teacher), student, fast_mode=True)
    for term in (relational_distance, relational_angle):
        pooled = teacher.mean((2, 3))
        assert torch.autograd.gradcheck(lambda s, t=term, p=pooled: t(s.mean((2, 3)), p), student, fast_mode=True)
    equal_grid = randn(3, 3, 2, 6, 6)
    assert torch.autograd.gradcheck(lambda s: hierarchical_context_loss(s, equal_grid), student, fast_mode=True)
