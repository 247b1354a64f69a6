"""Agreement of student and teacher maps: means, chance levels and outcomes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from camkd.cams import centre_prior, resize
from camkd.evaluate import metrics
from support.evaluation_inputs import random_maps

seeds = st.integers(0, 10_000)


def mean_likeness(student: Tensor, teacher: Tensor) -> dict[str, float]:
    return metrics.means(metrics.map_similarities(student, teacher))


# --- chance levels


def test_centre_prior_is_a_gaussian_of_a_quarter_side() -> None:
    prior = centre_prior(8, 16)
    assert prior.shape == (8, 16)
    torch.testing.assert_close(prior, prior.flip(0))
    torch.testing.assert_close(prior, prior.flip(1))
    assert prior[0, 0].item() == pytest.approx(np.exp(-((3.5 / 2) ** 2 + (7.5 / 4) ** 2) / 2))


@given(st.integers(2, 200), seeds)
def test_derangement_has_no_fixed_points_and_is_deterministic(n: int, seed: int) -> None:
    permutation = metrics.derangement(n, seed)
    assert sorted(permutation.tolist()) == list(range(n))
    assert not (permutation == torch.arange(n)).any()
    assert (permutation == metrics.derangement(n, seed)).all()


@pytest.mark.parametrize("n", [0, 1])
def test_derangement_rejects_fewer_than_two(n: int) -> None:
    with pytest.raises(ValueError, match=f"got {n}"):
        metrics.derangement(n)


# --- similarity of maps


def test_likeness_of_a_scaled_copy_is_one_and_above_chance() -> None:
    teacher = random_maps(0, 64, 8, 8)
    values = mean_likeness(teacher * 3, teacher)
    names = ("cam_cosine", "cam_pearson", "cam_spearman", "cam_iou", "cam_pointing_match")
    assert list(values) == [f"{name}{suffix}" for name in names for suffix in ("", "_centre", "_shuffled")]
    for name in names:
        assert values[name] == pytest.approx(1, abs=1e-6)
    assert abs(values["cam_pearson_shuffled"]) < 0.06
    assert abs(values["cam_spearman_shuffled"]) < 0.06
    assert values["cam_iou_shuffled"] == pytest.approx(0.11, abs=0.04)  # two random fifths of the cells


def test_chance_levels_compare_with_another_image_and_the_centre() -> None:
    student = random_maps(1, 6, 4, 4)
    teacher = random_maps(2, 6, 8, 8)
    values = mean_likeness(student, teacher)
    student = resize(student, (8, 8))
    other_teacher = teacher[metrics.derangement(6)]
    centre = centre_prior(8, 8).expand(6, 8, 8)
    assert values["cam_cosine"] == pytest.approx(metrics.cosine(student, teacher).mean().item())
    assert values["cam_cosine_shuffled"] == pytest.approx(metrics.cosine(student, other_teacher).mean().item())
    assert values["cam_pearson_centre"] == pytest.approx(metrics.pearson(student, centre).mean().item())
    assert values["cam_pointing_match_centre"] == metrics.pointing_match(student, centre).mean().item()


def test_maps_are_compared_at_the_larger_number_of_rows_and_columns() -> None:
    student = random_maps(1, 2, 4, 10)
    teacher = random_maps(2, 2, 6, 3)
    for a, b in ((student, teacher), (teacher, student)):
        resized_a, resized_b = metrics.to_common_grid(a, b)
        torch.testing.assert_close(resized_a, resize(a, (6, 10)))
        torch.testing.assert_close(resized_b, resize(b, (6, 10)))
    values = mean_likeness(student, teacher)
    large_student = resize(student, (6, 10))
    large_teacher = resize(teacher, (6, 10))
    centre = centre_prior(6, 10).expand(2, 6, 10)
    assert values["cam_pearson"] == pytest.approx(metrics.pearson(large_student, large_teacher).mean().item())
    assert values["cam_cosine_centre"] == pytest.approx(metrics.cosine(large_student, centre).mean().item())
    assert {type(value) for value in values.values()} == {float}, "must be JSON-serializable"
    shuffled = metrics.map_similarities(student, teacher)["cam_cosine_shuffled"]  # of two images, the other one
    torch.testing.assert_close(shuffled, metrics.cosine(large_student, large_teacher.flip(0)))


def test_single_image_has_no_shuffled_chance_level() -> None:
    values = mean_likeness(random_maps(0, 1, 4, 4), random_maps(1, 1, 4, 4))
    assert "cam_cosine_centre" in values
    assert "cam_cosine_shuffled" not in values


@pytest.mark.parametrize(("students", "teachers"), [(2, 3), (0, 0)])
def test_unequal_or_empty_maps_are_rejected(students: int, teachers: int) -> None:
    with pytest.raises(ValueError, match=f"got {students} student maps and {teachers} teacher maps"):
        metrics.map_similarities(torch.zeros(students, 4, 4), torch.zeros(teachers, 4, 4))


# --- outcomes


@given(seeds, st.integers(1, 40))
def test_outcome_masks_partition_the_images(seed: int, n: int) -> None:
    student, teacher, labels = torch.randint(3, (3, n), generator=torch.Generator().manual_seed(seed))
    masks = metrics.outcome_masks(student, teacher, labels)
    assert torch.equal(torch.stack(list(masks.values())).sum(0), torch.ones(n, dtype=torch.int64))
    correct = {"only_teacher": (False, True), "only_student": (True, False), "both_wrong": (False, False)}
    for name, expected in correct.items():
        rows = [i for i in range(n) if (bool(student[i] == labels[i]), bool(teacher[i] == labels[i])) == expected]
        assert masks[name].nonzero().flatten().tolist() == rows


def test_means_by_outcome_average_over_each_group() -> None:
    student = random_maps(1, 6, 4, 4)
    teacher = random_maps(2, 6, 4, 4)
    mask = torch.tensor([True, False, True, False, False, False])
    groups = metrics.means_by_outcome(metrics.map_similarities(student, teacher), {"some": mask, "none": mask & ~mask})
    assert groups["none"] == {"images": 0}
    assert groups["some"]["images"] == 2
    expected = (metrics.spearman(student, teacher)[0] + metrics.spearman(student, teacher)[2]) / 2
    assert groups["some"]["cam_spearman"] == pytest.approx(expected.item())
    other_teacher = teacher[metrics.derangement(6)]  # the other image may be of any outcome
    expected = (metrics.cosine(student, other_teacher)[0] + metrics.cosine(student, other_teacher)[2]) / 2
    assert groups["some"]["cam_cosine_shuffled"] == pytest.approx(expected.item())
