"""Loss terms on logits: cross-entropy, knowledge distillation (KD), KD of standardized logits, and decoupled KD."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from camkd.distill.losses.normalization import MIN_LENGTH, min_size
from camkd.types import Prediction


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Compute the cross-entropy per image, with optional label smoothing.

        loss = -sum_k q[k] * log(softmax(logits)[k]),    q[k] = (1 - s) * p[k] + s / K

    ``p`` is the one-hot label, or the class probabilities of a mixed image, and ``s`` is the label smoothing.
    Source: Szegedy et al. 2015, arXiv 1512.00567.

    Args:
        logits: Logits ``(N, K)``.
        labels: Class indices ``(N,)``, or class probabilities ``(N, K)`` of mixed images.
        label_smoothing: Label smoothing ``s`` in 0..1.

    Returns:
        Loss per image in nats, ``(N,)``.

    Example:
        >>> cross_entropy(torch.zeros(1, 2), torch.tensor([0]))  # log 2
        tensor([0.6931])
    """
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)


def log_prior(labels: Tensor, classes: int) -> Tensor:
    """Compute the logarithm of the share of each class in the training labels.

    Args:
        labels: Class indices of the training images, ``(N,)``.
        classes: Number of classes ``K``.

    Returns:
        ``log(N_k / N)``, ``(K,)``. A class without images counts as one image, so that the logarithm is finite.

    Example:
        >>> log_prior(torch.tensor([0, 0, 0, 1]), 2).exp()
        tensor([0.7500, 0.2500])
    """
    return (labels.bincount(minlength=classes).clamp(min=1) / len(labels)).log()


def kd(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """Compute the softened Kullback-Leibler divergence of knowledge distillation.

        loss = T^2 * KL(softmax(teacher / T) || softmax(student / T))

    The factor ``T^2`` keeps the scale of the gradient roughly constant when ``T`` changes.
    Source: Hinton, Vinyals and Dean 2015, arXiv 1503.02531. The paper has no single setting. The code of
    arXiv 1910.10699 has ``T = 4``, a weight of 0.9, and a weight of 0.1 for the cross-entropy.

    Args:
        student: Logits of the student, ``(N, K)``.
        teacher: Logits of the teacher, ``(N, K)``.
        temperature: Temperature ``T``, more than 0.

    Returns:
        Loss per image in nats, ``(N,)``.

    Example:
        >>> kd(torch.tensor([[0.0, 0.0]]), torch.tensor([[4.0, 0.0]]))
        tensor([1.7751])
    """
    log_student = F.log_softmax(student / temperature, 1)
    log_teacher = F.log_softmax(teacher / temperature, 1)
    return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1) * temperature**2


def standardize(logits: Tensor, min_std: Tensor | float = MIN_LENGTH) -> Tensor:
    """Standardize the logits of each image to mean 0 and standard deviation 1.

        z' = (z - mean(z)) / max(std(z) + 1e-7, min_std),    std(z) = sqrt(sum_k (z[k] - mean(z))^2 / (K - 1))

    The sample standard deviation and the epsilon 1e-7 follow the authors' code, which has no ``min_std``. Constant
    logits become zeros, with a gradient of at most ``1 / min_std``. Source: Sun et al. 2024, arXiv 2403.01427.

    Args:
        logits: Logits ``(N, K)``.
        min_std: Smallest standard deviation that logits are divided by, a number or ``(N, 1)``.

    Returns:
        Standardized logits ``(N, K)``. Logits with less than ``min_std`` have a standard deviation below 1.

    Example:
        >>> standardize(torch.tensor([[1.0, 2.0, 3.0]])).round(decimals=4)
        tensor([[-1.,  0.,  1.]])
    """
    return (logits - logits.mean(1, keepdim=True)) / torch.clamp(logits.std(1, keepdim=True) + 1e-7, min=min_std)


