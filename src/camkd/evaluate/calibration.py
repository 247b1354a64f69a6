"""Calibration of confidence: a temperature, and a confidence threshold for a requested precision.

The confidence of an image is the largest softmax probability of its logits.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from camkd.cams.linear_head import linear_head
from camkd.evaluate.metrics import ece, nll
from camkd.models.eval_mode import eval_mode
from camkd.models.example_images import example_images
from camkd.types import InputError
from camkd.utils.intervals import wilson_interval

MAX_TEMPERATURE = 100.0
"""Largest temperature. The smallest is its inverse."""

MIN_CHANGE = 1e-3
"""Temperatures that differ from 1 by less than this fraction are 1."""


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Find the temperature ``T`` with the lowest mean negative log-likelihood of ``logits / T``.

    The likelihood is concave in ``b = 1 / T``, so the minimum is the only zero of the derivative
    ``mean(sum_k softmax(b * logits)[k] * logits[k] - logits[label])``. It is computed in double precision by Brent's
    method. Source: Guo et al. 2017, arXiv 1706.04599.

    Args:
        logits: ``(N, K)``, with ``N >= 1``.
        labels: True classes ``(N,)``.

    Returns:
        The temperature. It is 1 if it differs from 1 by less than `MIN_CHANGE`.

    Raises:
        InputError: If the minimum lies outside of ``1 / MAX_TEMPERATURE`` to ``MAX_TEMPERATURE``, for example if all
            predictions are correct.

    Example:
        >>> logits = torch.tensor([[9.0, 0.0], [9.0, 0.0], [9.0, 0.0], [9.0, 0.0]])
        >>> temperature = fit_temperature(logits, torch.tensor([0, 0, 0, 1]))
        >>> bool((logits / temperature).softmax(1)[0, 0].isclose(torch.tensor(0.75)))
        True
    """
    values = logits.double() - logits.double().mean(1, keepdim=True)
    target = values[torch.arange(len(labels)), labels].mean()

    def slope(inverse: float) -> float:
        return float(((inverse * values).softmax(1) * values).sum(1).mean() - target)

    low, high = slope(1 / MAX_TEMPERATURE), slope(MAX_TEMPERATURE)
    if low >= 0:
        raise InputError(
            f"the temperature must be {MAX_TEMPERATURE:g} or less, got a higher one: the predictions on the "
            f"{len(labels):,} validation images are no better than guessing. Calibrate a trained model."
        )
    if high <= 0:
        correct = int((values.argmax(1) == labels).sum())
        raise InputError(
            f"the temperature must be {1 / MAX_TEMPERATURE:g} or more, got a lower one: {correct:,} of "
            f"{len(labels):,} validation images are predicted correctly, too few errors to measure the confidence. "
            "Give --data more images."
        )
    temperature = 1 / float(brentq(slope, 1 / MAX_TEMPERATURE, MAX_TEMPERATURE, xtol=1e-12))
    return 1.0 if abs(math.log(temperature)) < MIN_CHANGE else temperature


class Confidence(NamedTuple):
    """Quality of the confidence on ``N`` images, and of the answers at or above a threshold.

    Attributes:
        images: Number of images.
        ece: Expected calibration error.
        nll: Mean negative log-likelihood.
        coverage: Share of images at or above the threshold, which are answered.
        answered_accuracy: Accuracy on these images, the precision of the answers. None if there is no such image.
        low: Lower end of the 95 % interval of ``answered_accuracy``, or None.
        high: Upper end of the interval, or None.
    """

    images: int
    ece: float
    nll: float
    coverage: float
    answered_accuracy: float | None
    low: float | None
    high: float | None


