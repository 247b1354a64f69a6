"""Terms on features against the papers' formulas, written out picture by picture, channel by channel, cell by cell."""

from __future__ import annotations

import math
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
    hierarchical_context,
    middle,
    relational_angle,
    relational_distance,
    similarity_distance,
)
from camkd.types import Prediction
from literally import draw, pool_literally, resize_literally

LABELS = torch.zeros(4).long()

seeds = st.integers(0, 10_000)
sides = st.tuples(st.integers(1, 9), st.integers(1, 9))


def answer(*stages: Tensor) -> Prediction:
    return Prediction(torch.zeros(len(stages[0]), 2), features=stages)


def pyramid(seed: int, count: int, *shapes: tuple[int, int]) -> Prediction:
    """Stages of ``(channels, side)``."""
    return answer(*(draw(seed + n, count, channels, side, side) for n, (channels, side) in enumerate(shapes)))


def huber(x: float) -> float:
    return x * x / 2 if abs(x) <= 1 else abs(x) - 0.5


# --- attention


def attention_literally(student: Tensor, teacher: Tensor) -> list[float]:
    values = []
    for ours, theirs in zip(student.numpy(), teacher.numpy(), strict=True):
        q_s, q_t = (sum(channel**2 for channel in features) for features in (ours, theirs))
        q_s = resize_literally(q_s, q_t.shape)
        q_s, q_t = (q / max(math.sqrt(sum(v * v for v in q.flat)), 1e-6) for q in (q_s, q_t))
        values.append(float(((q_s - q_t) ** 2).mean()))
    return values


@settings(max_examples=40)
@given(seeds, st.integers(1, 3), st.tuples(st.integers(1, 4), st.integers(1, 4)), sides, sides)
def test_attention_distance_is_the_formula(
    seed: int, batch: int, channels: tuple[int, int], ours: tuple[int, int], theirs: tuple[int, int]
) -> None:
    student, teacher = draw(seed, batch, channels[0], *ours), draw(seed + 1, batch, channels[1], *theirs)
    values = attention_distance(student, teacher)
    assert values.shape == (batch,)
    assert values.tolist() == pytest.approx(attention_literally(student, teacher), rel=1e-6, abs=1e-12)


def test_attention_distance_by_hand() -> None:
    student = torch.tensor([[[[1.0, 0.0]], [[1.0, 0.0]]]])  # Q = (2, 0)
    teacher = torch.tensor([[[[0.0, -3.0]]]])  # Q = (0, 9)
    assert attention_distance(student, teacher).item() == pytest.approx((1 + 1) / 2)
    assert attention_distance(student, -5 * student).item() == pytest.approx(0, abs=1e-9)


def test_attention_is_summed_over_the_stages_from_the_deepest_backwards() -> None:
    one, two = draw(1, 4, 3, 8, 8), draw(2, 4, 5, 4, 4)
    others = [draw(3, 4, 2, 16, 16), draw(4, 4, 2, 8, 8), draw(5, 4, 6, 4, 4)]
    value = Attention()(answer(one, two), answer(*others), LABELS)
    torch.testing.assert_close(value, attention_distance(one, others[1]) + attention_distance(two, others[2]))
    value = Attention()(answer(two), answer(*others), LABELS)
    torch.testing.assert_close(value, attention_distance(two, others[2]))


def test_dead_features_have_finite_attention_and_gradients() -> None:
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    for teacher in (torch.zeros(2, 5, 4, 4), torch.rand(2, 5, 8, 8)):
        loss = attention_distance(student, teacher)
        loss.sum().backward()
        assert loss.isfinite().all()
        assert student.grad is not None
        assert student.grad.isfinite().all()


# --- relations between pictures


def similarity_literally(student: Tensor, teacher: Tensor) -> float:
    """Equation 4 of the paper for one pair of layers."""
    matrices = []
    for features in (student.flatten(1).tolist(), teacher.flatten(1).tolist()):
        rows = [[sum(a * b for a, b in zip(one, other, strict=True)) for other in features] for one in features]
        matrices.append([[value / max(math.sqrt(sum(v * v for v in row)), 1e-6) for value in row] for row in rows])
    size = len(student)
    return sum((a - b) ** 2 for x, y in zip(*matrices, strict=True) for a, b in zip(x, y, strict=True)) / size**2


def distances_literally(embedding: list[list[float]]) -> list[list[float]]:
    apart = [[math.dist(one, other) for other in embedding] for one in embedding]
    pairs = [value for row in apart for value in row if value > 0]
    mean = sum(pairs) / len(pairs) if pairs else 1.0
    return [[value / mean for value in row] for row in apart]


