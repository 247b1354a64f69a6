"""Agreement of student and teacher maps over a split: means, chance levels, and means by outcome.

Objects are often near the image center, so a map that does not depend on the image resembles the teacher's maps too.
Therefore every similarity has two chance levels, both against the teacher's maps: a Gaussian at the image center, and
the teacher's mean map of the other images.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from camkd.cams import center_prior, resize
from camkd.evaluate.metrics.map_similarity import cosine, iou_top, pearson, pointing_match, spearman
from camkd.types import CENTER, MEAN_MAP, ChanceLevel

SIMILARITIES = {
    "cam_cosine": cosine,
    "cam_pearson": pearson,
    "cam_spearman": spearman,
    "cam_iou": iou_top,
    "cam_pointing_match": pointing_match,
}
"""Similarity functions by their key in ``metrics.json``."""


def derangement(n: int, seed: int = 0) -> Tensor:
    """Draw a random permutation without fixed points.

    The permutation is a single cycle through all ``n`` images in random order. Equal ``n`` and ``seed`` give equal
    permutations.

    Args:
        n: Number of images, 2 or more.
        seed: Seed of the random order.

    Returns:
        For each image the index of another image, int64 ``(n,)``.

    Raises:
        ValueError: If ``n`` is less than 2.

    Example:
        >>> permutation = derangement(4)
        >>> sorted(permutation.tolist()), bool((permutation == torch.arange(4)).any())
        ([0, 1, 2, 3], False)
    """
    if n < 2:
        raise ValueError(f"n must be 2 or more, got {n}.")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    permutation = torch.empty_like(order)
    permutation[order] = order.roll(1)
    return permutation


def map_similarities(student_maps: Tensor, teacher_maps: Tensor, class_ids: Tensor) -> dict[str, Tensor]:
    """Compute all similarities of student and teacher maps and their chance levels, per image.

    Both maps of an image must be of the same class. All maps are first resized to a common grid, see `to_common_grid`.

    Args:
        student_maps: ``(N, h, w)``, with ``N >= 1``.
        teacher_maps: ``(N, H, W)``.
        class_ids: The class of each image's maps, ``(N,)``.

    Returns:
        Tensors ``(N,)`` by the name of the metric.

        - ``cam_cosine``, ``cam_pearson``, ``cam_spearman``, ``cam_iou``, ``cam_pointing_match``: the similarities.
        - ``*_center``, ``*_mean_map``: chance levels, the similarity of each map of `image_independent_maps` and the
          teacher's map. ``*_mean_map`` is absent for a single image.

    Raises:
        ValueError: If there are no images, or the numbers of maps differ.

    Example:
        >>> maps = torch.rand(1, 4, 4)
        >>> sorted(map_similarities(maps, torch.rand(1, 8, 8), torch.tensor([0])))[:2]
        ['cam_cosine', 'cam_cosine_center']
    """
    if len(student_maps) != len(teacher_maps) or not len(student_maps):
        raise ValueError(
            "student_maps and teacher_maps must hold one map per image and at least one image, "
            f"got {len(student_maps)} student maps and {len(teacher_maps)} teacher maps."
        )
    student, teacher = to_common_grid(student_maps, teacher_maps)
    baselines = image_independent_maps(teacher, class_ids)
    similarities = {}
    for name, similarity in SIMILARITIES.items():
        similarities[name] = similarity(student, teacher)
        for level, baseline in baselines.items():
            similarities[level.key(name)] = similarity(baseline, teacher)
    return similarities


def image_independent_maps(teacher_maps: Tensor, class_ids: Tensor) -> dict[ChanceLevel, Tensor]:
    """Build the maps of the chance levels: for each image, maps that are known without seeing the image.

    Args:
        teacher_maps: ``(N, h, w)``.
        class_ids: The class of each map, ``(N,)``.

    Returns:
        Maps ``(N, h, w)`` by chance level: `camkd.cams.center_prior`, and `mean_maps_of_others` unless there is only
        one image.
    """
    baselines = {CENTER: center_prior(*teacher_maps.shape[1:]).to(teacher_maps).expand_as(teacher_maps)}
    if len(teacher_maps) > 1:
        baselines[MEAN_MAP] = mean_maps_of_others(teacher_maps, class_ids)
    return baselines


def mean_maps_of_others(maps: Tensor, class_ids: Tensor) -> Tensor:
    """Average, for each image, the maps of the other images of the same class (leave-one-out mean).

    If an image is the only one of its class, the mean is over all other images.

    Args:
        maps: ``(N, h, w)``, with ``N >= 2``.
        class_ids: The class of each map, ``(N,)``.

    Returns:
        One mean map per image, ``(N, h, w)``.

    Example:
        >>> maps = torch.tensor([[[1.0, 0.0]], [[3.0, 4.0]], [[5.0, 2.0]]])
        >>> mean_maps_of_others(maps, torch.tensor([0, 0, 0])).tolist()
        [[[4.0, 3.0]], [[3.0, 1.0]], [[2.0, 2.0]]]
    """
    values = maps.double()
    _, class_index, counts = class_ids.unique(return_inverse=True, return_counts=True)
    sums = values.new_zeros(len(counts), *maps.shape[1:]).index_add_(0, class_index, values)
    others = (counts - 1)[class_index, None, None]
    of_class = (sums[class_index] - values) / others.clamp_min(1)
    of_all = (values.sum(0) - values) / (len(values) - 1)
    return torch.where(others > 0, of_class, of_all).to(maps.dtype)


def to_common_grid(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Resize two stacks of maps to the larger height and the larger width of both, with `camkd.cams.resize`.

    Args:
        a: Maps ``(N, h, w)``.
        b: Maps ``(N, H, W)``.

    Returns:
        Both stacks, ``(N, max(h, H), max(w, W))``.

    Example:
        >>> [maps.shape[1:] for maps in to_common_grid(torch.rand(1, 4, 4), torch.rand(1, 8, 8))]
        [torch.Size([8, 8]), torch.Size([8, 8])]
    """
    grid = (max(a.shape[1], b.shape[1]), max(a.shape[2], b.shape[2]))
    return resize(a, grid), resize(b, grid)


