"""Loss terms on class activation maps: the distance between maps, and logit distillation per image region."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from camkd.cams import center_prior, resize
from camkd.cams.gather import gather_classes
from camkd.distill.losses.logits import kd
from camkd.distill.losses.normalization import MIN_LENGTH, min_size
from camkd.types import Prediction

Classes = Literal["all", "target", "top-1"]
Norm = Literal["l2", "minmax", "raw"]
Control = Literal["none", "shuffled", "center"]


def map_sizes(maps: Tensor, norm: Literal["l2", "minmax"]) -> Tensor:
    """Compute the size that a normalized map is divided by.

    Args:
        maps: Maps ``(N, K, h, w)``.
        norm: ``l2``: Euclidean norm. ``minmax``: range, the difference of the largest and the smallest cell.

    Returns:
        Sizes ``(N, K, 1)``, in units of the maps.

    Example:
        >>> maps = torch.tensor([[[[3.0, 4.0]]]])
        >>> map_sizes(maps, "l2").item(), map_sizes(maps, "minmax").item()
        (5.0, 1.0)
    """
    flat = maps.flatten(2)
    if norm == "minmax":
        return flat.amax(2, keepdim=True) - flat.amin(2, keepdim=True)
    length: Tensor = torch.linalg.vector_norm(flat, dim=2, keepdim=True)
    return length


def normalize_maps(maps: Tensor, norm: Norm, smallest: Tensor | float = MIN_LENGTH) -> Tensor:
    """Flatten each map and normalize its scale.

    Args:
        maps: Maps ``(N, K, h, w)``.
        norm: ``l2``: divide by the Euclidean norm. ``minmax``: shift and scale to the range 0..1, so that constant maps
            become zeros. ``raw``: keep logit units.
        smallest: Smallest norm or range that a map is divided by.

    Returns:
        Normalized maps ``(N, K, h * w)``. The gradient is bounded for zero maps too.

    Example:
        >>> normalize_maps(torch.tensor([[[[3.0, 4.0]]]]), "l2")
        tensor([[[0.6000, 0.8000]]])
    """
    flat = maps.flatten(2)
    if norm == "raw":
        return flat
    if norm == "minmax":
        flat = flat - flat.amin(2, keepdim=True)
    return flat / torch.clamp(map_sizes(maps, norm), min=smallest)


def cam_distance(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    classes: Literal["all", "target"] = "all",
    norm: Norm = "l2",
    pool: int = 4,
    class_ids: Tensor | None = None,
) -> Tensor:
    """Compute the distance between the class activation maps of student and teacher.

        d[k] = || n(pool(student[k])) - n(pool(teacher[k])) ||^2

    ``pool()`` averages a map over a grid of ``pool`` x ``pool`` cells; a map with fewer cells is interpolated
    bilinearly. ``n()`` is `normalize_maps`. The loss is the mean of ``d`` over all classes, or ``d`` of the label's
    class.

    With ``l2`` the distance of nonzero maps is ``2 - 2 * cos``, in 0..4. With ``raw`` the distance is divided by the
    mean over classes of ``|| pool(teacher[k]) ||^2``. It is then a relative squared error, and scaling the logits of
    both networks leaves the loss unchanged.

    Maps near zero, as those of a zero-initialized head, are divided by more than their size. The smallest divisor is
    0.5 % of the root mean square over classes of the teacher's sizes, and at least 0.01 logits. So the gradient of
    ``d[k]`` with respect to a pooled map of ``l2`` is at most 4 divided by the smallest divisor. Larger maps are not
    affected. The divisor of ``raw`` is at least ``0.01^2``.

    Source: CAT-KD with all classes, pooled and normalized, Guo et al. 2023, arXiv 2304.12777. The authors' heads have
    no bias, and a pooled map with more cells than the map repeats cells.

    Args:
        student: Maps of the student, ``(N, K, h, w)``.
        teacher: Maps of the teacher, ``(N, K, h', w')``; with ``class_ids`` ``(N, k, h', w')``.
        labels: Class indices ``(N,)``, or class probabilities ``(N, K)`` of mixed images. For ``target``, the loss of a
            mixed image is the sum of ``d`` weighted by the probabilities.
        classes: Compared classes: ``all``, or ``target`` for the label's class.
        norm: Normalization of a map: ``l2``, ``minmax`` or ``raw``.
        pool: Side of the pooled maps in cells.
        class_ids: Classes of the teacher's maps, ``(N, k)``. None: all classes. Classes without a map are ignored:
            ``all`` is the mean over the ``k`` classes, and ``target`` is 0 if the label is none of the ``k`` classes.

    Returns:
        Distance per image, ``(N,)``, without unit.

    Example:
        >>> student = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
        >>> teacher = torch.tensor([[[[0.0, 5.0], [0.0, 0.0]]]])
        >>> cam_distance(student, teacher, torch.tensor([0]), pool=2)  # orthogonal maps
        tensor([2.])
    """
    weights = labels if labels.ndim == 2 else F.one_hot(labels, int(student.shape[1]))
    if class_ids is not None:
        weights = weights.gather(1, class_ids)
        student = gather_classes(student, class_ids)
    student_maps = resize(student, (pool, pool))
    teacher_maps = resize(teacher, (pool, pool))
    smallest = MIN_LENGTH if norm == "raw" else min_size(map_sizes(teacher_maps, norm))
    difference = normalize_maps(student_maps, norm, smallest) - normalize_maps(teacher_maps, norm, smallest)
    per_class = difference.square().sum(2)
    if norm == "raw":
        per_class = per_class / teacher_maps.square().sum((2, 3)).mean(1, keepdim=True).clamp(min=MIN_LENGTH**2)
    return per_class.mean(1) if classes == "all" else (per_class * weights).sum(1)


def control_maps(maps: Tensor, control: Control) -> Tensor:
    """Replace the spatial layout of maps and keep the mean of each map, for control experiments.

    The mean of a map, ``mean_xy(map)``, is its contribution to the logit. The new maps have the same means, but wrong
    locations. If training with the new maps improves a student, the locations in the teacher's maps are
    not the cause.

    Args:
        maps: Maps of the teacher, ``(N, K, h, w)``.
        control: ``shuffled``: the layout of another image of the batch, ``maps[n - 1]``. ``center``: a Gaussian in the
            center, `camkd.cams.center_prior`. ``none``: ``maps`` unchanged.

    Returns:
        Maps ``(N, K, h, w)`` with the same means.

    Example:
        >>> control_maps(torch.tensor([[[[1.0, 3.0]]], [[[7.0, 5.0]]]]), "shuffled").squeeze()
        tensor([[3., 1.],
                [5., 7.]])
    """
    means = maps.mean((2, 3), keepdim=True)
    if control == "shuffled":
        other = maps.roll(1, 0)
        return other - other.mean((2, 3), keepdim=True) + means
    if control == "center":
        prior = center_prior(*(int(side) for side in maps.shape[2:])).to(maps)
        return means * (prior / prior.mean())
    return maps


def sdd(student: Prediction, teacher: Prediction, beta: float = 2.0, temperature: float = 4.0, pool: int = 4) -> Tensor:
    """Compute scale decoupled distillation (SD-KD): the mean of `kd` over image regions.

        loss = mean_j w[j] * T^2 * KL(softmax(t[j] / T) || softmax(s[j] / T))

    The regions are the cells of grids of 1x1, 2x2, 4x4, ... cells, up to ``pool`` x ``pool``. ``s[j]`` and ``t[j]`` are
    the logits of region ``j``: the average of ``map + logits - mean_xy(map)`` over the region. A map with fewer cells
    than a grid is interpolated bilinearly. The weight ``w[j]`` is 1 if the teacher predicts the same class for the
    region as for the whole image, and ``beta`` otherwise. The size of a region has no influence on its weight.

    Source: Wei et al. 2024, arXiv 2403.13512. The mean over regions and ``beta = 2`` are those of the authors' code.
    The weights follow the paper, which compares predicted classes. The authors' code weights by correct and incorrect
    predictions, and repeats the cells of a map with fewer cells than a grid.

    Args:
        student: Logits ``(N, K)`` and maps ``(N, K, h, w)``.
        teacher: Logits ``(N, K)`` and maps ``(N, K, h', w')``. With ``class_ids (N, k)``, the maps are
            ``(N, k, h', w')``, and the softmax of a region is over these ``k`` classes. The softmax of the whole image,
            the 1x1 grid, is always over all classes.
        beta: Weight of regions where the teacher predicts another class than for the whole image.
        temperature: Temperature ``T``, more than 0.
        pool: Maximum side of a grid in cells. The finest grid has the largest power of 2 up to ``pool``.

    Returns:
        Loss per image in nats, ``(N,)``.

    Example:
        >>> student = Prediction(torch.randn(2, 10), torch.randn(2, 10, 8, 8))
        >>> teacher = Prediction(torch.randn(2, 10), torch.randn(2, 10, 4, 4))
        >>> sdd(student, teacher).shape
        torch.Size([2])
    """
    assert student.cams is not None and teacher.cams is not None
    class_ids = teacher.class_ids
    predicted = teacher.logits.argmax(1, keepdim=True)
    student_maps = student.cams + (student.logits - student.cams.mean((2, 3)))[:, :, None, None]
    teacher_logits = teacher.logits
    if class_ids is not None:
        teacher_logits = teacher.logits.gather(1, class_ids)
        student_maps = gather_classes(student_maps, class_ids)
    teacher_maps = teacher.cams + (teacher_logits - teacher.cams.mean((2, 3)))[:, :, None, None]
    total = kd(student.logits, teacher.logits, temperature)
    num_regions = 1
    side = 2
    while side <= pool:
        student_regions = resize(student_maps, (side, side)).flatten(2).transpose(1, 2)
        teacher_regions = resize(teacher_maps, (side, side)).flatten(2).transpose(1, 2)
        losses = kd(student_regions.flatten(0, 1), teacher_regions.flatten(0, 1), temperature)
        losses = losses.view(len(teacher_regions), -1)
        region_classes = teacher_regions.argmax(2)
        if class_ids is not None:
            region_classes = class_ids.gather(1, region_classes)
        total = total + torch.where(region_classes == predicted, losses, beta * losses).sum(1)
        num_regions += side * side
        side *= 2
    return total / num_regions


@dataclass(frozen=True)
class CAM:
    """Distance between the class activation maps of student and teacher. See `cam_distance`.

    ``CAM("top-1", "l2", 8)`` with a weight of 0.5 is the ``1 - cos`` of e2KD, Parchami-Araghi et al. 2024, arXiv
    2402.03119. The paper compares the positive part of Grad-CAM; this term compares the signed map. The authors enlarge
    both maps to the size of the image and compare all pixels; this term compares 8x8 cells. The authors' code uses no
    labels: its loss is ``1 - cos`` plus `kd` with ``T = 1``, each with a weight of 1. It also lists ``T = 5``, and
    weights of 0.2 to 10 for ``1 - cos``.

    Args:
        classes: Compared classes: ``all``, ``target`` for the label's class, or ``top-1`` for the class that the
            teacher predicts.
        norm: Normalization of a map: ``l2``, ``minmax`` or ``raw``.
        pool: Side of the pooled maps in cells.
        control: Kind of `control_maps` that replace the teacher's maps: ``none``, ``shuffled`` or ``center``.

    Example:
        >>> student = Prediction(torch.randn(2, 10), torch.randn(2, 10, 8, 8))
        >>> CAM(classes="top-1", pool=8)(student, student, torch.tensor([3, 7]))
        tensor([0., 0.])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "cams"})
    needs_teacher: ClassVar[bool] = True
    classes: Classes = "all"
    norm: Norm = "l2"
    pool: int = 4
    control: Control = "none"

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        assert student.cams is not None and teacher is not None and teacher.cams is not None
        teacher_maps = control_maps(teacher.cams.detach(), self.control)
        class_ids = teacher.class_ids
        if self.classes == "all":
            return cam_distance(student.cams, teacher_maps, labels, "all", self.norm, self.pool, class_ids)
        targets = teacher.logits.argmax(1) if self.classes == "top-1" else labels
        return cam_distance(student.cams, teacher_maps, targets, "target", self.norm, self.pool, class_ids)


@dataclass(frozen=True)
class SDD:
    """Scale decoupled distillation. See `sdd`. Wei et al. 2024, arXiv 2403.13512.

    Args:
        temperature: Temperature ``T``, more than 0.
        beta: Weight of regions where the teacher predicts another class than for the whole image.
        pool: Maximum side of a grid in cells. The finest grid has the largest power of 2 up to ``pool``.

    Example:
        >>> student = Prediction(torch.randn(2, 10), torch.randn(2, 10, 8, 8))
        >>> teacher = Prediction(torch.randn(2, 10), torch.randn(2, 10, 4, 4))
        >>> SDD(beta=1.0)(student, teacher, torch.tensor([3, 7])).shape
        torch.Size([2])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "cams"})
    needs_teacher: ClassVar[bool] = True
    temperature: float = 4.0
    beta: float = 2.0
    pool: int = 4

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        assert teacher is not None and teacher.cams is not None
        detached = teacher._replace(logits=teacher.logits.detach(), cams=teacher.cams.detach())
        return sdd(student, detached, self.beta, self.temperature, self.pool)
