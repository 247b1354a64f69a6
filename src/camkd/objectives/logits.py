"""Terms on logits: cross-entropy and Hinton's knowledge distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from camkd.types import Prediction


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """``-sum_k q[k] log softmax(logits)[k]`` per picture, in nats: ``(N, K), labels -> (N,)``.

    ``labels`` is ``(N,)`` class indices or ``(N, K)`` probabilities (mixed pictures). With smoothing ``s`` the target
    is ``q = (1 - s) label + s / K`` (Szegedy et al. 2015, arXiv 1512.00567).
    """
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)


def kd(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """``T^2 KL(softmax(teacher / T) || softmax(student / T))`` per picture: two ``(N, K)`` to ``(N,)``, in nats.

    Hinton, Vinyals and Dean 2015, arXiv 1503.02531. The factor ``T^2`` keeps the gradient's scale as ``T`` changes.
    """
    log_student = F.log_softmax(student / temperature, 1)
    log_teacher = F.log_softmax(teacher / temperature, 1)
    return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1) * temperature**2


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy with the labels."""

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    asks_teacher: ClassVar[bool] = False
    smoothing: float = 0.0

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        return cross_entropy(student.logits, labels, self.smoothing)


@dataclass(frozen=True)
class KD:
    """Hinton's softened Kullback-Leibler divergence from the teacher's prediction."""

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    asks_teacher: ClassVar[bool] = True
    temperature: float = 4.0

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        assert teacher is not None
        return kd(student.logits, teacher.logits.detach(), self.temperature)