def dkd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """Compute decoupled knowledge distillation.

        loss = alpha * TCKD + beta * NCKD

    TCKD (target class) and NCKD (non-target classes) are both ``T^2 * KL(q_teacher || q_student)``. They differ in the
    distribution ``q``, computed from ``p = softmax(logits / T)``:

    - TCKD: ``q = (p[label], 1 - p[label])``.
    - NCKD: ``q`` is ``p`` without ``p[label]``, normalized to sum 1.

    The loss `kd` is ``TCKD + (1 - p_teacher[label]) * NCKD``. Source: Zhao et al. 2022, arXiv 2203.08679. The authors
    use a ``beta`` of 2, 6 or 8, by the pair of networks, and raise the weight over the first 20 of 240 epochs, as with
    ``schedule=warm``.

    Args:
        student: Logits of the student, ``(N, K)``.
        teacher: Logits of the teacher, ``(N, K)``.
        labels: Class indices ``(N,)``, or class probabilities ``(N, K)`` of mixed images. The target class of a
            mixed image is its most probable class.
        alpha: Weight of TCKD.
        beta: Weight of NCKD.
        temperature: Temperature ``T``, more than 0.

    Returns:
        Loss per image in nats, ``(N,)``.

    Example:
        >>> student, teacher = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[1.0, 4.0, 0.0]])
        >>> dkd(student, teacher, torch.tensor([0]), alpha=1.0, beta=0.0)  # TCKD
        tensor([0.6418])
    """
    class_ids = labels if labels.ndim == 1 else labels.argmax(1)
    is_target = F.one_hot(class_ids, student.shape[1]).bool()

    def decouple(logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log probabilities of target and rest ``(N, 2)``, and those among the other classes ``(N, K)``."""
        log_p = F.log_softmax(logits / temperature, 1)
        log_others = log_p.masked_fill(is_target, -torch.inf)
        log_rest = log_others.logsumexp(1)
        among_others = (log_others - log_rest[:, None]).masked_fill(is_target, 0.0)
        return torch.stack([log_p[is_target], log_rest], 1), among_others

    student_target, student_others = decouple(student)
    teacher_target, teacher_others = decouple(teacher)
    tckd = F.kl_div(student_target, teacher_target, reduction="none", log_target=True).sum(1)
    nckd = F.kl_div(student_others, teacher_others, reduction="none", log_target=True)
    nckd = nckd.masked_fill(is_target, 0.0).sum(1)
    return (alpha * tckd + beta * nckd) * temperature**2


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy with the labels. See `cross_entropy`.

    Args:
        label_smoothing: Label smoothing in 0..1.

    Example:
        >>> CrossEntropy()(Prediction(torch.zeros(1, 2)), None, torch.tensor([0]))
        tensor([0.6931])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    needs_teacher: ClassVar[bool] = False
    label_smoothing: float = 0.0

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        return cross_entropy(student.logits, labels, self.label_smoothing)


@dataclass(frozen=True)
class AdjustedCrossEntropy(CrossEntropy):
    """Cross-entropy with logit adjustment, for unbalanced classes.

        loss = cross_entropy(logits + log(prior), labels),    prior[k] = share of class k in the training labels

    The adjusted logits model the training data, with its frequent and rare classes. So the logits themselves, which are
    used after training, rank the classes as if all were equally frequent: the minimum has the lowest balanced error.
    Probabilities are then those of data with equally frequent classes. Labels of mixed images and label smoothing apply
    to the adjusted logits. Source: Menon et al. 2021, arXiv 2007.07314, equation 10, with tau = 1.

    Args:
        label_smoothing: Label smoothing in 0..1.
        log_prior: Result of `log_prior`, ``(K,)``.

    Example:
        >>> term = AdjustedCrossEntropy(log_prior=torch.tensor([0.75, 0.25]).log())
        >>> term(Prediction(torch.zeros(1, 2)), None, torch.tensor([1]))  # -log 0.25
        tensor([1.3863])
    """

    log_prior: Tensor = field(kw_only=True)

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        return cross_entropy(student.logits + self.log_prior, labels, self.label_smoothing)


@dataclass(frozen=True)
class KD:
    """Knowledge distillation of softened logits. See `kd`. Hinton et al. 2015, arXiv 1503.02531.

    Args:
        temperature: Temperature ``T``, more than 0.

    Example:
        >>> student, teacher = Prediction(torch.tensor([[0.0, 0.0]])), Prediction(torch.tensor([[4.0, 0.0]]))
        >>> KD(temperature=4.0)(student, teacher, torch.tensor([0]))
        tensor([1.7751])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    needs_teacher: ClassVar[bool] = True
    temperature: float = 4.0

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        assert teacher is not None
        return kd(student.logits, teacher.logits.detach(), self.temperature)


@dataclass(frozen=True)
class StandardizedKD:
    """Knowledge distillation of standardized logits: `kd` after `standardize` of the student's and teacher's logits.

    The loss depends on the order and the relative spacing of the logits, not on their mean and scale. Standard
    deviations below 0.5 % of the teacher's, or below 0.01, count as this value, so that the gradient is bounded for a
    zero-initialized head. Sun et al. 2024, arXiv 2403.01427. The paper's weights are 9 for this term and 0.1 for the
    cross-entropy.

    Args:
        temperature: Temperature ``T``, more than 0.

    Example:
        >>> student = Prediction(torch.tensor([[1.0, 2.0, 3.0]]))
        >>> teacher = Prediction(torch.tensor([[10.0, 20.0, 30.0]]))
        >>> StandardizedKD()(student, teacher, torch.tensor([0])).round(decimals=4)
        tensor([0.])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    needs_teacher: ClassVar[bool] = True
    temperature: float = 2.0

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        assert teacher is not None
        teacher_logits = teacher.logits.detach()
        min_std = min_size(teacher_logits.std(1, keepdim=True))
        return kd(standardize(student.logits, min_std), standardize(teacher_logits, min_std), self.temperature)


@dataclass(frozen=True)
class DKD:
    """Decoupled knowledge distillation. See `dkd`. Zhao et al. 2022, arXiv 2203.08679.

    Args:
        alpha: Weight of TCKD, the loss of the target class.
        beta: Weight of NCKD, the loss of the other classes.
        temperature: Temperature ``T``, more than 0.

    Example:
        >>> student = Prediction(torch.tensor([[1.0, 0.0, 0.0]]))
        >>> teacher = Prediction(torch.tensor([[1.0, 4.0, 0.0]]))
        >>> DKD(alpha=1.0, beta=0.0)(student, teacher, torch.tensor([0]))
        tensor([0.6418])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    needs_teacher: ClassVar[bool] = True
    alpha: float = 1.0
    beta: float = 8.0
    temperature: float = 4.0

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        assert teacher is not None
        return dkd(student.logits, teacher.logits.detach(), labels, self.alpha, self.beta, self.temperature)
