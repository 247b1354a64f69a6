"""Terms on maps: class activation maps and attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional as F

from camkd.cams import resize
from camkd.types import Prediction

Classes = Literal["all", "target"]
Norm = Literal["l2", "minmax", "raw"]
EPSILON = 1e-6


def normalise(maps: Tensor, norm: Norm) -> Tensor:
    """Flatten ``(N, K, h, w)`` to ``(N, K, h w)`` and take away each map's scale.

    ``l2``: unit Euclidean length; ``minmax``: the range becomes 0..1; ``raw``: logit units as they are.
    A constant map stays finite (``minmax`` turns it into zeros).
    """
    flat = maps.flatten(2)
    if norm == "l2":
        return F.normalize(flat, dim=2, eps=EPSILON)
    if norm == "minmax":
        low, high = flat.amin(2, keepdim=True), flat.amax(2, keepdim=True)
        return (flat - low) / (high - low + EPSILON)
    return flat


def cam_distance(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    classes: Classes = "all",
    norm: Norm = "l2",
    pool: int = 4,
    shown: Tensor | None = None,
) -> Tensor:
    """How far the student's maps are from the teacher's: two ``(N, K, h, w)`` to ``(N,)``.

        d[k] = || n(pool(student[k])) - n(pool(teacher[k])) ||^2     (``raw``: divided by the number of cells)

    pooled to ``pool`` x ``pool`` cells and normalised by ``norm``; the mean over all classes, or the label's class
    (mixed labels: weighted by the label). With ``l2`` this is ``2 - 2 cos`` and lies in 0..4 for every pair of
    networks, so that a weight means the same thing from pair to pair. All classes, pooled and normalised: CAT-KD,
    Guo et al. 2023, arXiv 2304.12777.

    Where ``shown (N, k)`` says which classes the teacher's maps are of, the others take no part: ``all`` is the mean
    over the ``k``, and a label that is not among them costs nothing.
    """
    if shown is not None:
        weights = labels if labels.ndim == 2 else F.one_hot(labels, int(student.shape[1]))
        labels = weights.gather(1, shown)
        student = student.gather(1, shown[:, :, None, None].expand(-1, -1, *student.shape[2:]))
    size = (pool, pool)
    difference = normalise(resize(student, size), norm) - normalise(resize(teacher, size), norm)
    per_class = difference.square().mean(2) if norm == "raw" else difference.square().sum(2)
    if classes == "all":
        return per_class.mean(1)
    if labels.ndim == 1:
        return per_class.gather(1, labels[:, None]).squeeze(1)
    return (per_class * labels).sum(1)


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Attention transfer between features ``(N, C, h, w)`` and ``(N, C', h', w')``: ``-> (N,)``.

    ``mean_xy (Q_s / |Q_s| - Q_t / |Q_t|)^2`` with ``Q = sum_c A[c]^2``, on the teacher's grid. Zagoruyko and Komodakis
    2016, arXiv 1612.03928, the mean over cells as in the authors' program, whose weight for it is 1,000.
    """
    grid = (int(teacher.shape[-2]), int(teacher.shape[-1]))
    ours = normalise(resize(student.square().sum(1, keepdim=True), grid), "l2")
    theirs = normalise(teacher.square().sum(1, keepdim=True), "l2")
    return (ours - theirs).square().mean((1, 2))


@dataclass(frozen=True)
class CAM:
    """Distance between student's and teacher's class activation maps."""

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "cams"})
    asks_teacher: ClassVar[bool] = True
    classes: Classes = "all"
    norm: Norm = "l2"
    pool: int = 4

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        assert student.cams is not None and teacher is not None and teacher.cams is not None
        maps = teacher.cams.detach()
        return cam_distance(student.cams, maps, labels, self.classes, self.norm, self.pool, teacher.shown)


@dataclass(frozen=True)
class Attention:
    """Attention transfer on the last spatial layer."""

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "features"})
    asks_teacher: ClassVar[bool] = True

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        assert student.features is not None and teacher is not None and teacher.features is not None
        return attention_distance(student.features, teacher.features.detach())
