"""Synthetic dataset of shapes with object masks.

Each image contains one object, of one of ten classes, with a random position, size, rotation and color. The background
has a pattern, lines, dots and small distractors that belong to no class. Each shape is a signed distance function,
negative inside the shape. The distance determines the antialiased edge and the mask of the object.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camkd.data.dataset import Dataset, Progress, Split
from camkd.data.store import SplitArrays, build_or_open, encode_key
from camkd.types import InputError

Array = NDArray[np.floating[Any]]

VERSION = 1
"""Version of the drawings. Increment when the same settings draw other images."""

COUNTS = {"train": 10_000, "val": 1_000, "test": 2_000}
"""Number of images of each split."""

DEFAULT_SIZE = 32
MIN_SIZE = 16
MAX_SIZE = 256
SEED = 20_240
CHUNK_SIZE = 500
"""Number of images that are drawn at a time. Each chunk has its own random generator."""

CUE_VERSION = 2
"""Version of the cue. Increment when the same settings draw another cue."""

CUE_SIDE = 1 / 4
"""Side of the cue relative to the side of the image. A cue of 1/8 did not mislead any network (LOG.md)."""

CUE_ACCURACY = 0.95
"""Probability that the cue has the color of the class. Otherwise it has the color of a random class."""


@dataclass(frozen=True)
class Difficulty:
    """Settings that determine the difficulty of the images. Lengths are relative to half the side of the image.

    Args:
        radius: Range of the radius of the object.
        stretch: Maximum logarithm of the ratio of the two axes of the object.
        contrast: Minimum Euclidean distance between the colors of object and background, RGB in 0..1. If none of eight
            random colors is as far away, the farthest is used.
        background_saturation: Saturation of the background colors relative to all other colors.
        texture: Maximum amplitude of the pattern on the object and on the background.
        lines: Number of lines behind the object.
        foreground_lines: Number of lines in front of the object.
        dots: Number of dots.
        distractors: Number of distractors.
        distractor_radius: Range of the radius of a distractor.
        noise: Range of the standard deviation of the pixel noise.
    """

    radius: tuple[float, float] = (0.42, 0.80)
    stretch: float = 0.12
    contrast: float = 0.5
    background_saturation: float = 0.5
    texture: float = 0.22
    lines: int = 2
    foreground_lines: int = 1
    dots: int = 4
    distractors: int = 2
    distractor_radius: tuple[float, float] = (0.10, 0.20)
    noise: tuple[float, float] = (0.01, 0.06)


DIFFICULTY = Difficulty()


def _length(x: Array, y: Array) -> Array:
    length: Array = np.hypot(x, y)
    return length


def _union(a: Array, b: Array) -> Array:
    distance: Array = np.minimum(a, b)
    return distance


def _intersection(a: Array, b: Array) -> Array:
    return -_union(-a, -b)


def _fold(x: Array, y: Array, sectors: int) -> Array:
    """Return the angle to the center of the nearest of ``sectors`` equal sectors, in ``0..pi/sectors``."""
    sector = np.float32(2 * np.pi / sectors)
    angle: Array = np.abs((np.arctan2(y, x) + sector / 2) % sector - sector / 2)
    return angle


def _polygon(corners: int, radius: float) -> Callable[[Array, Array], Array]:
    """Return the distance function of a regular polygon with its corners at ``radius``."""
    inner_radius = np.float32(radius * np.cos(np.pi / corners))

    def polygon(x: Array, y: Array) -> Array:
        projection: Array = _length(x, y) * np.cos(_fold(x, y, corners))
        return projection - inner_radius

    return polygon


def _box(x: Array, y: Array, width: float, height: float) -> Array:
    return _intersection(np.abs(x) - np.float32(width), np.abs(y) - np.float32(height))


def _circle(x: Array, y: Array) -> Array:
    return _length(x, y) - np.float32(0.85)


def _diamond(x: Array, y: Array) -> Array:
    width = 0.62
    height = 1.1
    distance: Array = np.abs(x) * height + np.abs(y) * width - width * height
    return distance / np.float32(np.hypot(width, height))


def _star(x: Array, y: Array) -> Array:
    """Five-pointed star with its tips at 1.08 and its inner corners at 0.45."""
    angle = _fold(x, y, 5)
    radius = _length(x, y)
    edge_x = 0.45 * np.cos(np.pi / 5) - 1.08
    edge_y = 0.45 * np.sin(np.pi / 5)
    distance: Array = (radius * np.cos(angle) - np.float32(1.08)) * edge_y - radius * np.sin(angle) * edge_x
    return distance / np.float32(np.hypot(edge_x, edge_y))


def _cross(x: Array, y: Array) -> Array:
    return _union(_box(x, y, 0.95, 0.3), _box(x, y, 0.3, 0.95))


def _ring(x: Array, y: Array) -> Array:
    distance = _length(x, y) - np.float32(0.7)
    return _intersection(distance, -distance) - np.float32(0.2)


def _crescent(x: Array, y: Array) -> Array:
    cutout = _length(x - np.float32(0.45), y) - np.float32(0.75)
    return _intersection(_length(x, y) - np.float32(0.95), -cutout)


def _arrow(x: Array, y: Array) -> Array:
    shaft = _box(x + np.float32(0.45), y, 0.55, 0.2)
    sides = (np.abs(y) + (x - 1) * np.float32(0.8)) / np.float32(np.hypot(1.0, 0.8))
    return _union(shaft, _intersection(-x - np.float32(0.05), sides))


SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "arrow": _arrow,
    "circle": _circle,
    "crescent": _crescent,
    "cross": _cross,
    "diamond": _diamond,
    "pentagon": _polygon(5, 0.95),
    "ring": _ring,
    "square": _polygon(4, 1.05),
    "star": _star,
    "triangle": _polygon(3, 1.1),
}
"""Signed distance function ``(x, y) -> distance`` by class. Each shape is about as large as the unit circle."""


def open_shapes(size: int | None, cache: Path, progress: Progress, *, cue: bool = False) -> Dataset:
    """Open the dataset of synthetic shapes; draw the images the first time.

    The dataset has 10,000 training, 1,000 validation and 2,000 test images with masks. It is deterministic.

    Args:
        size: Side of the images in pixels, 16 to 256. None is 32.
        cache: Root of the cache.
        progress: Progress callback.
        cue: Whether to add a spurious cue to the training and validation images: a square in a random corner, which has
            the color of the class with probability `CUE_ACCURACY`. The test images have no cue.

    Returns:
        The dataset, with masks.

    Raises:
        InputError: If ``size`` is out of range, or if the dataset cannot be stored.

    Example:
        >>> data = open_shapes(64, cache_folder(), no_progress)          # doctest: +SKIP
        >>> data.train.images.shape, data.train.masks.shape              # doctest: +SKIP
        ((10000, 64, 64, 3), (10000, 64, 64))
    """
    size = size or DEFAULT_SIZE
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise InputError(f"size must be {MIN_SIZE} to {MAX_SIZE} for shapes, got {size}. Choose a size in this range.")

    def build(_: Path) -> SplitArrays:
        train, val, test = (draw_split(split, count, size, progress) for split, count in COUNTS.items())
        if cue:
            add_cue(train, SEED)
            add_cue(val, SEED + 1)
        source = hashlib.sha256(cache_key(DEFAULT_SIZE, cue=cue).encode()).hexdigest()  # the same for every size
        return SplitArrays(tuple(SHAPES), train, val, test, source_fingerprint=source)

    return build_or_open("shapes-cue" if cue else "shapes", cache_key(size, cue=cue), cache, build)


def cache_key(size: int, *, cue: bool) -> str:
    """Return the key of the cached dataset: every setting that the images depend on."""
    values: dict[str, Any] = {
        "version": VERSION,
        "source": "shapes",
        "classes": list(SHAPES),
        "counts": {split: COUNTS[split] for split in ("train", "val", "test")},
        "size": size,
        "seed": SEED,
        "chunk_size": CHUNK_SIZE,
        "radius": DIFFICULTY.radius,
        "stretch": DIFFICULTY.stretch,
        "contrast": DIFFICULTY.contrast,
        "background_saturation": DIFFICULTY.background_saturation,
        "texture": DIFFICULTY.texture,
        "lines": DIFFICULTY.lines,
        "foreground_lines": DIFFICULTY.foreground_lines,
        "dots": DIFFICULTY.dots,
        "distractors": DIFFICULTY.distractors,
        "distractor_radius": DIFFICULTY.distractor_radius,
        "noise": DIFFICULTY.noise,
    }
    if cue:
        values["cue"] = {"version": CUE_VERSION, "side": CUE_SIDE, "accuracy": CUE_ACCURACY}
    return encode_key(values)


def add_cue(split: Split, seed: int) -> None:
    """Draw the spurious cue into the images, in place.

    The cue is a square in a random corner. It has the color of the class with probability `CUE_ACCURACY`, else the
    color of a random class.

    Args:
        split: Writable images, ``(N, S, S, 3) uint8``, and labels.
        seed: Seed of the corners and of the colors.
    """
    rng = np.random.default_rng(seed)
    side = round(split.images.shape[1] * CUE_SIDE)
    is_correct = rng.random(len(split)) < CUE_ACCURACY
    cue_classes = np.where(is_correct, split.labels, rng.integers(0, len(SHAPES), len(split)))
    hues = np.arange(len(SHAPES)) / len(SHAPES) * 2 * np.pi
    colors = 127.5 + 127.5 * np.cos(hues[:, None] - np.arange(3) * 2 * np.pi / 3)
    at_bottom, at_right = rng.random((2, len(split))) < 0.5
    for bottom, rows in ((False, slice(None, side)), (True, slice(-side, None))):
        for right, columns in ((False, slice(None, side)), (True, slice(-side, None))):
            indices = np.flatnonzero((at_bottom == bottom) & (at_right == right))
            split.images[indices, rows, columns] = colors[cue_classes[indices], None, None].astype(np.uint8)


def draw_split(split: str, count: int, size: int, progress: Progress) -> Split:
    """Draw ``count`` images of a split; image ``i`` has class ``i % 10``.

    Images are drawn in chunks of `CHUNK_SIZE`. An incomplete last chunk has other images than a complete chunk.

    Args:
        split: Name of the split: ``train``, ``val`` or ``test``.
        count: Number of images.
        size: Side of the images in pixels.
        progress: Progress callback.

    Returns:
        Images, labels and masks.
    """
    images = np.empty((count, size, size, 3), np.uint8)
    masks = np.empty((count, size, size), np.bool_)
    labels = np.arange(count, dtype=np.int64) % len(SHAPES)
    for start in range(0, count, CHUNK_SIZE):
        rows = slice(start, start + CHUNK_SIZE)
        rng = np.random.default_rng([SEED, list(COUNTS).index(split), start])
        images[rows], masks[rows] = _Canvas(rng, len(labels[rows]), size).draw(labels[rows])
        progress(min(start + CHUNK_SIZE, count), count, f"drawing {split} images")
    return Split(images, labels, masks)


class _Canvas:
    """Chunk of ``n`` images that are drawn together: ``pixels (n, S, S, 3)`` in 0..1, coordinates in -1..1."""

    def __init__(self, rng: np.random.Generator, n: int, size: int) -> None:
        self.rng = rng
        self.n = n
        self.pixel_size = np.float32(2 / size)
        axis = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * self.pixel_size - 1
        self.x = np.broadcast_to(axis, (n, size, size))
        self.y = np.broadcast_to(axis[:, None], (n, size, size))
        self.pixels = np.zeros((n, size, size, 3), np.float32)

    def draw(self, labels: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Draw the images of ``labels (n,)``; return images ``(n, S, S, 3)`` and masks ``(n, S, S)``."""
        self._draw_background()
        for _ in range(DIFFICULTY.lines):
            self._fill(self._line(), self._random_color())
        for _ in range(DIFFICULTY.dots):
            self._fill(self._disc((0.03, 0.08), waviness=0), self._random_color())
        for _ in range(DIFFICULTY.distractors):
            self._fill(self._disc(DIFFICULTY.distractor_radius, waviness=0.35), self._random_color())
        mask = self._draw_object(labels)
        for _ in range(DIFFICULTY.foreground_lines):
            self._fill(self._line(), self._random_color())
        deviation = self._uniform(*DIFFICULTY.noise)[..., None]
        self.pixels += deviation * self.rng.standard_normal(self.pixels.shape, np.float32)
        return (self.pixels.clip(0, 1) * 255 + 0.5).astype(np.uint8), mask

    def _uniform(self, low: float, high: float) -> Array:
        """Draw a random number per image, ``(n, 1, 1)``."""
        return self.rng.uniform(low, high, (self.n, 1, 1)).astype(np.float32)

    def _random_color(self) -> Array:
        return self.rng.uniform(0, 1, (self.n, 1, 1, 3)).astype(np.float32)

    def _desaturate(self, color: Array) -> Array:
        gray: Array = color.mean(-1, keepdims=True)
        return gray + (color - gray) * np.float32(DIFFICULTY.background_saturation)

    def _fill(self, distance: Array, color: Array) -> None:
        """Draw ``color`` at negative ``distance``, antialiased at the edge."""
        opacity = (np.float32(0.5) - distance / self.pixel_size).clip(0, 1)[..., None]
        self.pixels += opacity * (color - self.pixels)

    def _pattern(self) -> Array:
        """Return the mean of two sine waves of random direction and frequency, in -1..1."""
        waves = np.zeros_like(self.x)
        for _ in range(2):
            angle = self._uniform(0, np.pi)
            phase = self._uniform(0, 2 * np.pi)
            frequency = np.exp(self._uniform(np.log(0.8), np.log(14)))
            waves += np.sin(frequency * (self.x * np.cos(angle) + self.y * np.sin(angle)) + phase)
        return waves / 2

    def _draw_background(self) -> None:
        """Draw a linear transition between two colors, and a pattern."""
        start = self._desaturate(self._random_color())
        end = self._desaturate(self._random_color())
        angle = self._uniform(0, 2 * np.pi)
        ramp = (self.x * np.cos(angle) + self.y * np.sin(angle)).clip(-1, 1)[..., None] / 2 + np.float32(0.5)
        self.pixels += start + ramp * (end - start) * np.float32(0.7)
        self.pixels += (self._uniform(0, DIFFICULTY.texture) * self._pattern())[..., None]
        np.clip(self.pixels, 0, 1, out=self.pixels)

    def _line(self) -> Array:
        """Return the signed distance to a thin straight line at a random position."""
        angle = self._uniform(0, np.pi)
        offset = self._uniform(-0.9, 0.9)
        distance: Array = self.x * np.cos(angle) + self.y * np.sin(angle) - offset
        return _intersection(distance, -distance) - self._uniform(0.01, 0.05)

    def _disc(self, radius_range: tuple[float, float], waviness: float) -> Array:
        """Return the signed distance to a disc at a random position.

        The edge deviates from the circle by up to ``2 * waviness`` of the radius.
        """
        x = self.x - self._uniform(-0.95, 0.95)
        y = self.y - self._uniform(-0.95, 0.95)
        radius = self._uniform(*radius_range)
        if waviness:
            angle = np.arctan2(y, x)
            waves = np.sin(2 * angle + self._uniform(0, 7)) + np.sin(3 * angle + self._uniform(0, 7))
            radius = radius * (1 + np.float32(waviness) * waves)
        return np.hypot(x, y) - radius

    def _draw_object(self, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Draw the shape of each image; return the masks ``(n, S, S)``."""
        distance = self._object(labels)
        mask = distance < 0
        background = self.pixels.mean((1, 2), where=mask[..., None])
        texture = self._uniform(0, DIFFICULTY.texture) * self._pattern()
        self._fill(distance, (self._contrasting_color(background) + texture[..., None]).clip(0, 1))
        return mask

    def _object(self, labels: NDArray[np.int64]) -> Array:
        """Return the signed distance to the shape of each image, ``(n, S, S)``."""
        radius = np.exp(self._uniform(*np.log(DIFFICULTY.radius)))
        max_offset = np.maximum(1 - radius, 0.1)
        x = self.x - max_offset * self._uniform(-1, 1)
        y = self.y - max_offset * self._uniform(-1, 1)
        angle = self._uniform(0, 2 * np.pi)
        stretch = np.exp(self._uniform(-DIFFICULTY.stretch, DIFFICULTY.stretch) / 2)
        object_x = (x * np.cos(angle) + y * np.sin(angle)) / (radius * stretch)
        object_y = (y * np.cos(angle) - x * np.sin(angle)) / (radius / stretch)
        distance: Array = np.empty_like(object_x)
        for label, shape in enumerate(SHAPES.values()):
            rows = labels == label
            distance[rows] = shape(object_x[rows], object_y[rows])
        return distance * radius

    def _contrasting_color(self, background: Array) -> Array:
        """Choose the first of eight random colors that contrasts with ``background (n, 3)``.

        Returns:
            ``(n, 1, 1, 3)``; the color of largest contrast if none reaches the minimum contrast.
        """
        colors = self.rng.uniform(0, 1, (self.n, 8, 3)).astype(np.float32)
        contrast = np.linalg.norm(colors - background[:, None], axis=2)
        best = np.minimum(contrast, DIFFICULTY.contrast).argmax(1)
        chosen: Array = colors[np.arange(self.n), best]
        return chosen[:, None, None]
