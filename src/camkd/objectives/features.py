"""Terms on features: attention transfer, relations between pictures.

Where student and teacher have different numbers of stages, they are paired from the deepest backwards, and the
earliest of the one that has more take no part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from camkd.cams import resize
from camkd.objectives.maps import EPSILON, normalise
from camkd.types import Prediction

Stages = tuple[Tensor, ...]


def stages_of(student: Prediction, teacher: Prediction | None) -> tuple[Stages, Stages]:
    """Both networks' stages, the teacher's without gradient."""
    assert student.features is not None and teacher is not None and teacher.features is not None
    return student.features, tuple(stage.detach() for stage in teacher.features)


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Attention transfer between features ``(N, C, h, w)`` and ``(N, C', h', w')``: ``-> (N,)``.

    ``mean_xy (Q_s / |Q_s| - Q_t / |Q_t|)^2`` with ``Q = sum_c A[c]^2``, on the teacher's grid. Zagoruyko and Komodakis
    2016, arXiv 1612.03928, the mean over cells as in the authors' program, whose weight for it is 1,000.
    """
    grid = (int(teacher.shape[-2]), int(teacher.shape[-1]))
    ours = normalise(resize(student.square().sum(1, keepdim=True), grid), "l2")
    theirs = normalise(teacher.square().sum(1, keepdim=True), "l2")
    return (ours - theirs).square().mean((1, 2))


def unit(vectors: Tensor) -> Tensor:
    """The last dimension with length 1; nothing, without a gradient, where there is none."""
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return torch.where(length > EPSILON, vectors / length.clamp(min=EPSILON), torch.zeros_like(vectors))


def similarity_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """How differently the pictures of a batch resemble each other: ``(b, ...)`` and ``(b, ...)`` to ``(b,)``.

    ``1 / b sum_m (G_s[n, m] - G_t[n, m])^2`` for picture ``n``, where ``G`` is ``A A^T`` with rows of unit length and
    ``A (b, C h w)`` the flattened features: the mean over the batch is ``|G_s - G_t|_F^2 / b^2``. Tung and Mori 2019,
    arXiv 1907.09682; the weight in the comparison of arXiv 1910.10699 is 3,000.
    """

    def similarities(features: Tensor) -> Tensor:
        flat = features.flatten(1)
        return unit(flat @ flat.T)

    return (similarities(student) - similarities(teacher)).square().mean(1)


def relational_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """How differently far the pictures of a batch are from each other: ``(b, C)`` and ``(b, C')`` to ``(b,)``.

    ``1 / b sum_m huber(d_s[n, m] - d_t[n, m])`` for picture ``n``, where ``d[n, m] = |e[n] - e[m]|`` in units of its
    mean over the pairs that differ, and ``huber(x)`` is ``x^2 / 2`` up to 1 and ``|x| - 1 / 2`` beyond. Distance-wise
    RKD, Park et al. 2019, arXiv 1904.05068, with the authors' program's mean where the paper has a sum; weight 25.
    """

    def distances(embedding: Tensor) -> Tensor:
        apart = torch.cdist(embedding, embedding, compute_mode="donot_use_mm_for_euclid_dist")
        mean = apart.sum() / (apart > 0).sum().clamp(min=1)
        return apart / mean.clamp(min=EPSILON)

    return F.smooth_l1_loss(distances(student), distances(teacher), reduction="none").mean(1)


def relational_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """How different the angles are under which a batch's pictures see two others: ``(b, C)``, ``(b, C')`` to ``(b,)``.

    ``1 / b^2 sum_ik huber(cos_s[i, n, k] - cos_t[i, n, k])`` for picture ``n``, where ``cos[i, n, k]`` is the cosine of
    the angle between ``e[i] - e[n]`` and ``e[k] - e[n]``, 0 where one of them is nothing. Angle-wise RKD, Park et al.
    2019, arXiv 1904.05068, with the authors' program's mean where the paper has a sum; weight 50. Takes memory for
    ``b^2 C`` and ``b^3`` numbers.
    """

    def cosines(embedding: Tensor) -> Tensor:
        ways = unit(embedding[None] - embedding[:, None])
        return ways @ ways.transpose(1, 2)

    return F.smooth_l1_loss(cosines(student), cosines(teacher), reduction="none").mean((1, 2))


@dataclass(frozen=True)
class Attention:
    """Attention transfer, summed over the stages; on the last alone where one of the networks has no other."""

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "features"})
    asks_teacher: ClassVar[bool] = True

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        ours, theirs = stages_of(student, teacher)
        pairs = zip(reversed(ours), reversed(theirs), strict=False)
        return torch.stack([attention_distance(*pair) for pair in pairs]).sum(0)


@dataclass(frozen=True)
class Similarity:
    """Similarity preserving on the averaged layer; a value is of a picture in its batch."""

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "features"})
    asks_teacher: ClassVar[bool] = True

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        ours, theirs = stages_of(student, teacher)
        return similarity_distance(ours[-1], theirs[-1])


@dataclass(frozen=True)
class RelationalDistance:
    """Distance-wise RKD on the average of the averaged layer; a value is of a picture in its batch."""

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "features"})
    asks_teacher: ClassVar[bool] = True

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        ours, theirs = stages_of(student, teacher)
        return relational_distance(ours[-1].mean((2, 3)), theirs[-1].mean((2, 3)))


@dataclass(frozen=True)
class RelationalAngle:
    """Angle-wise RKD on the average of the averaged layer; a value is of a picture in its batch."""

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "features"})
    asks_teacher: ClassVar[bool] = True

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        ours, theirs = stages_of(student, teacher)
        return relational_angle(ours[-1].mean((2, 3)), theirs[-1].mean((2, 3)))
