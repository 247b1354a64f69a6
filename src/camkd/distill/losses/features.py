"""Loss terms on features: attention transfer, hints, relations between the images of a batch, knowledge review.

The features of a network are its stages, from the input to the last spatial layer. ``at`` and ``review`` pair the
stages of student and teacher from the deepest backwards. If one network has more stages, its earliest stages are not
used. ``hint`` compares the middle stages; ``sp``, ``rkd-d`` and ``rkd-a`` compare the last stages.

A stage is the output of a layer as the network computes it, in most networks after the activation function. The last
stage is the input of the global pooling. The code of arXiv 1910.10699, a comparison of these methods, is the source
of the weights where the paper has none.

Lengths of features below `MIN_LENGTH` count as `MIN_LENGTH`, so that gradients are bounded for features near zero and
for equal features. The code of the authors has 1e-12 or no bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camkd.cams import resize
from camkd.distill.losses.normalization import MIN_LENGTH, unit_vectors
from camkd.types import Prediction

Stages = tuple[Tensor, ...]


def _stages(student: Prediction, teacher: Prediction | None) -> tuple[Stages, Stages]:
    """Return the stages of student and teacher, the teacher's without gradient."""
    assert student.features is not None and teacher is not None and teacher.features is not None
    return student.features, tuple(stage.detach() for stage in teacher.features)


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute attention transfer between two stages.

        loss = mean_xy (Q_s / |Q_s| - Q_t / |Q_t|)^2,    Q = sum_c A[c]^2

    If the grids differ, the features ``A`` are first pooled to the smaller height and the smaller width.

    Source: Zagoruyko and Komodakis 2016, arXiv 1612.03928. The loss is a mean over the cells, as in the authors' code,
    whose weight is 1,000. The authors' code compares equal grids only. The code of arXiv 1910.10699 pools before the
    square too, with the same weight.

    Args:
        student: Features ``A`` of the student, ``(N, C, h, w)``.
        teacher: Features of the teacher, ``(N, C', h', w')``.

    Returns:
        Loss per image, ``(N,)``, without unit.

    Example:
        >>> attention_distance(torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 3.0]]]]))
        tensor([1.])
    """
    grid = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))

    def attention(features: Tensor) -> Tensor:
        return unit_vectors(resize(features, grid).square().sum(1).flatten(1), MIN_LENGTH**2)

    return (attention(student) - attention(teacher)).square().mean(1)


def similarity_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute similarity-preserving distillation between the images of a batch.

        loss[n] = 1 / b * sum_m (G_s[n, m] - G_t[n, m])^2

    ``G`` is ``A @ A.T`` with rows of unit length. ``A (b, C * h * w)`` are the flattened features of the ``b`` images
    of the batch. The mean of the loss over the batch is ``|G_s - G_t|_F^2 / b^2``. Rows shorter than ``0.01 * |A|_F``
    are divided by this value. Source: Tung and Mori 2019, arXiv 1907.09682. The comparison of arXiv 1910.10699 uses a
    weight of 3,000.

    Args:
        student: Features of the student, ``(b, ...)``.
        teacher: Features of the teacher, ``(b, ...)``; the other dimensions may differ.

    Returns:
        Loss per image, ``(b,)``, without unit. It depends on the other images of the batch.

    Example:
        >>> similarity_distance(torch.eye(2), torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
        tensor([0., 0.])
    """

    def similarities(features: Tensor) -> Tensor:
        flat = features.flatten(1)
        return unit_vectors(flat @ flat.T, MIN_LENGTH * flat.norm().clamp(min=MIN_LENGTH))

    return (similarities(student) - similarities(teacher)).square().mean(1)


