"""Value range of gray images of more than 8 bits: one scaling to 8 bits for a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

ValueRange = tuple[float, float]
"""The gray values that become 0 and 255. Values outside are clipped."""

FULL_RANGE: ValueRange = (0.0, 65535.0)
"""Value range of 16-bit images in browsers."""

OUTLIER_FRACTION = 0.001
"""Fraction of the pixels of an image at either end of its values that may be outliers."""

MAX_SAMPLE = 1 << 20
"""Largest number of evenly spaced pixels whose quantiles are computed."""

BLOCK_ROWS = 256


class ValueSummary(NamedTuple):
    """Gray values of an image: minimum, quantiles `OUTLIER_FRACTION` and ``1 - OUTLIER_FRACTION``, and maximum."""

    lowest: float
    low: float
    high: float
    highest: float


def summarize(values: NDArray[Any], transparent: float | None = None) -> ValueSummary:
    """Summarize the gray values of an image.

    Args:
        values: Gray values ``(H, W)``.
        transparent: A value that stands for transparent pixels, which are not counted.

    Returns:
        The summary of the finite values.

    Raises:
        ValueError: If no value is finite.

    Example:
        >>> summarize(np.arange(1001).reshape(7, 143))
        ValueSummary(lowest=0.0, low=1.0, high=999.0, highest=1000.0)
    """
    flat = values[np.isfinite(values)] if values.dtype.kind == "f" else values.ravel()
    if transparent is not None:
        flat = flat[flat != transparent]
    if not flat.size:
        raise ValueError("an image must have a visible pixel with a finite value, got none")
    sample = flat[:: -(-flat.size // MAX_SAMPLE)]
    low, high = np.quantile(sample, [OUTLIER_FRACTION, 1 - OUTLIER_FRACTION], method="nearest")
    return ValueSummary(float(flat.min()), float(low), float(high), float(flat.max()))


def common_range(summaries: Sequence[ValueSummary]) -> ValueRange:
    """Return the value range of images: from the smallest to the largest value, without outliers.

    The range reaches at most half its width beyond the quantiles of all images. A hot pixel, a burnt-in label or a
    marker for missing values therefore takes at most half of the gray levels.

    Args:
        summaries: The gray values of each image, at least one.

    Returns:
        The value range; its width is above 0.

    Example:
        >>> common_range([ValueSummary(29455, 29460, 29650, 29663), ValueSummary(0, 29455, 29600, 65535)])
        (29357.5, 29747.5)
    """
    lowest = min(summary.lowest for summary in summaries)
    low = min(summary.low for summary in summaries)
    high = max(summary.high for summary in summaries)
    highest = max(summary.highest for summary in summaries)
    margin = (high - low) / 2
    if margin > 0:
        lowest = max(lowest, low - margin)
        highest = min(highest, high + margin)
    return lowest, highest if highest > lowest else lowest + 1


def scale_to_bytes(
    values: NDArray[Any], value_range: ValueRange, transparent: float | None = None
) -> NDArray[np.uint8]:
    """Scale gray values to 0..255 and round them.

    Args:
        values: Gray values ``(H, W)``: uint16, int32 or float32.
        value_range: The values that become 0 and 255. Values outside are clipped, and NaN becomes 0.
        transparent: A value that becomes white.

    Returns:
        ``(H, W) uint8``.

    Raises:
        ValueError: If the values are not 16-bit integers and exceed `FULL_RANGE`, or are fractions, although
            ``value_range`` is `FULL_RANGE`.

    Example:
        >>> scale_to_bytes(np.array([[29455, 29559, 29663, 65535]], np.uint16), (29455.0, 29663.0))
        array([[  0, 128, 255, 255]], dtype=uint8)
    """
    if values.dtype == np.uint16:
        pixels: NDArray[np.uint8] = _scale(np.arange(65536), value_range)[values]
    else:
        if value_range == FULL_RANGE and not _is_16_bits(values):
            raise ValueError(
                "a 32-bit image must have 16-bit integer values or belong to a model with a value range, got "
                f"values from {np.nanmin(values):g} to {np.nanmax(values):g}"
            )
        blocks = [_scale(values[row : row + BLOCK_ROWS], value_range) for row in range(0, len(values), BLOCK_ROWS)]
        pixels = np.concatenate(blocks)
    if transparent is not None:
        pixels[values == transparent] = 255
    return pixels


def _is_16_bits(values: NDArray[Any]) -> bool:
    """Return whether all values are 16-bit integers."""
    return bool(((values >= 0) & (values <= 65535) & (values == np.trunc(values))).all())


def _scale(values: NDArray[Any], value_range: ValueRange) -> NDArray[np.uint8]:
    low, high = value_range
    with np.errstate(over="ignore"):
        scaled = np.nan_to_num((values.astype(np.float64) - low) * (255 / (high - low)))
    return np.floor(scaled.clip(0, 255) + 0.5).astype(np.uint8)
