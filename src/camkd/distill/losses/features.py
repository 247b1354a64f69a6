"""Terms on features: attention transfer, hints, relations between pictures, knowledge review.

Where student and teacher have different numbers of stages, they are paired from the deepest backwards, and the
earliest of the one that has more take no part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camkd.cams import resize
from camkd.distill.losses.maps import EPSILON, normalise
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


def hierarchical_context(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error at several resolutions: two ``(N, C, h, w)`` to ``(N,)``.

        (m + sum_i m[i] / 2^i) / (1 + sum_i 1 / 2^i),    i = 1, 2, 3

    with ``m`` the mean square of the difference and ``m[i]`` that of both pooled to 4x4, 2x2 and 1x1 cells; grids that
    are not coarser than the features take no part. Chen et al. 2021, arXiv 2104.09044 (HCL).
    """
    total, weights, weight = (student - teacher).square().mean((1, 2, 3)), 1.0, 1.0
    for cells in (4, 2, 1):
        if cells < min(student.shape[2:]):
            weight /= 2
            ours, theirs = (F.adaptive_avg_pool2d(features, cells) for features in (student, teacher))
            total = total + weight * (ours - theirs).square().mean((1, 2, 3))
            weights += weight
    return total / weights


@dataclass(frozen=True)
class Attention:
    """Attention transfer, summed over the stages; on the last alone where one of the networks has no other."""

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "features"})
    needs_teacher: ClassVar[bool] = True

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        ours, theirs = stages_of(student, teacher)
        pairs = zip(reversed(ours), reversed(theirs), strict=False)
        return torch.stack([attention_distance(*pair) for pair in pairs]).sum(0)


@dataclass(frozen=True)
class Similarity:
    """Similarity preserving on the averaged layer; a value is of a picture in its batch."""

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "features"})
    needs_teacher: ClassVar[bool] = True

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        ours, theirs = stages_of(student, teacher)
        return similarity_distance(ours[-1], theirs[-1])


@dataclass(frozen=True)
class RelationalDistance:
    """Distance-wise RKD on the average of the averaged layer; a value is of a picture in its batch."""

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "features"})
    needs_teacher: ClassVar[bool] = True

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        ours, theirs = stages_of(student, teacher)
        return relational_distance(ours[-1].mean((2, 3)), theirs[-1].mean((2, 3)))


@dataclass(frozen=True)
class RelationalAngle:
    """Angle-wise RKD on the average of the averaged layer; a value is of a picture in its batch."""

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "features"})
    needs_teacher: ClassVar[bool] = True

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        ours, theirs = stages_of(student, teacher)
        return relational_angle(ours[-1].mean((2, 3)), theirs[-1].mean((2, 3)))


# --- terms with weights of their own


@dataclass(frozen=True)
class _Connectable:
    """A term whose weights are made when both networks are known, by ``Objective.connected``."""

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "features"})
    needs_teacher: ClassVar[bool] = True

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        raise RuntimeError(f"{type(self).__name__} has no weights yet: use Objective.connected")


@dataclass(frozen=True)
class Hint(_Connectable):
    """The teacher's middle stage, regressed from the student's: ``Regressor``."""

    def connect(self, student: Prediction, teacher: Prediction) -> Regressor:
        ours, theirs = stages_of(student, teacher)
        return Regressor(middle(ours).shape[1], middle(theirs).shape[1])


@dataclass(frozen=True)
class Review(_Connectable):
    """The teacher's stages, each from the student's of its level and the deeper ones: ``Reviewer``."""

    def connect(self, student: Prediction, teacher: Prediction) -> Reviewer:
        ours, theirs = stages_of(student, teacher)
        return Reviewer([stage.shape[1] for stage in ours], [stage.shape[1] for stage in theirs])