def relational_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute distance-wise relational knowledge distillation (RKD-D).

        loss[n] = 1 / b * sum_m huber(d_s[n, m] - d_t[n, m]),    d[n, m] = |e[n] - e[m]| / mean

    ``mean`` is the mean of the nonzero distances in the batch of ``b`` images.
    ``huber(x)`` is ``x^2 / 2`` up to ``|x| = 1`` and ``|x| - 1 / 2`` beyond.

    Source: Park et al. 2019, arXiv 1904.05068. The loss is a mean over ``m``, as in the authors' code, whose weight is
    25. The paper has a sum. The authors' code for classifiers scales embeddings to unit length first; the code of
    arXiv 1910.10699 and this function do not. Both count the distance of equal embeddings as 1e-6 in ``mean``.

    Args:
        student: Embeddings ``e`` of the student, ``(b, C)``.
        teacher: Embeddings of the teacher, ``(b, C')``.

    Returns:
        Loss per image, ``(b,)``, without unit. It depends on the other images of the batch.

    Example:
        >>> relational_distance(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
        tensor([0., 0.])
    """

    def distances(embedding: Tensor) -> Tensor:
        pairwise = torch.cdist(embedding, embedding, compute_mode="donot_use_mm_for_euclid_dist")
        mean = pairwise.sum() / (pairwise > 0).sum().clamp(min=1)
        return pairwise / mean.clamp(min=MIN_LENGTH)

    return F.smooth_l1_loss(distances(student), distances(teacher), reduction="none").mean(1)


def relational_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute angle-wise relational knowledge distillation (RKD-A).

        loss[n] = 1 / b^2 * sum_ik huber(cos_s[i, n, k] - cos_t[i, n, k])

    ``cos[i, n, k]`` is the cosine of the angle between ``e[i] - e[n]`` and ``e[k] - e[n]``, and 0 if one of these
    two vectors is zero. Vectors shorter than 0.01 are divided by 0.01. ``huber(x)`` is ``x^2 / 2`` up to ``|x| = 1``
    and ``|x| - 1 / 2`` beyond. The computation needs memory for ``b^2 * C + b^3`` numbers per network, with ``b``
    images in the batch.

    Source: Park et al. 2019, arXiv 1904.05068. The loss is a mean over ``i`` and ``k``, as in the authors' code, whose
    weight is 50. The paper has a sum. The authors' code for classifiers scales embeddings to unit length first; the
    code of arXiv 1910.10699 and this function do not.

    Args:
        student: Embeddings ``e`` of the student, ``(b, C)``.
        teacher: Embeddings of the teacher, ``(b, C')``.

    Returns:
        Loss per image, ``(b,)``, without unit. It depends on the other images of the batch.

    Example:
        >>> triangle = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
        >>> relational_angle(triangle, 2 * triangle + 1)
        tensor([0., 0., 0.])
    """

    def cosines(embedding: Tensor) -> Tensor:
        directions = unit_vectors(embedding[None] - embedding[:, None])
        return directions @ directions.transpose(1, 2)

    return F.smooth_l1_loss(cosines(student), cosines(teacher), reduction="none").mean((1, 2))


def hierarchical_context_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the hierarchical context loss (HCL), the mean squared error at several resolutions.

        loss = (m[0] + m[1] / 2 + m[2] / 4 + ...) / (1 + 1 / 2 + 1 / 4 + ...)

    ``m[0]`` is the mean squared difference of the features. ``m[1], m[2], ...`` are those of the features pooled to
    4x4, 2x2 and 1x1 cells. Grids that are not coarser than the features are skipped, so ``m[1]`` belongs to the first
    coarser grid. Source: Chen et al. 2021, arXiv 2104.09044.

    Args:
        student: Features of the student, ``(N, C, h, w)``.
        teacher: Features of the teacher, ``(N, C, h, w)``.

    Returns:
        Loss per image, ``(N,)``, in squared units of the features.

    Example:
        >>> hierarchical_context_loss(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
        tensor([1.])
    """
    total = (student - teacher).square().mean((1, 2, 3))
    total_weight = 1.0
    weight = 1.0
    for cells in (4, 2, 1):
        if cells < min(student.shape[2:]):
            weight /= 2
            student_pooled = F.adaptive_avg_pool2d(student, cells)
            teacher_pooled = F.adaptive_avg_pool2d(teacher, cells)
            total = total + weight * (student_pooled - teacher_pooled).square().mean((1, 2, 3))
            total_weight += weight
    return total / total_weight


@dataclass(frozen=True)
class Attention:
    """Attention transfer: the sum of `attention_distance` over the paired stages.

    Zagoruyko and Komodakis 2016, arXiv 1612.03928. The authors compare the outputs of the three groups of wide ResNets,
    before batch normalization and ReLU. If a network has a single stage, only the last stages are compared.

    Example:
        >>> logits = torch.zeros(2, 10)
        >>> student = Prediction(logits, features=(torch.randn(2, 8, 16, 16), torch.randn(2, 16, 8, 8)))
        >>> teacher = Prediction(logits, features=(torch.randn(2, 64, 16, 16), torch.randn(2, 128, 8, 8)))
        >>> Attention()(student, teacher, torch.tensor([3, 7])).shape
        torch.Size([2])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "features"})
    needs_teacher: ClassVar[bool] = True

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        student_stages, teacher_stages = _stages(student, teacher)
        pairs = zip(reversed(student_stages), reversed(teacher_stages), strict=False)
        return torch.stack([attention_distance(*pair) for pair in pairs]).sum(0)


@dataclass(frozen=True)
class Similarity:
    """Similarity-preserving distillation of the last stage. See `similarity_distance`.

    Tung and Mori 2019, arXiv 1907.09682. The loss of an image depends on the other images of its batch.

    Example:
        >>> student = Prediction(torch.zeros(4, 10), features=(torch.randn(4, 16, 8, 8),))
        >>> teacher = Prediction(torch.zeros(4, 10), features=(torch.randn(4, 128, 4, 4),))
        >>> Similarity()(student, teacher, torch.arange(4)).shape
        torch.Size([4])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "features"})
    needs_teacher: ClassVar[bool] = True

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        student_stages, teacher_stages = _stages(student, teacher)
        return similarity_distance(student_stages[-1], teacher_stages[-1])


@dataclass(frozen=True)
class RelationalDistance:
    """Distance-wise RKD of the average-pooled last stage. See `relational_distance`.

    Park et al. 2019, arXiv 1904.05068. The loss of an image depends on the other images of its batch.

    Example:
        >>> student = Prediction(torch.zeros(4, 10), features=(torch.randn(4, 16, 8, 8),))
        >>> teacher = Prediction(torch.zeros(4, 10), features=(torch.randn(4, 128, 4, 4),))
        >>> RelationalDistance()(student, teacher, torch.arange(4)).shape
        torch.Size([4])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "features"})
    needs_teacher: ClassVar[bool] = True

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        student_stages, teacher_stages = _stages(student, teacher)
        return relational_distance(student_stages[-1].mean((2, 3)), teacher_stages[-1].mean((2, 3)))