def cosine_literally(i: list[float], n: list[float], k: list[float]) -> float:
    one, other = ([a - b for a, b in zip(point, n, strict=True)] for point in (i, k))
    lengths = math.hypot(*one) * math.hypot(*other)
    return sum(a * b for a, b in zip(one, other, strict=True)) / lengths if lengths else 0.0


@settings(max_examples=25)
@given(seeds, st.integers(1, 5), st.tuples(st.integers(1, 4), st.integers(1, 4)), st.booleans())
def test_relations_are_the_formulas(seed: int, count: int, widths: tuple[int, int], alike: bool) -> None:
    student, teacher = draw(seed, count, widths[0]), 3 * draw(seed + 1, count, widths[1])
    if alike:  # two pictures in one place, for the one of them and for the other
        student[-1], teacher[0] = student[0], teacher[-1]
    ours, theirs, pictures = student.tolist(), teacher.tolist(), range(count)
    values = similarity_distance(student, teacher)
    assert values.shape == (count,)
    assert values.mean().item() == pytest.approx(similarity_literally(student, teacher), rel=1e-6, abs=1e-12)
    one, other = distances_literally(ours), distances_literally(theirs)
    expected = [sum(huber(one[n][m] - other[n][m]) for m in pictures) / count for n in pictures]
    assert relational_distance(student, teacher).tolist() == pytest.approx(expected, rel=1e-6, abs=1e-12)
    expected = [
        sum(
            huber(cosine_literally(ours[i], ours[n], ours[k]) - cosine_literally(theirs[i], theirs[n], theirs[k]))
            for i, k in product(pictures, pictures)
        )
        / count**2
        for n in pictures
    ]
    assert relational_angle(student, teacher).tolist() == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_relations_by_hand() -> None:
    apart, level = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]), torch.tensor([[0.0], [1.0], [2.0]])
    right_angle, line = [3 / 4, 4 / 4, 5 / 4], [1 * 3 / 4, 2 * 3 / 4, 1 * 3 / 4]  # 0-1, 0-2, 1-2, the mean made 1
    squares = [(a - b) ** 2 / 2 for a, b in zip(right_angle, line, strict=True)]
    expected = [(squares[0] + squares[1]) / 3, (squares[0] + squares[2]) / 3, (squares[1] + squares[2]) / 3]
    assert relational_distance(apart, level).tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)
    cosines, straight = [0, 3 / 5, 4 / 5], [1, -1, 1]  # at picture 0, 1, 2
    expected = [2 * huber(a - b) / 9 for a, b in zip(cosines, straight, strict=True)]
    assert relational_angle(apart, level).tolist() == pytest.approx(expected, rel=1e-6)
    features, other = torch.tensor([[3.0, 4.0], [4.0, 3.0]]), torch.eye(2)
    row = [25 / math.hypot(25, 24), 24 / math.hypot(25, 24)]
    expected_value = ((row[0] - 1) ** 2 + row[1] ** 2) / 2
    assert similarity_distance(features, other).tolist() == pytest.approx([expected_value] * 2, rel=1e-6)


@settings(max_examples=25)
@given(seeds, st.floats(0.1, 10), st.floats(-5, 5))
def test_scale_shift_and_turn_of_an_embedding_are_nothing_to_its_relations(
    seed: int, scale: float, shift: float
) -> None:
    student, teacher = draw(seed, 5, 4), draw(seed + 1, 5, 3)
    turn = torch.linalg.qr(draw(seed + 2, 4, 4))[0]
    for term in (relational_distance, relational_angle):
        torch.testing.assert_close(term(scale * student @ turn + shift, teacher), term(student, teacher))
    torch.testing.assert_close(
        similarity_distance(scale * student @ turn, teacher), similarity_distance(student, teacher)
    )


