"""Terms on class activation maps, alone and as logits of regions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from camkd.cams import centre_prior, resize
from camkd.distill.losses.logits import kd
from camkd.types import Prediction

Classes = Literal["all", "target", "top-1"]
Norm = Literal["l2", "minmax", "raw"]
Control = Literal["none", "shuffled", "centre"]
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
    classes: Literal["all", "target"] = "all",
    norm: Norm = "l2",
    pool: int = 4,
    shown: Tensor | None = None,
) -> Tensor:
    """How far the student's maps are from the teacher's: two ``(N, K, h, w)`` to ``(N,)``.

        d[k] = || n(pool(student[k])) - n(pool(teacher[k])) ||^2

    pooled to ``pool`` x ``pool`` cells and normalised by ``norm``; the mean over all classes, or the label's class
    (mixed labels: weighted by the label).

    No weight depends on the units of a pair of networks. With ``l2`` this is ``2 - 2 cos``, in 0..4; with ``raw`` it is
    the mean over the cells divided by the mean over classes and cells of ``pool(teacher)^2``, a relative squared error.
    All classes, pooled and normalised: CAT-KD, Guo et al. 2023, arXiv 2304.12777.

    Where ``shown (N, k)`` says which classes the teacher's maps are of, the others take no part: ``all`` is the mean
    over the ``k``, and a label that is not among them costs nothing.
    """
    weights = labels if labels.ndim == 2 else F.one_hot(labels, int(student.shape[1]))
    if shown is not None:
        weights = weights.gather(1, shown)
        student = student.gather(1, shown[:, :, None, None].expand(-1, -1, *student.shape[2:]))
    ours, theirs = resize(student, (pool, pool)), resize(teacher, (pool, pool))
    per_class = (normalise(ours, norm) - normalise(theirs, norm)).square().sum(2)
    if norm == "raw":
        per_class = per_class / (theirs.square().sum((2, 3)).mean(1, keepdim=True) + EPSILON)
    return per_class.mean(1) if classes == "all" else (per_class * weights).sum(1)


def control_maps(maps: Tensor, control: Control) -> Tensor:
    """Maps ``(N, K, h, w)`` that say the same about each class, ``mean_xy``, but lie about where it is.

    ``shuffled``: the layout of another picture of the batch; ``centre``: a Gaussian in the middle of each.
    For controls: what a student gains from them is not where the teacher looks.
    """
    own = maps.mean((2, 3), keepdim=True)
    if control == "shuffled":
        other = maps.roll(1, 0)
        return other - other.mean((2, 3), keepdim=True) + own
    if control == "centre":
        blob = centre_prior(*(int(side) for side in maps.shape[2:])).to(maps)
        return own * (blob / blob.mean())
    return maps


def sdd(student: Prediction, teacher: Prediction, beta: float = 2.0, temperature: float = 4.0, pool: int = 4) -> Tensor:
    """``mean_j w[j] T^2 KL(softmax(t[j] / T) || softmax(s[j] / T))`` per picture, in nats: ``-> (N,)``.

    ``s[j]`` and ``t[j]`` are spatial logits (the map with ``logits - mean_xy(map)`` on each cell), averaged over region
    ``j`` of the grids of 1x1, 2x2, 4x4 and so on up to ``pool`` x ``pool`` cells, all regions counting alike. Where the
    teacher's largest logit in a region is of the class of its largest in the whole picture ``w`` is 1, elsewhere
    ``beta``. Scale decoupled distillation (with Hinton's divergence: SD-KD), Wei et al. 2024, arXiv 2403.13512; the
    mean and 2.0 are the authors' program's, the split by class the paper's (in the program: by right and wrong).

    Where ``teacher.shown (N, k)`` says which classes the teacher's maps are of, regions are compared among these
    classes alone; the whole picture, of which all logits are known, among all.
    """
    assert student.cams is not None and teacher.cams is not None
    shown, everywhere = teacher.class_ids, teacher.logits.argmax(1, keepdim=True)
    ours = student.cams + (student.logits - student.cams.mean((2, 3)))[:, :, None, None]
    if shown is None:
        theirs = teacher.cams + (teacher.logits - teacher.cams.mean((2, 3)))[:, :, None, None]
    else:
        theirs = teacher.cams + (teacher.logits.gather(1, shown) - teacher.cams.mean((2, 3)))[:, :, None, None]
        ours = ours.gather(1, shown[:, :, None, None].expand(-1, -1, *ours.shape[2:]))
    total, regions, cells = kd(student.logits, teacher.logits, temperature), 1, 2
    while cells <= pool:
        s, t = (resize(maps, (cells, cells)).flatten(2).transpose(1, 2) for maps in (ours, theirs))
        apart = kd(s.flatten(0, 1), t.flatten(0, 1), temperature).view(len(t), -1)
        here = t.argmax(2) if shown is None else shown.gather(1, t.argmax(2))
        total = total + torch.where(here == everywhere, apart, beta * apart).sum(1)
        regions, cells = regions + cells * cells, 2 * cells
    return total / regions


@dataclass(frozen=True)
class CAM:
    """Distance between student's and teacher's class activation maps, or, as a control, false ones.

    ``classes``: all, the label's, or the one the teacher predicts (``top-1``); that one's with ``l2``, halved, is the
    ``1 - cos`` of e2KD, Parchami-Araghi et al. 2024, arXiv 2402.03119: there of the positive part of Grad-CAM, here of
    the map as it is. The authors' program leaves the labels out and gives it a weight of 1 beside Hinton's at T = 1.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "cams"})
    needs_teacher: ClassVar[bool] = True
    classes: Classes = "all"
    norm: Norm = "l2"
    pool: int = 4
    control: Control = "none"

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        assert student.cams is not None and teacher is not None and teacher.cams is not None
        maps = control_maps(teacher.cams.detach(), self.control)
        if self.classes == "all":
            return cam_distance(student.cams, maps, labels, "all", self.norm, self.pool, teacher.class_ids)
        which = teacher.logits.argmax(1) if self.classes == "top-1" else labels
        return cam_distance(student.cams, maps, which, "target", self.norm, self.pool, teacher.class_ids)


@dataclass(frozen=True)
class SDD:
    """Hinton's divergence in regions of the picture, as in scale decoupled distillation."""

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "cams"})
    needs_teacher: ClassVar[bool] = True
    temperature: float = 4.0
    beta: float = 2.0
    pool: int = 4

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        assert teacher is not None and teacher.cams is not None
        fixed = teacher._replace(logits=teacher.logits.detach(), cams=teacher.cams.detach())
        return sdd(student, fixed, self.beta, self.temperature, self.pool)