@dataclass(frozen=True)
class RelationalAngle:
    """Angle-wise RKD of the average-pooled last stage. See `relational_angle`.

    Park et al. 2019, arXiv 1904.05068. The loss of an image depends on the other images of its batch.

    Example:
        >>> student = Prediction(torch.zeros(4, 10), features=(torch.randn(4, 16, 8, 8),))
        >>> teacher = Prediction(torch.zeros(4, 10), features=(torch.randn(4, 128, 4, 4),))
        >>> RelationalAngle()(student, teacher, torch.arange(4)).shape
        torch.Size([4])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "features"})
    needs_teacher: ClassVar[bool] = True

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        student_stages, teacher_stages = _stages(student, teacher)
        return relational_angle(student_stages[-1].mean((2, 3)), teacher_stages[-1].mean((2, 3)))


# --- terms with trainable adapters


@dataclass(frozen=True)
class _StageAdapter:
    """Base class of terms with trainable weights, which ``Objective.build_adapters`` creates."""

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "features"})
    needs_teacher: ClassVar[bool] = True

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        raise RuntimeError(f"{type(self).__name__} has no trainable weights yet. Call Objective.build_adapters first.")


@dataclass(frozen=True)
class Hint(_StageAdapter):
    """FitNets hint: regression of the teacher's middle stage from the student's middle stage.

    ``build_adapter`` creates the `Regressor` that computes the loss. Romero et al. 2014, arXiv 1412.6550.

    Example:
        >>> student = Prediction(torch.zeros(2, 10), features=(torch.randn(2, 16, 8, 8),))
        >>> teacher = Prediction(torch.zeros(2, 10), features=(torch.randn(2, 64, 4, 4),))
        >>> term = Hint().build_adapter(student, teacher)
        >>> term(student, teacher, torch.tensor([3, 7])).shape
        torch.Size([2])
    """

    def build_adapter(self, student: Prediction, teacher: Prediction) -> Regressor:
        """Create the regressor for the middle stages, with weights from the global random generator."""
        student_stages, teacher_stages = _stages(student, teacher)
        return Regressor(middle_stage(student_stages).shape[1], middle_stage(teacher_stages).shape[1])


@dataclass(frozen=True)
class Review(_StageAdapter):
    """Knowledge review: regression of each teacher stage from the student stages that are as deep or deeper.

    ``build_adapter`` creates the `Reviewer` that computes the loss. Chen et al. 2021, arXiv 2104.09044.

    Example:
        >>> student = Prediction(torch.zeros(2, 10), features=(torch.randn(2, 8, 16, 16), torch.randn(2, 16, 8, 8)))
        >>> teacher = Prediction(torch.zeros(2, 10), features=(torch.randn(2, 32, 8, 8), torch.randn(2, 64, 4, 4)))
        >>> term = Review().build_adapter(student, teacher)
        >>> term(student, teacher, torch.tensor([3, 7])).shape
        torch.Size([2])
    """

    def build_adapter(self, student: Prediction, teacher: Prediction) -> Reviewer:
        """Create the reviewer for all stages, with weights from the global random generator."""
        student_stages, teacher_stages = _stages(student, teacher)
        return Reviewer([stage.shape[1] for stage in student_stages], [stage.shape[1] for stage in teacher_stages])


def middle_stage(stages: Stages) -> Tensor:
    """Return the middle stage of a network.

    Args:
        stages: The stages in the order of the network.

    Returns:
        The middle stage. Of an even number of stages, the earlier of the two in the middle.

    Example:
        >>> middle_stage((torch.tensor(1), torch.tensor(2), torch.tensor(3), torch.tensor(4)))
        tensor(2)
    """
    return stages[(len(stages) - 1) // 2]


class Regressor(nn.Module):
    """FitNets regressor: mean squared error of the teacher's middle stage, predicted from the student's middle stage.

        loss = mean_cxy (r(A_s) - A_t)^2

    ``r`` is a 1x1 convolution with a bias. The student's stage ``A_s`` is first resized to the teacher's grid.

    Source: Romero et al. 2014, arXiv 1412.6550. The paper trains in two phases: the layers up to the middle with this
    loss only, then the whole network without this loss. Here this loss is added to the other terms of the objective, as
    in the comparison of arXiv 1910.10699, whose weight is 100. ``schedule=early`` is closest to the paper.

    The regressor is simpler than the originals. The authors' is a convolution without padding, whose kernel is as large
    as the difference of the grids plus 1, with the activation function of the teacher's layer. Their loss is half the
    squared error, summed over the channels. The regressor of the comparison is a strided or transposed convolution with
    batch normalization and ReLU.

    Args:
        in_channels: Channels of the student's middle stage.
        out_channels: Channels of the teacher's middle stage.

    Example:
        >>> student = Prediction(torch.zeros(2, 10), features=(torch.randn(2, 16, 8, 8),))
        >>> teacher = Prediction(torch.zeros(2, 10), features=(torch.randn(2, 64, 4, 4),))
        >>> Regressor(16, 64)(student, teacher, torch.tensor([3, 7])).shape
        torch.Size([2])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "features"})
    needs_teacher: ClassVar[bool] = True

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.regressor = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        student_stages, teacher_stages = _stages(student, teacher)
        source = middle_stage(student_stages)
        target = middle_stage(teacher_stages)
        regressed: Tensor = self.regressor(resize(source, (target.shape[2], target.shape[3])))
        return (regressed - target).square().mean((1, 2, 3))