def test_pictures_in_one_place_have_finite_gradients() -> None:
    for count in (1, 2, 4):
        student = torch.zeros(count, 3)
        student[: count // 2] = 1.0
        student.requires_grad_()
        for term in (relational_distance, relational_angle, similarity_distance):
            (slope,) = torch.autograd.grad(term(student, torch.randn(count, 5)).sum(), student)
            assert slope.isfinite().all()
            assert slope.abs().max() < 100


def test_the_relational_terms_read_the_averaged_layer() -> None:
    student, teacher = pyramid(1, 4, (2, 8), (3, 4)), pyramid(5, 4, (5, 6))
    assert student.features is not None
    assert teacher.features is not None
    ours, theirs = student.features[-1], teacher.features[-1]
    torch.testing.assert_close(Similarity()(student, teacher, LABELS), similarity_distance(ours, theirs))
    embeddings = ours.mean((2, 3)), theirs.mean((2, 3))
    torch.testing.assert_close(RelationalDistance()(student, teacher, LABELS), relational_distance(*embeddings))
    torch.testing.assert_close(RelationalAngle()(student, teacher, LABELS), relational_angle(*embeddings))


# --- hints


@pytest.mark.parametrize(("count", "chosen"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2)])
def test_the_middle_stage(count: int, chosen: int) -> None:
    stages = tuple(torch.zeros(1, 1, side, side) for side in range(count))
    assert middle(stages) is stages[chosen]


@settings(max_examples=15)
@given(seeds, st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))
def test_the_hint_is_its_formula(seed: int, count: int, ours: int, theirs: int) -> None:
    student, teacher = pyramid(seed, count, (4, 9), (2, ours), (3, 2)), pyramid(seed + 5, count, (3, theirs), (2, 2))
    term = Hint().connect(student, teacher).double()
    values = term(student, teacher, LABELS)
    assert student.features is not None
    assert teacher.features is not None
    weight, bias = term.regressor.weight.detach().numpy()[:, :, 0, 0], term.regressor.bias
    assert weight.shape == (3, 2)
    assert bias is not None
    for n in range(count):
        planes = [resize_literally(plane, (theirs, theirs)) for plane in student.features[1][n].numpy()]
        total = 0.0
        for c, y, x in product(range(3), range(theirs), range(theirs)):
            said = sum(weight[c, k] * planes[k][y, x] for k in range(2)) + bias[c].item()
            total += (said - teacher.features[0][n, c, y, x].item()) ** 2
        assert values[n].item() == pytest.approx(total / (3 * theirs * theirs), rel=1e-6)


def test_a_hint_that_is_regressed_is_nought() -> None:
    student = pyramid(1, 4, (2, 8), (3, 4), (4, 2))
    term = Regressor(3, 3).double()
    with torch.no_grad():
        term.regressor.weight.copy_(2 * torch.eye(3)[:, :, None, None])
        assert term.regressor.bias is not None
        term.regressor.bias.fill_(0.5)
    assert student.features is not None
    teacher = answer(student.features[0], 2 * student.features[1] + 0.5, student.features[2])
    assert term(student, teacher, LABELS).abs().max() < 1e-12


# --- knowledge review


@settings(max_examples=25)
@given(seeds, st.integers(1, 3), st.integers(1, 3), sides)
def test_the_hierarchical_context_is_its_formula(seed: int, count: int, channels: int, grid: tuple[int, int]) -> None:
    student, teacher = draw(seed, count, channels, *grid), draw(seed + 1, count, channels, *grid)
    values = hierarchical_context(student, teacher)
    for n in range(count):
        parts, weights = [], []
        for cells in (None, 4, 2, 1):
            if cells is not None and cells >= min(grid):
                continue
            errors = []
            for ours, theirs in zip(student[n].numpy(), teacher[n].numpy(), strict=True):
                if cells is not None:
                    ours, theirs = (pool_literally(plane, (cells, cells)) for plane in (ours, theirs))
                errors += [(a - b) ** 2 for a, b in zip(ours.flat, theirs.flat, strict=True)]
            weights.append(0.5 ** len(parts))
            parts.append(sum(errors) / len(errors))
        expected = sum(w * part for w, part in zip(weights, parts, strict=True)) / sum(weights)
        assert values[n].item() == pytest.approx(expected, rel=1e-6)


def test_the_hierarchical_context_by_hand() -> None:
    difference = torch.tensor([[[[1.0, -1.0], [1.0, 3.0]]]])  # mean square 3, mean 1
    value = hierarchical_context(difference, torch.zeros(1, 1, 2, 2)).item()
    assert value == pytest.approx((3 + 1 / 2) / (1 + 1 / 2))
    assert hierarchical_context(difference[..., :1, :], torch.zeros(1, 1, 1, 2)).item() == pytest.approx(1)


