"""Comparison of fp32 files with PyTorch, and of int8 files with fp32 files, on real images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from camkd.cams import predict
from camkd.data.batches import sequential_batches
from camkd.data.dataset import Split
from camkd.evaluate.metrics import accuracy, cosine
from camkd.export.sessions import open_session, run_session, to_input
from camkd.models.eval_mode import eval_mode

TOLERANCE = 1e-4
"""Largest allowed difference, relative to ``max(1, max |PyTorch output|)``. Rounding in fp32 gives about 1e-6."""


class MaxDifferences(NamedTuple):
    """Largest absolute differences to PyTorch over all images, in units of logits.

    Attributes:
        logits: Largest difference of a logit.
        cam: Largest difference of a map at a location.
    """

    logits: float
    cam: float


class QuantizationCost(NamedTuple):
    """Metrics of a quantized file on test images, in comparison with the original file.

    Attributes:
        before: Accuracy of the original file, in 0..1.
        after: Accuracy of the quantized file, in 0..1.
        agreement: Fraction of images with the same predicted class, in 0..1.
        cam_cosine: Mean cosine similarity of the maps for the class that the original file predicts.
    """

    before: float
    after: float
    agreement: float
    cam_cosine: float


def compare_with_pytorch(model: nn.Module, path: Path, images: NDArray[np.uint8]) -> MaxDifferences:
    """Compare logits and maps of an exported file with PyTorch, for a batch of one image and for all images.

    Args:
        model: The exported classifier.
        path: The ONNX file, with maps.
        images: RGB ``(N, H, W, 3)`` uint8.

    Returns:
        The largest differences.

    Raises:
        FloatingPointError: If the logits or the maps differ by more than `TOLERANCE`, as in `max_difference`.

    Example:
        >>> compare_with_pytorch(model, Path("model.onnx"), dataset.test.images[:8])          # doctest: +SKIP
        MaxDifferences(logits=1.9e-06, cam=2.3e-06)
    """
    session = open_session(path)
    logits_differences = []
    cam_differences = []
    for batch in (images[:1], images):
        x = to_input(batch)
        with eval_mode(model), torch.no_grad():
            prediction = predict(model, torch.from_numpy(x))
        assert prediction.cams is not None
        logits, cam = run_session(session, x)
        logits_differences.append(max_difference(prediction.logits.numpy(), logits, path))
        cam_differences.append(max_difference(prediction.cams.numpy(), cam, path))
    return MaxDifferences(max(logits_differences), max(cam_differences))


def max_difference(expected: NDArray[np.float32], actual: NDArray[np.float32], path: Path) -> float:
    """Return the largest absolute difference of two arrays.

    Args:
        expected: Output of PyTorch.
        actual: Output of the exported file.
        path: The exported file, for the error message.

    Returns:
        The largest difference.

    Raises:
        FloatingPointError: If the difference is larger than `TOLERANCE` times ``max(1, max |expected|)`` or NaN, or
            the shapes differ.
    """
    difference = float(np.abs(expected - actual).max()) if expected.shape == actual.shape else float("nan")
    limit = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    if not difference <= limit:
        raise FloatingPointError(
            f"{path.name} must match PyTorch within {limit:.3g}, got a difference of {difference:.3g}, so it was not "
            "kept. Try another version of torch, onnxscript or onnxruntime."
        )
    return difference


def enlarge(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Resize images ``(N, H, W, 3)`` bilinearly to 1.5 times their height and width."""
    x = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float()
    enlarged = F.interpolate(x, scale_factor=1.5, mode="bilinear", align_corners=False)
    return np.asarray(enlarged.round().byte().permute(0, 2, 3, 1).numpy())


def measure_int8(original: Path, quantized: Path, split: Split) -> QuantizationCost:
    """Measure the accuracy of a quantized file, and its agreement with the original file, on all images of a split.

    Args:
        original: ONNX file in fp32, with maps.
        quantized: ONNX file in int8, with maps.
        split: Images and labels.

    Returns:
        The metrics.
    """
    labels = torch.from_numpy(np.array(split.labels))
    original_logits: list[Tensor] = []
    quantized_logits: list[Tensor] = []
    cosines: list[Tensor] = []
    for (logits, cams), (int8_logits, int8_cams) in zip(
        _iter_outputs(original, split), _iter_outputs(quantized, split), strict=True
    ):
        original_logits.append(logits)
        quantized_logits.append(int8_logits)
        rows = torch.arange(len(logits))
        class_ids = logits.argmax(1)
        cosines.append(cosine(cams[rows, class_ids], int8_cams[rows, class_ids]))
    before = torch.cat(original_logits)
    after = torch.cat(quantized_logits)
    return QuantizationCost(
        before=accuracy(before, labels),
        after=accuracy(after, labels),
        agreement=accuracy(after, before.argmax(1)),
        cam_cosine=torch.cat(cosines).double().mean().item(),
    )


def _iter_outputs(path: Path, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits and maps of each batch of a split."""
    session = open_session(path)
    for rows in sequential_batches(split):
        logits, cams = run_session(session, to_input(split.images[rows.numpy()]))
        yield torch.from_numpy(logits), torch.from_numpy(cams)
