"""Terms on logits: cross-entropy, Hinton's knowledge distillation and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from camkd.types import Prediction


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """``-sum_k q[k] log softmax(logits)[k]`` per picture, in nats: ``(N, K), labels -> (N,)``.

    ``labels`` is ``(N,)`` class indices or ``(N, K)`` probabilities (mixed pictures). With smoothing ``s`` the target
    is ``q = (1 - s) label + s / K`` (Szegedy et al. 2015, arXiv 1512.00567).
    """
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)


def kd(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """``T^2 KL(softmax(teacher / T) || softmax(student / T))`` per picture: two ``(N, K)`` to ``(N,)``, in nats.

    Hinton, Vinyals and Dean 2015, arXiv 1503.02531. The factor ``T^2`` keeps the gradient's scale as ``T`` changes.
    """
    log_student = F.log_softmax(student / temperature, 1)
    log_teacher = F.log_softmax(teacher / temperature, 1)
    return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1) * temperature**2


def standardised(logits: Tensor) -> Tensor:
    """Each picture's logits with mean 0 and standard deviation 1: ``(N, K) -> (N, K)``; constant ones become zeros.

    The deviation is that of a sample, ``sqrt(sum_k (z[k] - mean)^2 / (K - 1))``, as in the authors' program.
    """
    return (logits - logits.mean(1, keepdim=True)) / (logits.std(1, keepdim=True) + 1e-7)


def dkd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """``alpha TCKD + beta NCKD`` per picture: two ``(N, K)`` and labels to ``(N,)``, in nats.

    With ``p = softmax(z / T)``: TCKD is ``T^2 KL`` between ``(p[label], 1 - p[label])`` of both, NCKD is ``T^2 KL``
    between ``p`` over the other classes, made to sum to one. Hinton's is ``TCKD + (1 - p_teacher[label]) NCKD``.
    Zhao et al. 2022, arXiv 2203.08679. Where pictures are mixed, the label is the larger part's.
    """
    label = labels if labels.ndim == 1 else labels.argmax(1)
    on = F.one_hot(label, student.shape[1]).bool()

    def decoupled(logits: Tensor) -> tuple[Tensor, Tensor]:
        log_p = F.log_softmax(logits / temperature, 1)
        others = log_p.masked_fill(on, -torch.inf)
        rest = others.logsumexp(1)
        return torch.stack([log_p[on], rest], 1), (others - rest[:, None]).masked_fill(on, 0.0)

    (ours, ours_rest), (theirs, theirs_rest) = decoupled(student), decoupled(teacher)
    target = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1)
    other = F.kl_div(ours_rest, theirs_rest, reduction="none", log_target=True).masked_fill(on, 0.0).sum(1)
    return (alpha * target + beta * other) * temperature**2


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy with the labels."""

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    needs_teacher: ClassVar[bool] = False
    label_smoothing: float = 0.0

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        return cross_entropy(student.logits, labels, self.label_smoothing)


@dataclass(frozen=True)
class KD:
    """Hinton's softened Kullback-Leibler divergence from the teacher's prediction."""

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    needs_teacher: ClassVar[bool] = True
    temperature: float = 4.0

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        assert teacher is not None
        return kd(student.logits, teacher.logits.detach(), self.temperature)


@dataclass(frozen=True)
class StandardisedKD:
    """Hinton's divergence between logits whose mean and deviation are taken away: their order and spacing alone count.

    Sun et al. 2024, arXiv 2403.01427, whose weight for it is 9 beside 0.1 for the cross-entropy.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    needs_teacher: ClassVar[bool] = True
    temperature: float = 2.0

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        assert teacher is not None
        return kd(standardised(student.logits), standardised(teacher.logits.detach()), self.temperature)


@dataclass(frozen=True)
class DKD:
    """Hinton's divergence decoupled into the label's part and the other classes' part."""

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    needs_teacher: ClassVar[bool] = True
    alpha: float = 1.0
    beta: float = 8.0
    temperature: float = 4.0

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        assert teacher is not None
        return dkd(student.logits, teacher.logits.detach(), labels, self.alpha, self.beta, self.temperature)