def convolve_literally(planes: np.ndarray, layer: nn.Module) -> np.ndarray:
    """A convolution of odd size with a border of noughts, ``(C, h, w) -> (C', h, w)``."""
    assert isinstance(layer, nn.Conv2d)
    weight = layer.weight.detach().numpy()
    _, height, width = planes.shape
    reach = weight.shape[2] // 2
    out = np.zeros((len(weight), height, width))
    for c, y, x in product(range(len(weight)), range(height), range(width)):
        for k, i, j in product(range(len(planes)), range(-reach, reach + 1), range(-reach, reach + 1)):
            if 0 <= y + i < height and 0 <= x + j < width:
                out[c, y, x] += weight[c, k, i + reach, j + reach] * planes[k, y + i, x + j]
        out[c, y, x] += 0.0 if layer.bias is None else layer.bias[c].item()
    return out


def norm_literally(planes: np.ndarray, layer: nn.Module) -> np.ndarray:
    assert isinstance(layer, nn.BatchNorm2d)
    mean, variance, scale, shift = (
        t.detach().numpy() for t in (layer.running_mean, layer.running_var, layer.weight, layer.bias) if t is not None
    )
    return np.stack(
        [(p - mean[c]) / math.sqrt(variance[c] + layer.eps) * scale[c] + shift[c] for c, p in enumerate(planes)]
    )


def nearest_literally(planes: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    _, height, width = planes.shape
    rows, columns = ([i * old // new for i in range(new)] for old, new in zip((height, width), grid, strict=True))
    return planes[:, rows][:, :, columns]


def test_the_review_is_its_formula() -> None:
    student, teacher = pyramid(1, 2, (2, 9), (2, 6), (3, 3)), pyramid(6, 2, (4, 4), (2, 3))
    torch.manual_seed(3)
    term = Review().connect(student, teacher).double().eval()
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
        last, end = student.features[-1][n].numpy(), teacher.features[-1][n].numpy()
        ours = [last.mean((1, 2), keepdims=True), last, student.features[1][n].numpy()]
        theirs = [end.mean((1, 2), keepdims=True), end, teacher.features[0][n].numpy()]
        expected, deeper = 0.0, None
        for fusion, x, target in zip(term.fusions, ours, theirs, strict=True):
            assert isinstance(fusion, Fusion)
            fused = norm_literally(convolve_literally(x, fusion.reduce[0]), fusion.reduce[1])
            if deeper is not None:
                assert fusion.attention is not None
                grown = nearest_literally(deeper, fused.shape[1:])
                gates = 1 / (1 + np.exp(-convolve_literally(np.concatenate([fused, grown]), fusion.attention[0])))
                fused = fused * gates[0] + grown * gates[1]
            deeper = fused
            brought = nearest_literally(fused, target.shape[1:])
            said = norm_literally(convolve_literally(brought, fusion.expand[0]), fusion.expand[1])
            expected += hierarchical_context(torch.tensor(said)[None], torch.tensor(target)[None]).item()
        assert values[n].item() == pytest.approx(expected, rel=1e-6)


def test_the_reviews_levels() -> None:
    term = Reviewer([16, 40, 48], [64, 128, 256])
    widths = [(f.reduce[0].in_channels, f.reduce[0].out_channels, f.expand[0].out_channels) for f in term.fusions]  # type: ignore[union-attr, index]
    assert widths == [(48, 48, 256), (48, 48, 256), (40, 48, 128), (16, 48, 64)]
    assert [fusion.attention is None for fusion in term.fusions] == [True, False, False, False]
    assert Reviewer([1024], [3, 8]).fusions[1].reduce[0].out_channels == 512  # type: ignore[union-attr, index]
    assert len(Reviewer([4], [3, 8]).fusions) == 2


@pytest.mark.parametrize("make", [Hint, Review])
def test_a_term_with_weights_says_when_it_has_none(make: type[Hint] | type[Review]) -> None:
    student = pyramid(1, 4, (2, 8), (3, 4))
    with pytest.raises(RuntimeError, match=rf"{make.__name__} has no weights yet: use Objective\.connected"):
        make()(student, student, LABELS)


def test_gradients_are_those_of_finite_differences() -> None:
    teacher, student = draw(2, 3, 2, 4, 4), draw(1, 3, 2, 6, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: attention_distance(s, teacher), student, fast_mode=True)
    assert torch.autograd.gradcheck(lambda s: similarity_distance(s, teacher), student, fast_mode=True)
    for term in (relational_distance, relational_angle):
        pooled = teacher.mean((2, 3))
        assert torch.autograd.gradcheck(lambda s, t=term, p=pooled: t(s.mean((2, 3)), p), student, fast_mode=True)
    same = draw(3, 3, 2, 6, 6)
    assert torch.autograd.gradcheck(lambda s: hierarchical_context(s, same), student, fast_mode=True)
