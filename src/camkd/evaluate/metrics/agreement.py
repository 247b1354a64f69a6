"""How alike two models' maps are over many pictures: means, beside chance levels, and by who is right.

Maps of natural pictures resemble each other before anybody learns anything, so each figure has two chance levels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from camkd.cams import centre_prior, resize
from camkd.evaluate.metrics.map_similarity import cosine, iou_top, pearson, pointing_match, spearman

LIKENESS = {
    "cam_cosine": cosine,
    "cam_pearson": pearson,
    "cam_spearman": spearman,
    "cam_iou": iou_top,
    "cam_pointing_match": pointing_match,
}


def derangement(n: int, seed: int = 0) -> Tensor:
    """Another picture for each of ``n``: a permutation ``(n,)`` that leaves nothing in place.

    One cycle through all pictures in random order; the same for the same ``n`` and ``seed``. Raises
    ValueError for fewer than two pictures.

    >>> sorted(shuffled(4).tolist()), bool((shuffled(4) == torch.arange(4)).any())
    ([0, 1, 2, 3], False)
    """
    if n < 2:
        raise ValueError(f"another picture needs at least 2 pictures, there are {n}")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    other = torch.empty_like(order)
    other[order] = order.roll(1)
    return other


def map_likeness(student_maps: Tensor, teacher_maps: Tensor) -> dict[str, Tensor]:
    """Each figure of likeness and its chance levels, for every picture: ``(N,h,w), (N,H,W) -> {name: (N,)}``.

    One map a picture of one class; both are brought to the larger grid first. ``cam_cosine``, ``cam_pearson``,
    ``cam_spearman``, ``cam_iou``, ``cam_pointing_match``; each ``*_shuffled`` (the student's map against the teacher's
    map of another picture, `shuffled`) and ``*_centre`` (the student's map against `centre_prior`). A single picture
    has no other, so it gets no ``*_shuffled``. Raises ValueError without pictures or when their numbers differ.

    >>> sorted(map_likeness(torch.rand(1, 4, 4), torch.rand(1, 8, 8)))[:2]
    ['cam_cosine', 'cam_cosine_centre']
    """
    if len(student_maps) != len(teacher_maps) or not len(student_maps):
        raise ValueError(
            f"{len(student_maps)} student maps and {len(teacher_maps)} teacher maps: give one pair a picture"
        )
    student, teacher = to_common_grid(student_maps, teacher_maps)
    against = {"": teacher, "_centre": centre_prior(*teacher.shape[1:]).to(teacher).expand_as(teacher)}
    if len(teacher) > 1:
        against["_shuffled"] = teacher[derangement(len(teacher)).to(teacher.device)]
    return {
        name + suffix: figure(student, other) for name, figure in LIKENESS.items() for suffix, other in against.items()
    }


def to_common_grid(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Maps ``(N,h,w)`` and ``(N,H,W)``, brought by `resize` to the larger number of rows and of columns.

    >>> [maps.shape[1:] for maps in to_common_grid(torch.rand(1, 4, 4), torch.rand(1, 8, 8))]
    [torch.Size([8, 8]), torch.Size([8, 8])]
    """
    grid = (max(a.shape[1], b.shape[1]), max(a.shape[2], b.shape[2]))
    return resize(a, grid), resize(b, grid)


def outcomes(student: Tensor, teacher: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Who is right: four masks ``(N,) bool`` of which each picture is in exactly one; all inputs are classes ``(N,)``.

    >>> {name: int(of.sum()) for name, of in outcomes(*torch.tensor([[1, 0], [1, 1], [1, 1]])).items()}
    {'both_right': 1, 'only_teacher': 1, 'only_student': 0, 'both_wrong': 0}
    """
    own, theirs = student == labels, teacher == labels
    return {
        "both_right": own & theirs,
        "only_teacher": ~own & theirs,
        "only_student": own & ~theirs,
        "both_wrong": ~own & ~theirs,
    }


def by_outcome(likeness: Mapping[str, Tensor], groups: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """The means of `map_likeness` over each group of `outcomes`, with its number of ``pictures``; no mean of none."""
    return {
        name: {"pictures": int(group.sum()), **(means(likeness, group) if group.any() else {})}
        for name, group in groups.items()
    }


def means(likeness: Mapping[str, Tensor], group: Tensor | None = None) -> dict[str, float]:
    """The mean of each figure of `map_likeness` over all pictures, or over a ``group (N,) bool`` of them.

    >>> maps = torch.rand(2, 4, 4)
    >>> round(means(map_likeness(maps, maps))["cam_cosine"], 4)
    1.0
    """
    return {
        name: (values if group is None else values[group]).double().mean().item() for name, values in likeness.items()
    }
