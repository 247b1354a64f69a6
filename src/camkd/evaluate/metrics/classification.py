"""Classification metrics: accuracy, recall, F1, confusion matrix, negative log-likelihood and calibration error."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy.

    Args:
        logits: ``(N, K)``, with ``N >= 1``.
        labels: True classes ``(N,)``.

    Returns:
        The share of images with the largest logit at the true class, 0 to 1.

    Raises:
        ValueError: If there are no images, or the shapes do not match.

    Example:
        >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
        0.5
    """
    _check_shapes(logits, labels)
    return (logits.argmax(1) == labels).double().mean().item()


class BalancedAccuracy(NamedTuple):
    """Balanced accuracy, and its distribution for predictions that are independent of the images.

    Attributes:
        value: Mean over the classes of the share of their images that are predicted correctly, 0 to 1.
        chance: Balanced accuracy of a constant prediction: 1 divided by the number of classes that have images. The
            expectation of random predictions is no higher.
        standard_error: Standard deviation of the balanced accuracy over all orders of the predictions.
    """

    value: float
    chance: float
    standard_error: float


def balanced_accuracy(predicted: Tensor, labels: Tensor) -> BalancedAccuracy:
    """Balanced accuracy: the mean over classes of the share of their images that are predicted correctly.

    Predictions that do not depend on the images could be assigned to the images in any order. The standard error is the
    standard deviation over all orders, computed exactly: the balanced accuracy is ``sum_i a(i, i)``, where
    ``a(i, j) = w(j)`` if the prediction of image ``i`` is the label of image ``j``, and ``w(j)`` is 1 divided by the
    number of classes and by the number of images with this label. The variance of a sum over random orders is
    ``sum_ij d(i, j)^2 / (N - 1)``, where ``d`` is ``a`` minus its row and column means plus its mean (Hoeffding 1951).

    Args:
        predicted: Predicted classes ``(N,)``.
        labels: True classes ``(N,)``, with ``N >= 1``.

    Returns:
        Value, chance level and standard error. Classes without images do not count.

    Example:
        >>> balanced_accuracy(torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 0, 1]))
        BalancedAccuracy(value=0.5, chance=0.5, standard_error=0.0)
    """
    size = len(labels)
    classes = 1 + int(torch.cat([predicted, labels]).max())
    predictions = predicted.bincount(minlength=classes).double()
    images = labels.bincount(minlength=classes).double()
    correct = labels[predicted == labels].bincount(minlength=classes).double()
    chance = 1 / int((images > 0).sum())
    weights = torch.where(images > 0, chance / images.clamp(min=1), 0.0)
    row_means = images * weights / size
    column_means = predictions * weights / size
    mean = (predictions * row_means).sum() / size
    squares = (
        (predictions * images * weights**2).sum()
        - size * (predictions * row_means**2).sum()
        - size * (images * column_means**2).sum()
        + size**2 * mean**2
    )
    variance = max(0.0, squares.item()) / (size - 1) if size > 1 else 0.0
    return BalancedAccuracy((correct * weights).sum().item(), chance, math.sqrt(variance))


def mean_recall(correct: Tensor, images: Tensor) -> float:
    """Balanced accuracy from counts: the mean of ``correct / images`` over the classes with images.

    Args:
        correct: Number of images of each class that are predicted correctly, ``(K,)``.
        images: Number of images of each class, ``(K,)``, at least one of them positive.

    Returns:
        The mean recall, 0 to 1.

    Example:
        >>> mean_recall(torch.tensor([3, 0, 0]), torch.tensor([4, 2, 0]))
        0.375
    """
    has_images = images > 0
    return (correct[has_images].double() / images[has_images]).mean().item()


def macro_f1(predicted: Tensor, labels: Tensor) -> float:
    """Macro-averaged F1: the mean over the classes with images of ``2 * TP / (2 * TP + FP + FN)``.

    A class without images has no F1, and a prediction of this class lowers the recall of the true class. This is
    ``sklearn.metrics.f1_score`` with ``average="macro"`` and the classes of ``labels``.

    Args:
        predicted: Predicted classes ``(N,)``.
        labels: True classes ``(N,)``, with ``N >= 1``.

    Returns:
        The mean F1, 0 to 1.

    Example:
        >>> macro_f1(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]))
        0.6666666666666666
    """
    classes = 1 + int(torch.cat([predicted, labels]).max())
    images = labels.bincount(minlength=classes)
    predictions = predicted.bincount(minlength=classes)
    correct = labels[predicted == labels].bincount(minlength=classes)
    f1 = 2 * correct.double() / (images + predictions)  # TP + FN are the images, TP + FP the predictions of a class
    return f1[images > 0].mean().item()


def confusion_matrix(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Confusion matrix.

    Args:
        predicted: Predicted classes ``(N,)``.
        labels: True classes ``(N,)``.
        classes: Number of classes ``K``.

    Returns:
        Counts ``(K, K)`` int64. Rows are true classes, columns are predicted classes.

    Raises:
        ValueError: If a class lies outside ``0..classes - 1``, or one of the two tensors is not ``(N,)``.

    Example:
        >>> confusion_matrix(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 2).tolist()
        [[1, 1], [0, 1]]
    """
    if predicted.shape != labels.shape or predicted.ndim != 1:
        shapes = f"{tuple(predicted.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"predicted and labels must both be (N,), got {shapes}.")
    both = torch.cat([predicted, labels])
    if both.numel() and not 0 <= int(both.min()) <= int(both.max()) < classes:
        raise ValueError(f"classes must be in the range 0..{classes - 1}, got {int(both.min())}..{int(both.max())}.")
    cells = labels.long() * classes + predicted.long()
    return torch.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def nll(logits: Tensor, labels: Tensor) -> float:
    """Mean negative log-likelihood, ``-mean(log softmax(logits)[label])``.

    Args:
        logits: ``(N, K)``, with ``N >= 1``.
        labels: True classes ``(N,)``.

    Returns:
        The mean over the images in nats; 0 is perfect.

    Raises:
        ValueError: If there are no images, or the shapes do not match.

    Example:
        >>> round(nll(torch.zeros(1, 2), torch.tensor([0])), 4)
        0.6931
    """
    _check_shapes(logits, labels)
    return F.cross_entropy(logits.float(), labels).item()


def ece(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error.

    The images are divided into bins ``B_b`` by confidence, the largest softmax probability: bin ``b`` holds
    ``((b-1)/bins, b/bins]``. The error is ``sum_b |B_b|/N * |accuracy(B_b) - confidence(B_b)|``. Guo et al. 2017, arXiv
    1706.04599, equation 3.

    Args:
        logits: ``(N, K)``, with ``N >= 1``.
        labels: True classes ``(N,)``.
        bins: Number of bins of equal width.

    Returns:
        The mean gap between confidence and accuracy, 0 to 1; 0 is perfect.

    Raises:
        ValueError: If there are no images, or the shapes do not match.

    Example:
        Two predictions with confidence 1, of which one is correct:

        >>> ece(torch.tensor([[50.0, 0.0], [50.0, 0.0]]), torch.tensor([0, 1]))
        0.5
    """
    _check_shapes(logits, labels)
    confidence, predicted = logits.float().softmax(1).max(1)
    bin_index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = (predicted == labels).float() - confidence
    return (torch.zeros(bins, device=gap.device).index_add_(0, bin_index, gap).abs().sum() / len(labels)).item()


def _check_shapes(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        shapes = f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"logits and labels must be (N, K) and (N,) with N >= 1, got {shapes}.")