def outcome_masks(student: Tensor, teacher: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Split the images by the correctness of student and teacher.

    Args:
        student: Classes that the student predicts, ``(N,)``.
        teacher: Classes that the teacher predicts, ``(N,)``.
        labels: True classes ``(N,)``.

    Returns:
        Four masks ``(N,)`` bool; each image is in exactly one of them.

    Example:
        >>> masks = outcome_masks(*torch.tensor([[1, 0], [1, 1], [1, 1]]))
        >>> {name: int(mask.sum()) for name, mask in masks.items()}
        {'both_right': 1, 'only_teacher': 1, 'only_student': 0, 'both_wrong': 0}
    """
    student_right = student == labels
    teacher_right = teacher == labels
    return {
        "both_right": student_right & teacher_right,
        "only_teacher": ~student_right & teacher_right,
        "only_student": student_right & ~teacher_right,
        "both_wrong": ~student_right & ~teacher_right,
    }


def means_by_outcome(similarities: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Average each metric of `map_similarities` over each group of images.

    Args:
        similarities: Values ``(N,)`` by metric.
        masks: Masks ``(N,)`` bool by group, for example from `outcome_masks`.

    Returns:
        A dict for each group, with its number of images under the key ``images`` and the mean of each metric. A group
        without images has no means.

    Example:
        >>> masks = {"all": torch.tensor([True, True]), "none": torch.tensor([False, False])}
        >>> means_by_outcome({"cam_iou": torch.tensor([0.5, 1.0])}, masks)
        {'all': {'images': 2, 'cam_iou': 0.75}, 'none': {'images': 0}}
    """
    return {
        name: {"images": int(mask.sum()), **(means(similarities, mask) if mask.any() else {})}
        for name, mask in masks.items()
    }


def means(similarities: Mapping[str, Tensor], mask: Tensor | None = None) -> dict[str, float]:
    """Average each metric of `map_similarities` over the images.

    Args:
        similarities: Values ``(N,)`` by metric.
        mask: The images to average over, ``(N,)`` bool. Default: all.

    Returns:
        The mean of each metric.

    Example:
        >>> maps = torch.rand(2, 4, 4)
        >>> round(means(map_similarities(maps, maps, torch.tensor([0, 0])))["cam_cosine"], 4)
        1.0
    """
    return {
        name: (values if mask is None else values[mask]).double().mean().item() for name, values in similarities.items()
    }