def middle(stages: Stages) -> Tensor:
    """The middle stage, of two in the middle the earlier; the only one where there is no other."""
    return stages[(len(stages) - 1) // 2]


class Regressor(nn.Module):
    """``mean_cxy (r(A_s) - A_t)^2`` per picture between the middle stages, ``r`` a 1x1 convolution with a bias.

    The student's stage is brought to the teacher's grid first. FitNets, Romero et al. 2014, arXiv 1412.6550, which
    train in two stages, with the hint alone up to the middle and then without it. Here hint and labels are learnt
    together, as in the comparison of arXiv 1910.10699, whose weight for it is 100; ``schedule=early`` comes nearest to
    the paper.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "features"})
    needs_teacher: ClassVar[bool] = True

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.regressor = nn.Conv2d(inputs, outputs, 1)

    def forward(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        ours, theirs = (middle(stages) for stages in stages_of(student, teacher))
        regressed: Tensor = self.regressor(resize(ours, (theirs.shape[2], theirs.shape[3])))
        return (regressed - theirs).square().mean((1, 2, 3))


class Fusion(nn.Module):
    """Attention-based fusion (ABF) of one level with what was fused of the deeper ones.

        f = w[0] x' + w[1] up(deeper),    w = sigmoid(conv1x1(x', up(deeper))) at each place

    with ``x' = norm(conv1x1(x))``, and ``f = x'`` at the deepest level; ``norm(conv3x3(f))`` is what the teacher's
    level is compared with.
    """

    def __init__(self, inputs: int, middle: int, outputs: int, deepest: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(inputs, middle, 1, bias=False), nn.BatchNorm2d(middle))
        self.attention = None if deepest else nn.Sequential(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid())
        self.expand = nn.Sequential(nn.Conv2d(middle, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))
        for layer in (self.reduce[0], self.expand[0]):
            nn.init.kaiming_uniform_(layer.weight, a=1)  # type: ignore[arg-type]

    def forward(self, x: Tensor, deeper: Tensor | None, grid: torch.Size) -> tuple[Tensor, Tensor]:
        """What is compared with the teacher, on its ``grid``, and what was fused, ``(N, middle, h, w)``."""
        fused: Tensor = self.reduce(x)
        if self.attention is not None and deeper is not None:
            deeper = F.interpolate(deeper, fused.shape[2:], mode="nearest")
            weights = self.attention(torch.cat([fused, deeper], 1))
            fused = fused * weights[:, :1] + deeper * weights[:, 1:]
        brought = fused if fused.shape[2:] == grid else F.interpolate(fused, grid, mode="nearest")
        return self.expand(brought), fused


class Reviewer(nn.Module):
    """Knowledge review: ``hierarchical_context`` of fused student and teacher levels, summed, per picture.

    The levels are the stages and, deepest, the averaged layer's average; a ``Fusion`` each, in at most 512 channels.
    Chen et al. 2021, arXiv 2104.09044; as in the authors' program grids are matched by the nearest cell. Its weight is
    1 there (0.6 to 8 by pair of networks on CIFAR-100), rising over the first 20 of 240 epochs: ``schedule=warm``.
    In training the normalisation sees the batch, so a value is of a picture in its batch, of two at least.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "features"})
    needs_teacher: ClassVar[bool] = True

    def __init__(self, student: list[int], teacher: list[int]) -> None:
        super().__init__()
        ours, theirs = ([*channels, channels[-1]][::-1] for channels in (student, teacher))
        self.fusions = nn.ModuleList(
            Fusion(inputs, min(512, ours[0]), outputs, deepest=level == 0)
            for level, (inputs, outputs) in enumerate(zip(ours, theirs, strict=False))
        )

    def forward(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        ours, theirs = (
            [*stages, stages[-1].mean((2, 3), keepdim=True)][::-1] for stages in stages_of(student, teacher)
        )
        total, fused = torch.zeros(len(ours[0]), device=ours[0].device), None
        for fusion, x, target in zip(self.fusions, ours, theirs, strict=False):
            said, fused = fusion(x, fused, target.shape[2:])
            total = total + hierarchical_context(said, target)
        return total
