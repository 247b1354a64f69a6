"""Is what was written what was trained? Exported files against PyTorch, and against each other, on real pictures."""

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
from camkd.data.augment import sequential_batches
from camkd.data.dataset import Split
from camkd.evaluate.metrics import accuracy, cosine
from camkd.export.sessions import as_input, open_session, run
from camkd.models.eval_mode import eval_mode

TOLERANCE = 1e-4
"""The largest difference to PyTorch, as a share of the largest number there; rounding in fp32 makes about 1e-6."""


class Differences(NamedTuple):
    """The largest differences to PyTorch over all pictures, in units of logits."""

    logits: float
    cam: float


class QuantizationCost(NamedTuple):
    """What another number format costs on test pictures."""

    before: float  # accuracy
    after: float
    agreement: float  # share of pictures with the same answer
    cam_cosine: float  # mean likeness of the maps of the class that was predicted before


def compare(model: nn.Module, path: Path, images: NDArray[np.uint8]) -> Differences:
    """Ask ``model`` and the file at ``path`` about ``images (N, H, W, 3)``: one alone, then all at once.

    Raises ``FloatingPointError`` where an answer differs by more than ``TOLERANCE``.
    """
    session, found = open_session(path), []
    for some in (images[:1], images):
        pixels = as_input(some)
        with eval_mode(model), torch.no_grad():
            answer = predict(model, torch.from_numpy(pixels))
        assert answer.cams is not None
        for expected, got in zip((answer.logits, answer.cams), run(session, pixels), strict=True):
            found.append(difference(expected.numpy(), got, path))
    return Differences(max(found[::2]), max(found[1::2]))


def difference(expected: NDArray[np.float32], got: NDArray[np.float32], path: Path) -> float:
    """The largest difference. Raises ``FloatingPointError`` where it is more than ``TOLERANCE``, or no number."""
    largest = float(np.abs(expected - got).max()) if expected.shape == got.shape else float("nan")
    if not largest <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise FloatingPointError(
            f"{path.name} does not answer as PyTorch does (largest difference {largest:.3g}), so it was not kept"
        )
    return largest


def widened(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same pictures with half as many pixels more along each side."""
    x = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float()
    wide = F.interpolate(x, scale_factor=1.5, mode="bilinear", align_corners=False)
    return np.asarray(wide.round().byte().permute(0, 2, 3, 1).numpy())


def measure_int8(before: Path, after: Path, split: Split) -> QuantizationCost:
    """Measure both files on all pictures of ``split``."""
    labels = torch.from_numpy(np.array(split.labels))
    logits: tuple[list[Tensor], list[Tensor]] = ([], [])
    alike = []
    for (ours, our_cams), (theirs, their_cams) in zip(_answers(before, split), _answers(after, split), strict=True):
        logits[0].append(ours)
        logits[1].append(theirs)
        rows, shown = torch.arange(len(ours)), ours.argmax(1)
        alike.append(cosine(our_cams[rows, shown], their_cams[rows, shown]))
    first, second = map(torch.cat, logits)
    return QuantizationCost(
        accuracy(first, labels),
        accuracy(second, labels),
        accuracy(second, first.argmax(1)),
        torch.cat(alike).double().mean().item(),
    )


def _answers(path: Path, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    session = open_session(path)
    for samples in sequential_batches(split):
        logits, cams = run(session, as_input(split.images[samples.numpy()]))
        yield torch.from_numpy(logits), torch.from_numpy(cams)