def measure_confidence(logits: Tensor, labels: Tensor, threshold: float = 0.0) -> Confidence:
    """Measure the calibration of logits, and the answers at or above a confidence threshold.

    Args:
        logits: ``(N, K)``, with ``N >= 1``.
        labels: True classes ``(N,)``.
        threshold: Confidence threshold. 0: every image is answered.

    Example:
        >>> confidence = measure_confidence(torch.tensor([[9.0, 0.0], [0.1, 0.0]]), torch.tensor([0, 1]), 0.6)
        >>> confidence.coverage, confidence.answered_accuracy
        (0.5, 1.0)
    """
    confidence, predicted = logits.softmax(1).max(1)
    answered = confidence >= threshold
    count = int(answered.sum())
    correct = int((predicted == labels)[answered].sum())
    low, high = wilson_interval(correct, count) if count else (None, None)
    accuracy = correct / count if count else None
    return Confidence(len(labels), ece(logits, labels), nll(logits, labels), count / len(labels), accuracy, low, high)


def choose_threshold(logits: Tensor, labels: Tensor, precision: float) -> float | None:
    """Choose the lowest confidence threshold with the requested precision of the answers.

    Images of equal confidence are answered together or not at all.

    Args:
        logits: ``(N, K)``, with ``N >= 1``.
        labels: True classes ``(N,)``.
        precision: Requested accuracy on the images at or above the threshold.

    Returns:
        The threshold: the confidence of an image, or 0 if all images together have the precision. None if no threshold
        has the precision.

    Example:
        >>> logits = torch.tensor([[3.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
        >>> choose_threshold(logits, torch.tensor([0, 0, 1]), 1.0) == float(logits[1].softmax(0)[0])
        True
    """
    confidence, predicted = logits.softmax(1).max(1)
    order = confidence.argsort(descending=True, stable=True)
    ranked = confidence[order]
    precisions = (predicted == labels)[order].double().cumsum(0) / torch.arange(1, len(labels) + 1)
    is_last_of_equals = torch.cat([ranked[:-1] > ranked[1:], torch.tensor([True])])
    suitable = ((precisions >= precision) & is_last_of_equals).nonzero().flatten()
    if not len(suitable):
        return None
    last = int(suitable[-1])
    return 0.0 if last == len(labels) - 1 else float(ranked[last])


def divide_head(model: nn.Module, size: int, temperature: float) -> dict[str, Tensor]:
    """Divide weight and bias of the last layer by a temperature, so that the logits are divided by it.

    The layer is linear, so every map in units of logits is divided too, and ``logits = mean of the map + bias`` stays
    exact.

    Args:
        model: A classifier that ends in a linear layer. It is changed in place.
        size: Side of the images in pixels.
        temperature: The temperature.

    Returns:
        The previous weight and bias, by their names in the state dict.

    Raises:
        InputError: If the logits are not the output of a linear layer with one feature vector per image; the model is
            then unchanged. If the logits are not divided by the temperature, because the weights are used elsewhere
            too.

    Example:
        >>> from camkd.models import build
        >>> sorted(divide_head(build("cam-net", 10, 32), 32, 2.0))
        ['head.bias', 'head.weight']
    """
    x = example_images(size, next(model.parameters()).device)
    try:
        name, layer = linear_head(model, x)
    except InputError as error:
        raise InputError(
            f"calibration needs a network that ends in a linear layer of one feature vector per image, got "
            f"{type(model).__name__} with another head. Divide its logits by a temperature yourself."
        ) from error
    parameters = {f"{name}.{key}": parameter for key, parameter in layer.named_parameters()}
    previous = {key: parameter.detach().clone() for key, parameter in parameters.items()}
    with eval_mode(model), torch.no_grad():
        logits = model(x)
        for parameter in parameters.values():
            parameter.div_(temperature)
        divided = model(x)
    if not torch.allclose(divided * temperature, logits, rtol=1e-3, atol=1e-4 + 1e-3 * float(logits.abs().max())):
        raise InputError(
            f"the weights of the last layer must be used in this layer only, got {type(model).__name__}, which uses "
            "them elsewhere too. Divide its logits by a temperature yourself."
        )
    return previous