class Fusion(nn.Module):
    """Attention-based fusion (ABF) of one level of the student with the fused deeper levels.

        f = w[0] * x' + w[1] * up(deeper),    w = sigmoid(conv1x1(x', up(deeper))) at each location

    ``x' = norm(conv1x1(x))``, and ``up()`` resizes to the grid of ``x`` by the nearest cell. At the deepest level
    ``f = x'``. The output is ``norm(conv3x3(f))``, with ``f`` resized to the grid of the teacher's level by the nearest
    cell. Source: Chen et al. 2021, arXiv 2104.09044.

    Args:
        in_channels: Channels of ``x``.
        mid_channels: Channels of ``f``.
        out_channels: Channels of the teacher's level.
        deepest: Whether there is no deeper level.

    Example:
        >>> fusion = Fusion(in_channels=16, mid_channels=32, out_channels=64, deepest=True)
        >>> output, fused = fusion(torch.randn(2, 16, 8, 8), None, torch.Size([4, 4]))
        >>> output.shape, fused.shape
        (torch.Size([2, 64, 4, 4]), torch.Size([2, 32, 8, 8]))
    """

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int, deepest: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(in_channels, mid_channels, 1, bias=False), nn.BatchNorm2d(mid_channels))
        self.attention = None if deepest else nn.Sequential(nn.Conv2d(2 * mid_channels, 2, 1), nn.Sigmoid())
        self.expand = nn.Sequential(
            nn.Conv2d(mid_channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels)
        )
        for layer in (self.reduce[0], self.expand[0]):
            nn.init.kaiming_uniform_(layer.weight, a=1)  # type: ignore[arg-type]

    def forward(self, x: Tensor, deeper: Tensor | None, grid: torch.Size) -> tuple[Tensor, Tensor]:
        """Fuse ``x`` with the deeper levels.

        Args:
            x: Features of the student at this level, ``(N, in_channels, h, w)``.
            deeper: Fused features ``f`` of the next deeper level, ``(N, mid_channels, h', w')``. None at the deepest
                level.
            grid: Height and width of the teacher's level.

        Returns:
            The output ``(N, out_channels, *grid)`` and the fused features ``(N, mid_channels, h, w)``.
        """
        fused: Tensor = self.reduce(x)
        if self.attention is not None and deeper is not None:
            deeper = F.interpolate(deeper, fused.shape[2:], mode="nearest")
            weights = self.attention(torch.cat([fused, deeper], 1))
            fused = fused * weights[:, :1] + deeper * weights[:, 1:]
        resized = fused if fused.shape[2:] == grid else F.interpolate(fused, grid, mode="nearest")
        return self.expand(resized), fused


