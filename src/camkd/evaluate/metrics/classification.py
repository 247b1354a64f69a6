"""How often a classifier is right, and how sure it is."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of pictures whose largest logit is the label's, 0 to 1; ``logits (N,K)``, ``labels (N,)``.

    Raises ValueError without pictures or when the shapes do not fit.

    >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
    0.5
    """
    _check(logits, labels)
    return (logits.argmax(1) == labels).double().mean().item()


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Counts ``(K,K)`` int64 of true class (row) against predicted class (column); both inputs ``(N,)``.

    Raises ValueError for a class outside ``0..classes-1`` or shapes that differ.

    >>> confusion(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    if predicted.shape != labels.shape or predicted.ndim != 1:
        raise ValueError(f"predicted {tuple(predicted.shape)} and labels {tuple(labels.shape)} must both be (N,)")
    both = torch.cat([predicted, labels])
    if both.numel() and not 0 <= int(both.min()) <= int(both.max()) < classes:
        raise ValueError(f"classes must lie in 0..{classes - 1}, found {int(both.min())}..{int(both.max())}")
    pairs = labels.long() * classes + predicted.long()
    return torch.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def nll(logits: Tensor, labels: Tensor) -> float:
    """Mean negative log-likelihood in nats, ``-mean(log softmax(logits)[label])``; 0 is perfect.

    ``logits (N,K)``, ``labels (N,)``. Raises ValueError without pictures or when the shapes do not fit.

    >>> round(nll(torch.zeros(1, 2), torch.tensor([0])), 4)
    0.6931
    """
    _check(logits, labels)
    return F.cross_entropy(logits.float(), labels).item()


def ece(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error, 0 to 1: by how much confidence misses accuracy on average.

    ``sum_b |B_b|/N * |accuracy(B_b) - confidence(B_b)|`` over ``bins`` bins ``((b-1)/bins, b/bins]`` of the
    largest softmax probability (Guo et al. 2017, arXiv 1706.04599, equation 3). ``logits (N,K)``,
    ``labels (N,)``. Raises ValueError without pictures or when the shapes do not fit.

    >>> ece(torch.tensor([[50.0, 0.0], [50.0, 0.0]]), torch.tensor([0, 1]))  # sure, half right
    0.5
    """
    _check(logits, labels)
    confidence, predicted = logits.float().softmax(1).max(1)
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = (predicted == labels).float() - confidence
    return (torch.zeros(bins, device=gap.device).index_add_(0, place, gap).abs().sum() / len(labels)).item()


def _check(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        shapes = f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}"
        raise ValueError(f"{shapes} must be (N, K) and (N,), with at least one picture")
