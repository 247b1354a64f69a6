"""Agreement of student and teacher maps: means, chance levels and outcomes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from camkd.cams import center_prior, resize
from camkd.evaluate import metrics
from support.evaluation_inputs import random_maps

seeds = st.integers(0, 10_000)


def mean_similarities(student: Tensor, teacher: Tensor, class_ids: Tensor | None = None) -> dict[str, float]:
    """Return the mean similarities, for maps of one class unless ``class_ids`` are given."""
    if class_ids is None:
        class_ids = torch.zeros(len(student), dtype=torch.int64)
    return metrics.means(metrics.map_similarities(student, teacher, class_ids))


def reference_mean_map(maps: Tensor, class_ids: list[int], image: int) -> Tensor:
    """Average the maps of the other images of the class; of all other images if there is none of the class."""
    others = [j for j in range(len(maps)) if j != image]
    of_class = [j for j in others if class_ids[j] == class_ids[image]]
    total = torch.zeros(maps.shape[1:], dtype=torch.float64)
    for j in of_class or others:
        total += maps[j]
    return total / len(of_class or others)


# --- chance levels


def test_center_prior_is_a_gaussian_of_a_quarter_side() -> None:
    prior = center_prior(8, 16)
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


def test_similarity_of_a_scaled_copy_is_one_and_above_chance() -> None:
    teacher = random_maps(0, 64, 8, 8)
    values = mean_similarities(teacher * 3, teacher)
    names = ("cam_cosine", "cam_pearson", "cam_spearman", "cam_iou", "cam_pointing_match")
    assert list(values) == [f"{name}{suffix}" for name in names for suffix in ("", "_center", "_mean_map")]
    for name in names:
        assert values[name] == pytest.approx(1, abs=1e-6)
    assert abs(values["cam_pearson_mean_map"]) < 0.06
    assert abs(values["cam_spearman_mean_map"]) < 0.06
    assert values["cam_iou_mean_map"] == pytest.approx(0.11, abs=0.04)  # two random fifths of the cells


def test_chance_levels_compare_image_independent_maps_with_the_teacher() -> None:
    student = random_maps(1, 6, 4, 4)
    teacher = random_maps(2, 6, 8, 8)
    class_ids = [3, 1, 3, 3, 1, 7]
    values = metrics.map_similarities(student, teacher, torch.tensor(class_ids))
    center = center_prior(8, 8)[None]
    for i in range(6):
        mean_map = reference_mean_map(teacher, class_ids, i).float()[None]
        teacher_map = teacher[i][None]
        student_map = resize(student[i][None], (8, 8))
        assert values["cam_cosine"][i] == pytest.approx(metrics.cosine(student_map, teacher_map).item())
        for name, similarity in (
            ("cam_cosine", metrics.cosine),
            ("cam_pearson", metrics.pearson),
            ("cam_spearman", metrics.spearman),
            ("cam_iou", metrics.iou_top),
            ("cam_pointing_match", metrics.pointing_match),
        ):
            for suffix, baseline in (("center", center), ("mean_map", mean_map)):
                expected = similarity(baseline, teacher_map).item()
                assert values[f"{name}_{suffix}"][i] == pytest.approx(expected, abs=1e-6), (name, suffix)


@given(seeds)
def test_chance_levels_do_not_depend_on_the_student(seed: int) -> None:
    teacher = random_maps(seed, 5, 4, 4)
    class_ids = torch.tensor([0, 1, 0, 1, 1])
    values, other_values = (
        metrics.map_similarities(random_maps(seed + k, 5, 4, 4), teacher, class_ids) for k in (1, 2)
    )
    assert not torch.equal(values["cam_pearson"], other_values["cam_pearson"])
    for name in values:
        if name.endswith(("_center", "_mean_map")):
            assert torch.equal(values[name], other_values[name]), name


@given(seeds, st.integers(2, 12), st.integers(1, 4))
def test_mean_maps_of_others_against_a_loop(seed: int, n: int, classes: int) -> None:
    maps = random_maps(seed, n, 3, 5) * 10
    class_ids = torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))
    means = metrics.mean_maps_of_others(maps, class_ids)
    for i in range(n):
        expected = reference_mean_map(maps, class_ids.tolist(), i)
        torch.testing.assert_close(means[i].double(), expected, rtol=1e-5, atol=1e-5)


def test_own_map_has_no_part_in_the_mean_map() -> None:
    maps = random_maps(0, 4, 3, 3)
    class_ids = torch.tensor([0, 0, 1, 1])
    changed = maps.clone()
    changed[0] += 100
    means, changed_means = (metrics.mean_maps_of_others(m, class_ids) for m in (maps, changed))
    torch.testing.assert_close(changed_means[0], means[0], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(changed_means[1], means[1])
    torch.testing.assert_close(changed_means[2:], means[2:])


def test_maps_are_compared_at_the_larger_number_of_rows_and_columns() -> None:
    student = random_maps(1, 2, 4, 10)
    teacher = random_maps(2, 2, 6, 3)
    for a, b in ((student, teacher), (teacher, student)):
        resized_a, resized_b = metrics.to_common_grid(a, b)
        torch.testing.assert_close(resized_a, resize(a, (6, 10)))
        torch.testing.assert_close(resized_b, resize(b, (6, 10)))
    values = mean_similarities(student, teacher)
    large_student = resize(student, (6, 10))
    large_teacher = resize(teacher, (6, 10))
    center = center_prior(6, 10).expand(2, 6, 10)
    assert values["cam_pearson"] == pytest.approx(metrics.pearson(large_student, large_teacher).mean().item())
    assert values["cam_cosine_center"] == pytest.approx(metrics.cosine(center, large_teacher).mean().item())
    assert {type(value) for value in values.values()} == {float}, "must be JSON-serializable"
    mean_map = values["cam_cosine_mean_map"]  # of two images, the other one
    assert mean_map == pytest.approx(metrics.cosine(large_teacher.flip(0), large_teacher).mean().item())


def test_single_image_has_no_mean_map() -> None:
    values = mean_similarities(random_maps(0, 1, 4, 4), random_maps(1, 1, 4, 4))
    assert "cam_cosine_center" in values
    assert "cam_cosine_mean_map" not in values


@pytest.mark.parametrize(("students", "teachers"), [(2, 3), (0, 0)])
def test_unequal_or_empty_maps_are_rejected(students: int, teachers: int) -> None:
    with pytest.raises(ValueError, match=f"got {students} student maps and {teachers} teacher maps"):
        metrics.map_similarities(torch.zeros(students, 4, 4), torch.zeros(teachers, 4, 4), torch.zeros(teachers))


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
    similarities = metrics.map_similarities(student, teacher, torch.zeros(6, dtype=torch.int64))
    groups = metrics.means_by_outcome(similarities, {"some": mask, "none": mask & ~mask})
    assert groups["none"] == {"images": 0}
    assert groups["some"]["images"] == 2
    expected = (metrics.spearman(student, teacher)[0] + metrics.spearman(student, teacher)[2]) / 2
    assert groups["some"]["cam_spearman"] == pytest.approx(expected.item())
    mean_maps = torch.stack([reference_mean_map(teacher, [0] * 6, i).float() for i in range(6)])  # of any outcome
    expected = metrics.cosine(mean_maps, teacher)[[0, 2]].mean()
    assert groups["some"]["cam_cosine_mean_map"] == pytest.approx(expected.item())
