"""Metrics against hand-worked cases, scipy and numpy, and their mathematical properties."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import spatial, stats
from torch import Tensor

from camkd.cams import centre_prior, resize
from camkd.evaluate import metrics

SIMILARITIES = [metrics.cosine, metrics.pearson, metrics.spearman, metrics.iou_top]
Similarity = Callable[[Tensor, Tensor], Tensor]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


seeds = st.integers(0, 10_000)


# --- classification


def test_accuracy_and_nll_by_hand() -> None:
    logits = torch.tensor([[0.0, np.log(3.0)], [np.log(3.0), 0.0], [0.0, np.log(3.0)]])
    labels = torch.tensor([1, 0, 0])
    assert metrics.accuracy(logits, labels) == pytest.approx(2 / 3)
    assert metrics.nll(logits, labels) == pytest.approx(-(2 * np.log(0.75) + np.log(0.25)) / 3, abs=1e-6)


def test_confusion_has_true_rows_and_predicted_columns() -> None:
    counts = metrics.confusion(torch.tensor([2, 2, 0, 1]), torch.tensor([0, 0, 0, 1]), 3)
    assert counts.tolist() == [[1, 0, 2], [0, 1, 0], [0, 0, 0]]
    assert counts.dtype == torch.int64


@pytest.mark.parametrize("shapes", [((2,), (3,)), ((1, 2), (1, 2))])
def test_confusion_refuses_what_is_not_two_lists_of_a_length(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"must both be \(N,\)"):
        metrics.confusion(*(torch.zeros(shape, dtype=torch.int64) for shape in shapes), 3)


@pytest.mark.parametrize("bad", [-1, 3])
def test_confusion_refuses_a_class_out_of_range(bad: int) -> None:
    with pytest.raises(ValueError, match=rf"0\.\.2.*{bad}"):
        metrics.confusion(torch.tensor([0, bad]), torch.tensor([0, 1]), 3)


def ece_literally(logits: np.ndarray, labels: np.ndarray, bins: int) -> float:
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = shifted / shifted.sum(1, keepdims=True)
    total = 0.0
    for b in range(bins):
        inside = [p for p in range(len(labels)) if b / bins < probabilities[p].max() <= (b + 1) / bins]
        if inside:
            right = np.mean([probabilities[p].argmax() == labels[p] for p in inside])
            sure = np.mean([probabilities[p].max() for p in inside])
            total += len(inside) / len(labels) * abs(right - sure)
    return total


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(1, 60), st.integers(2, 6), st.integers(1, 20))
def test_ece_is_the_papers_sum(seed: int, n: int, k: int, bins: int) -> None:
    logits = 3 * draw(seed, n, k)
    labels = torch.randint(k, (n,), generator=torch.Generator().manual_seed(seed))
    expected = ece_literally(logits.double().numpy(), labels.numpy(), bins)
    assert metrics.ece(logits, labels, bins) == pytest.approx(expected, abs=1e-5)


def test_ece_keeps_bins_apart_and_is_nought_when_calibrated() -> None:
    quarter = torch.log(torch.tensor([[3.0, 1.0]])).expand(4, 2)
    assert metrics.ece(quarter, torch.tensor([0, 0, 0, 1])) == pytest.approx(0, abs=1e-6)
    over_and_under = torch.tensor([[50.0, 0.0], [0.2, 0.0]])  # errors +1 and -0.45 must not cancel
    assert metrics.ece(over_and_under, torch.tensor([1, 0])) == pytest.approx((1 + 0.45) / 2, abs=1e-3)
    low = torch.log(torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.1, 0.3, 0.3, 0.3]]))  # the border is the lower bin's
    assert metrics.ece(low, torch.tensor([0, 0]), 4) == pytest.approx((0.75 + 0.3) / 2, abs=1e-6)


@pytest.mark.parametrize("figure", [metrics.accuracy, metrics.nll, metrics.ece])
@pytest.mark.parametrize("shapes", [((0, 3), (0,)), ((2, 3), (3,)), ((2,), (2,))])
def test_shapes_that_do_not_fit_are_refused(
    figure: Callable[[Tensor, Tensor], float], shapes: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    with pytest.raises(ValueError, match="logits"):
        figure(torch.zeros(shapes[0]), torch.zeros(shapes[1], dtype=torch.int64))


# --- maps


def test_cosine_sees_positive_evidence_only() -> None:
    a = torch.tensor([[[3.0, 4.0], [-100.0, 0.0]]])
    b = torch.tensor([[[4.0, 3.0], [-1.0, -7.0]]])
    assert metrics.cosine(a, b).item() == pytest.approx(24 / 25)
    assert metrics.pearson(a, b).item() == pytest.approx(stats.pearsonr(a.flatten(), b.flatten())[0], abs=1e-6)


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(2, 7), st.integers(2, 7))
def test_cosine_and_pearson_match_scipy(seed: int, h: int, w: int) -> None:
    a, b = draw(seed, 3, h, w).double(), draw(seed + 1, 3, h, w).double()
    a[:, 0, 0] = b[:, 0, 0] = 1.0  # some positive evidence in both
    for i in range(3):
        pair = a[i].flatten().numpy(), b[i].flatten().numpy()
        positive = [np.maximum(side, 0) for side in pair]
        assert metrics.cosine(a, b)[i].item() == pytest.approx(1 - spatial.distance.cosine(*positive), abs=1e-9)
        assert metrics.pearson(a, b)[i].item() == pytest.approx(stats.pearsonr(*pair)[0], abs=1e-9)


def test_spearman_by_hand() -> None:
    a = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    b = torch.tensor([[[10.0, 30.0], [20.0, 1e9]]])  # ranks 0 2 1 3: 1 - 6 (1 + 1) / (4 * 15)
    assert metrics.spearman(a, b).item() == pytest.approx(0.8)


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(2, 7), st.integers(2, 7), st.booleans())
def test_spearman_matches_scipy_ties_too(seed: int, h: int, w: int, ties: bool) -> None:
    a, b = draw(seed, 3, h, w).double(), draw(seed + 1, 3, h, w).double()
    if ties:
        a, b = a.round(), b.round()
    a[:, 0, 0], b[:, 0, 0] = 9, -9  # neither is constant
    for i in range(3):
        expected = stats.spearmanr(a[i].flatten(), b[i].flatten()).statistic
        assert metrics.spearman(a, b)[i].item() == pytest.approx(expected, abs=1e-9)
    torch.testing.assert_close(metrics.spearman(a**3, torch.exp(b)), metrics.spearman(a, b))


def strongest_at(h: int, w: int, row: int, column: int) -> Tensor:
    found = torch.zeros(1, h, w)
    found[0, row, column] = 1
    return found


@pytest.mark.parametrize(
    ("grid", "other", "match"),
    [
        ((7, 7), (3, 3), 1),
        ((7, 7), (3, 4), 0),  # under 8 the same cell alone
        ((8, 8), (3, 4), 1),
        ((8, 8), (2, 2), 1),
        ((8, 8), (3, 5), 0),
        ((8, 8), (5, 3), 0),
        ((16, 8), (5, 4), 1),  # each side has its own tolerance
        ((16, 8), (3, 5), 0),
    ],
)
def test_pointing_match_allows_an_eighth_of_each_side(
    grid: tuple[int, int], other: tuple[int, int], match: int
) -> None:
    a, b = strongest_at(*grid, 3, 3), strongest_at(*grid, *other)
    assert metrics.pointing_match(a, b).tolist() == metrics.pointing_match(b, a).tolist() == [match]


def test_pointing_match_of_equal_cells_is_that_of_the_first() -> None:
    both = strongest_at(7, 7, 2, 5) + strongest_at(7, 7, 5, 2)
    assert metrics.pointing_match(both, strongest_at(7, 7, 2, 5)).item() == 1
    assert metrics.pointing_match(both, strongest_at(7, 7, 5, 2)).item() == 0
    assert metrics.pointing_match(both * 1e-3 - 5, strongest_at(7, 7, 2, 5)).item() == 1


def test_a_map_points_somewhere_also_where_cells_are_at_its_mean() -> None:
    even = torch.tensor([[[1.0, 2.0, 3.0]]])
    assert metrics.pointing_match(even, even).item() == 1
    assert metrics.pointing_game(even, torch.tensor([[[False, False, True]]])).item() == 1


@pytest.mark.parametrize("level", [0.0, 0.1, -3.3, 1e30])
def test_a_map_without_a_message_points_nowhere(level: float) -> None:
    flat = torch.full((1, 7, 7), level)
    assert metrics.pointing_match(flat, flat).item() == 0
    assert metrics.pointing_game(flat, torch.ones(1, 14, 14, dtype=torch.bool)).item() == 0


def test_iou_by_hand() -> None:
    a = torch.arange(10.0).reshape(1, 2, 5)  # the top fifth: cells 8 and 9
    assert metrics.iou_top(a, a).item() == 1
    assert metrics.iou_top(a, -a).item() == 0
    b = a.clone()
    b[0, 0, 0] = 99  # cells 9 and 0
    assert metrics.iou_top(a, b).item() == pytest.approx(1 / 3)


def test_iou_ties_go_to_the_first_in_reading_order() -> None:
    flat = torch.zeros(1, 2, 5)
    first = torch.tensor([[[1.0, 1, 0, 0, 0], [0, 0, 0, 0, 0]]])
    last = first.flip(1, 2)
    assert metrics.iou_top(flat, first).item() == 1
    assert metrics.iou_top(flat, last).item() == 0


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(1, 8), st.integers(1, 8), st.floats(0.01, 1))
def test_iou_is_the_set_formula(seed: int, h: int, w: int, fraction: float) -> None:
    a, b = draw(seed, 2, h, w).round(), draw(seed + 1, 2, h, w).round()  # rounded: many ties
    k = max(1, int(np.floor(fraction * h * w + 0.5)))
    for i in range(2):
        one, other = (set(np.argsort(-m[i].flatten().numpy(), kind="stable")[:k].tolist()) for m in (a, b))
        assert metrics.iou_top(a, b, fraction)[i].item() == pytest.approx(len(one & other) / len(one | other))


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01])
def test_iou_refuses_a_senseless_fraction(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        metrics.iou_top(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), fraction)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@settings(deadline=None, max_examples=25)
@given(seed=seeds, h=st.integers(2, 6), w=st.integers(2, 6), power=st.integers(-25, 25))
def test_every_similarity_is_symmetric_bounded_scale_free_and_per_sample(
    similarity: Similarity, seed: int, h: int, w: int, power: int
) -> None:
    a, b = draw(seed, 5, h, w), draw(seed + 1, 5, h, w)
    value = similarity(a, b)
    assert value.shape == (5,)
    assert (value.abs() <= 1).all()
    torch.testing.assert_close(similarity(b, a), value)
    torch.testing.assert_close(similarity(a * 2.0**power, b), value)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(similarity(a[order], b[order]), value[order])
    places = torch.randperm(h * w, generator=torch.Generator().manual_seed(seed))
    moved = [m.flatten(1)[:, places].reshape(m.shape) for m in (a, b)]
    torch.testing.assert_close(similarity(*moved), value)  # no ties here, so where cells lie does not matter


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_map_agrees_fully_with_itself_and_never_more_than_that(similarity: Similarity) -> None:
    maps = draw(0, 1000, 5, 6)
    values = similarity(maps, maps)
    torch.testing.assert_close(values, torch.ones(1000))
    assert values.max() <= 1
    if similarity in (metrics.pearson, metrics.spearman):
        assert similarity(maps, -maps).min() == -1


@pytest.mark.parametrize("similarity", [*SIMILARITIES, metrics.pointing_match])
def test_different_sizes_are_refused(similarity: Similarity) -> None:
    with pytest.raises(ValueError, match="resize"):
        similarity(torch.zeros(1, 2, 2), torch.zeros(1, 4, 4))


@pytest.mark.parametrize("level", [0.0, 0.1, -3.3, 1e30, 1e-30])
def test_maps_without_a_message_score_nought(level: float) -> None:
    flat, other = torch.full((1, 7, 7), level), draw(3, 1, 7, 7)
    assert metrics.pearson(flat, other).item() == 0
    assert metrics.spearman(flat, other).item() == 0
    if level <= 0:
        assert metrics.cosine(flat, other).item() == 0
        assert metrics.cosine(flat, flat).item() == 0


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_extreme_scales_neither_overflow_nor_vanish(scale: float) -> None:
    a, b = draw(1, 2, 8, 8), draw(2, 2, 8, 8)
    torch.testing.assert_close(metrics.cosine(a * scale, b), metrics.cosine(a, b))
    torch.testing.assert_close(metrics.pearson(a * scale, b), metrics.pearson(a, b))


def test_half_precision_is_computed_in_single() -> None:
    a, b = draw(1, 2, 8, 8).bfloat16(), draw(2, 2, 8, 8).bfloat16()
    torch.testing.assert_close(metrics.pearson(a, b), metrics.pearson(a.float(), b.float()))
    logits, labels = draw(3, 50, 4).bfloat16(), torch.arange(50) % 4
    for figure in (metrics.accuracy, metrics.nll, metrics.ece):
        assert figure(logits, labels) == figure(logits.float(), labels)
        assert type(figure(logits, labels)) is float, "goes into a JSON file"


# --- chance levels


def test_centre_prior_is_a_quarter_side_gaussian() -> None:
    prior = centre_prior(8, 16)
    assert prior.shape == (8, 16)
    torch.testing.assert_close(prior, prior.flip(0))
    torch.testing.assert_close(prior, prior.flip(1))
    assert prior[0, 0].item() == pytest.approx(np.exp(-((3.5 / 2) ** 2 + (7.5 / 4) ** 2) / 2))


@given(st.integers(2, 200), seeds)
def test_shuffled_is_a_fixed_derangement(n: int, seed: int) -> None:
    other = metrics.derangement(n, seed)
    assert sorted(other.tolist()) == list(range(n))
    assert not (other == torch.arange(n)).any()
    assert (other == metrics.derangement(n, seed)).all()


def test_shuffled_needs_another_picture() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        metrics.derangement(1)


def agreement(student: Tensor, teacher: Tensor) -> dict[str, float]:
    return metrics.means(metrics.map_likeness(student, teacher))


def test_map_agreement_of_a_copy_is_full_and_above_chance() -> None:
    teacher = draw(0, 64, 8, 8)
    found = agreement(teacher * 3, teacher)
    assert set(found) == {
        f"cam_{name}{suffix}"
        for name in ("cosine", "pearson", "spearman", "iou", "pointing_match")
        for suffix in ("", "_shuffled", "_centre")
    }
    for name in ("cam_cosine", "cam_pearson", "cam_spearman", "cam_iou", "cam_pointing_match"):
        assert found[name] == pytest.approx(1, abs=1e-6)
    assert abs(found["cam_pearson_shuffled"]) < 0.06
    assert abs(found["cam_spearman_shuffled"]) < 0.06
    assert found["cam_iou_shuffled"] == pytest.approx(0.11, abs=0.04)  # two random fifths


def test_map_agreement_chance_levels_are_what_they_say() -> None:
    student, teacher = draw(1, 6, 4, 4), draw(2, 6, 8, 8)
    found = agreement(student, teacher)
    big = resize(student, (8, 8))
    other = teacher[metrics.derangement(6)]
    assert found["cam_cosine"] == pytest.approx(metrics.cosine(big, teacher).mean().item())
    assert found["cam_cosine_shuffled"] == pytest.approx(metrics.cosine(big, other).mean().item())
    centre = centre_prior(8, 8).expand(6, 8, 8)
    assert found["cam_pearson_centre"] == pytest.approx(metrics.pearson(big, centre).mean().item())
    assert found["cam_pointing_match_centre"] == metrics.pointing_match(big, centre).mean().item()


def test_maps_of_any_sides_are_compared_on_the_larger_of_each() -> None:
    student, teacher = draw(1, 2, 4, 10), draw(2, 2, 6, 3)
    for a, b in ((student, teacher), (teacher, student)):
        for maps, found in zip((a, b), metrics.to_common_grid(a, b), strict=True):
            torch.testing.assert_close(found, resize(maps, (6, 10)))
    found = agreement(student, teacher)
    big, centre = resize(teacher, (6, 10)), centre_prior(6, 10).expand(2, 6, 10)
    assert found["cam_pearson"] == pytest.approx(metrics.pearson(resize(student, (6, 10)), big).mean().item())
    assert found["cam_cosine_centre"] == pytest.approx(metrics.cosine(resize(student, (6, 10)), centre).mean().item())
    assert {type(value) for value in found.values()} == {float}, "goes into a JSON file"
    two = metrics.map_likeness(student, teacher)["cam_cosine_shuffled"]  # the other of two
    torch.testing.assert_close(two, metrics.cosine(resize(student, (6, 10)), big.flip(0)))


def test_map_agreement_of_one_picture_has_no_other_picture() -> None:
    found = agreement(draw(0, 1, 4, 4), draw(1, 1, 4, 4))
    assert "cam_cosine_centre" in found
    assert "cam_cosine_shuffled" not in found


def test_map_agreement_refuses_unequal_numbers() -> None:
    with pytest.raises(ValueError, match="2 student maps and 3 teacher maps"):
        agreement(torch.zeros(2, 4, 4), torch.zeros(3, 4, 4))


@given(seeds, st.integers(1, 40))
def test_outcomes_part_the_pictures_by_who_is_right(seed: int, n: int) -> None:
    student, teacher, labels = torch.randint(3, (3, n), generator=torch.Generator().manual_seed(seed))
    groups = metrics.outcomes(student, teacher, labels)
    assert torch.equal(torch.stack(list(groups.values())).sum(0), torch.ones(n, dtype=torch.int64))
    for name, own, theirs in (("only_teacher", 0, 1), ("only_student", 1, 0), ("both_wrong", 0, 0)):
        rows = [i for i in range(n) if ((student[i] == labels[i]), (teacher[i] == labels[i])) == (own, theirs)]
        assert groups[name].nonzero().flatten().tolist() == rows


def test_likeness_by_outcome_is_the_mean_of_the_pictures_of_each() -> None:
    student, teacher = draw(1, 6, 4, 4), draw(2, 6, 4, 4)
    group = torch.tensor([True, False, True, False, False, False])
    found = metrics.by_outcome(metrics.map_likeness(student, teacher), {"some": group, "none": group & ~group})
    assert found["none"] == {"pictures": 0}
    assert found["some"]["pictures"] == 2
    expected = (metrics.spearman(student, teacher)[0] + metrics.spearman(student, teacher)[2]) / 2
    assert found["some"]["cam_spearman"] == pytest.approx(expected.item())
    other = teacher[metrics.derangement(6)]  # the other picture is any picture, whatever its outcome
    expected = (metrics.cosine(student, other)[0] + metrics.cosine(student, other)[2]) / 2
    assert found["some"]["cam_cosine_shuffled"] == pytest.approx(expected.item())


# --- on the object


@given(st.integers(0, 1000), st.tuples(st.integers(1, 5), st.integers(2, 5)), st.tuples(*[st.integers(1, 30)] * 2))
def test_pointing_game_asks_for_the_middle_of_the_largest_cell(
    seed: int, cells: tuple[int, int], size: tuple[int, int]
) -> None:
    rng = np.random.default_rng(seed)
    maps, masks = rng.standard_normal((4, *cells)), rng.random((4, *size)) < 0.5
    found = metrics.pointing_game(torch.from_numpy(maps), torch.from_numpy(masks)).tolist()
    for i in range(4):
        row, column = np.unravel_index(maps[i].argmax(), cells)
        middle = (int((row + 0.5) * size[0] / cells[0]), int((column + 0.5) * size[1] / cells[1]))
        assert found[i] == masks[i][middle]


@given(st.integers(0, 1000), st.integers(1, 3), st.tuples(st.integers(1, 4), st.integers(1, 4)), st.integers(1, 4))
def test_energy_inside_is_that_of_the_enlarged_map(seed: int, n: int, cells: tuple[int, int], times: int) -> None:
    rng = np.random.default_rng(seed)
    maps = rng.standard_normal((n, *cells))
    masks = rng.random((n, cells[0] * times, cells[1] * times)) < 0.4
    found = metrics.energy_inside(torch.from_numpy(maps), torch.from_numpy(masks))
    large = np.maximum(maps, 0).repeat(times, 1).repeat(times, 2)
    total = large.sum((1, 2))
    expected = np.divide((large * masks).sum((1, 2)), total, out=np.zeros(n), where=total > 0)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-7)


def test_energy_inside_of_an_even_map_is_the_objects_share() -> None:
    masks = torch.rand(3, 8, 8) < 0.5
    torch.testing.assert_close(metrics.energy_inside(torch.ones(3, 4, 4), masks), masks.float().mean((1, 2)))
    assert metrics.energy_inside(-torch.rand(3, 4, 4), masks).tolist() == [0, 0, 0]