class Reviewer(nn.Module):
    """Knowledge review: `hierarchical_context_loss` of fused student levels and teacher levels, summed over the levels.

    The levels of a network are its stages, and the spatial mean of the last stage as the deepest level. The levels of
    student and teacher are paired from the deepest backwards. Each pair has a `Fusion`, whose ``mid_channels`` are the
    channels of the student's last stage, at most 512.

    Source: Chen et al. 2021, arXiv 2104.09044. As in the authors' code, grids are matched by the nearest cell. The
    authors' weight is 1 by default, and 0.6 to 8 for pairs of networks on CIFAR-100. It rises over the first 20 of 240
    epochs, as with ``schedule=warm``.

    The authors' targets are the teacher's stages *before* the activation function, with negative values. Their code
    for ImageNet takes the student's stages before the activation function too. In camkd, all stages are outputs of
    layers. The targets of a network with ReLU are then 0 or more, so other weights may be better.

    In training mode, batch normalization makes the loss of an image depend on the other images of its batch. A batch
    must have at least 2 images.

    Args:
        student_channels: Channels of the student's stages, from the input on.
        teacher_channels: Channels of the teacher's stages, from the input on.

    Example:
        >>> student = Prediction(torch.zeros(2, 10), features=(torch.randn(2, 8, 16, 16), torch.randn(2, 16, 8, 8)))
        >>> teacher = Prediction(torch.zeros(2, 10), features=(torch.randn(2, 32, 8, 8), torch.randn(2, 64, 4, 4)))
        >>> Reviewer([8, 16], [32, 64])(student, teacher, torch.tensor([3, 7])).shape
        torch.Size([2])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "features"})
    needs_teacher: ClassVar[bool] = True

    def __init__(self, student_channels: list[int], teacher_channels: list[int]) -> None:
        super().__init__()
        student_levels = [*student_channels, student_channels[-1]][::-1]
        teacher_levels = [*teacher_channels, teacher_channels[-1]][::-1]
        self.fusions = nn.ModuleList(
            Fusion(in_channels, min(512, student_levels[0]), out_channels, deepest=level == 0)
            for level, (in_channels, out_channels) in enumerate(zip(student_levels, teacher_levels, strict=False))
        )

    def forward(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        student_levels, teacher_levels = (
            [*stages, stages[-1].mean((2, 3), keepdim=True)][::-1] for stages in _stages(student, teacher)
        )
        total = torch.zeros(len(student_levels[0]), device=student_levels[0].device)
        fused = None
        for fusion, x, target in zip(self.fusions, student_levels, teacher_levels, strict=False):
            output, fused = fusion(x, fused, target.shape[2:])
            total = total + hierarchical_context_loss(output, target)
        return total
