"""Drawn shapes: a data set that needs no download and knows where its objects are.

Every picture holds one object of ten classes, in a random place, size, rotation and colour, on a patterned
ground with lines, dots and small distractors that belong to no class. Shapes are signed distances, negative
inside, so that edges are antialiased exactly and the object's mask comes with the picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camkd.data.dataset import Dataset, Progress, Split, SplitArrays, build_or_open
from camkd.types import InputError

Array = NDArray[np.floating[Any]]

VERSION = 1
"""Goes up when the same difficulty draws other pictures."""

COUNTS = {"train": 10_000, "val": 1_000, "test": 2_000}
SIZE = 32
SIZES = (16, 256)
SEED = 20_240
DRAWN_AT_ONCE = 500

CUE_VERSION = 2
CUE_SIDE = 1 / 4  # of the picture's; one of 1/8 tempts nobody (LOG.md)
CUE_RIGHT = 0.95  # how often the cue is the class's own; else any class's
"""A coloured square in a random corner that gives the class away in training and validation, and is not there in the
test: what does a network learn that may cheat?"""


@dataclass(frozen=True)
class Difficulty:
    """What makes the pictures hard. Lengths are in half pictures: 1 reaches from the centre to an edge."""

    radius: tuple[float, float] = (0.42, 0.80)  # of the object
    stretch: float = 0.12  # one axis against the other, in logarithm
    contrast: float = 0.5  # least distance of the object's colour from its ground's, in RGB of 0..1
    ground_saturation: float = 0.5  # of the ground's colours; the others have 1
    texture: float = 0.22  # strongest pattern on ground and object
    lines: int = 2
    lines_in_front: int = 1
    dots: int = 4
    distractors: int = 2
    distractor_radius: tuple[float, float] = (0.10, 0.20)
    noise: tuple[float, float] = (0.01, 0.06)  # standard deviation of the pixels


DIFFICULTY = Difficulty()


def _length(x: Array, y: Array) -> Array:
    length: Array = np.hypot(x, y)
    return length


def _union(one: Array, other: Array) -> Array:
    distance: Array = np.minimum(one, other)
    return distance


def _intersection(one: Array, other: Array) -> Array:
    return -_union(-one, -other)


def _fold(x: Array, y: Array, times: int) -> Array:
    """The angle to the middle of the nearest of ``times`` equal sectors, in 0..pi/times."""
    sector = np.float32(2 * np.pi / times)
    angle: Array = np.abs((np.arctan2(y, x) + sector / 2) % sector - sector / 2)
    return angle


def _polygon(corners: int, radius: float) -> Callable[[Array, Array], Array]:
    """A regular polygon whose corners lie at ``radius``."""
    inner = np.float32(radius * np.cos(np.pi / corners))

    def polygon(x: Array, y: Array) -> Array:
        across: Array = _length(x, y) * np.cos(_fold(x, y, corners))
        return across - inner

    return polygon


def _box(x: Array, y: Array, width: float, height: float) -> Array:
    return _intersection(np.abs(x) - np.float32(width), np.abs(y) - np.float32(height))


def _circle(x: Array, y: Array) -> Array:
    return _length(x, y) - np.float32(0.85)


def _diamond(x: Array, y: Array) -> Array:
    wide, high = 0.62, 1.1
    distance: Array = np.abs(x) * high + np.abs(y) * wide - wide * high
    return distance / np.float32(np.hypot(wide, high))


def _star(x: Array, y: Array) -> Array:
    """Five tips at 1.08 from the middle; each edge runs from a tip to a valley at 0.45."""
    angle, radius = _fold(x, y, 5), _length(x, y)
    back, up = 0.45 * np.cos(np.pi / 5) - 1.08, 0.45 * np.sin(np.pi / 5)
    distance: Array = (radius * np.cos(angle) - np.float32(1.08)) * up - radius * np.sin(angle) * back
    return distance / np.float32(np.hypot(back, up))


def _cross(x: Array, y: Array) -> Array:
    return _union(_box(x, y, 0.95, 0.3), _box(x, y, 0.3, 0.95))


def _ring(x: Array, y: Array) -> Array:
    middle = _length(x, y) - np.float32(0.7)
    return _intersection(middle, -middle) - np.float32(0.2)


def _crescent(x: Array, y: Array) -> Array:
    bite = _length(x - np.float32(0.45), y) - np.float32(0.75)
    return _intersection(_length(x, y) - np.float32(0.95), -bite)


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
"""Class name to signed distance ``(x, y) -> d`` of a shape about as large as the unit circle."""


def open_shapes(size: int | None, cache: Path, progress: Progress, *, cue: bool = False) -> Dataset:
    """Open the drawn shapes with ``size`` x ``size`` pixels (None: 32), drawing them the first time.

    The same pictures every time: 10,000 for training, 1,000 for validation, 2,000 for testing, with masks. With
    ``cue`` those of training and validation also have a spurious cue, whose colour says the class; those of the test
    are the same without. Raises `InputError` where ``size`` is not in 16..256.
    """
    size = size or SIZE
    if not SIZES[0] <= size <= SIZES[1]:
        raise InputError(f"size is {size}, but shapes have {SIZES[0]} to {SIZES[1]} pixels: choose one of these.")

    def build(folder: Path) -> SplitArrays:
        train, val, test = (draw_split(split, count, size, progress) for split, count in COUNTS.items())
        if cue:
            add_cue(train, SEED)
            add_cue(val, SEED + 1)
        return SplitArrays(tuple(SHAPES), train, val, test)

    key = f"{VERSION} {SEED} {size} {COUNTS} {DIFFICULTY}"
    if cue:
        return build_or_open("shapes-cue", f"{key} {CUE_VERSION} {CUE_SIDE} {CUE_RIGHT}", cache, build)
    return build_or_open("shapes", key, cache, build)


def add_cue(split: Split, seed: int) -> None:
    """Paint the cue into a random corner of each picture, in the colour of its class, now and then of another."""
    rng, side = np.random.default_rng(seed), round(split.images.shape[1] * CUE_SIDE)
    said = np.where(rng.random(len(split)) < CUE_RIGHT, split.labels, rng.integers(0, len(SHAPES), len(split)))
    hues = np.arange(len(SHAPES)) / len(SHAPES) * 2 * np.pi
    colours = 127.5 + 127.5 * np.cos(hues[:, None] - np.arange(3) * 2 * np.pi / 3)
    down, right = rng.random((2, len(split))) < 0.5
    for vertical, rows in ((False, slice(None, side)), (True, slice(-side, None))):
        for horizontal, columns in ((False, slice(None, side)), (True, slice(-side, None))):
            here = np.flatnonzero((down == vertical) & (right == horizontal))
            split.images[here, rows, columns] = colours[said[here], None, None].astype(np.uint8)


def draw_split(split: str, count: int, size: int, progress: Progress) -> Split:
    """Draw the first ``count`` pictures of ``split``, the classes in turn."""
    images = np.empty((count, size, size, 3), np.uint8)
    masks = np.empty((count, size, size), np.bool_)
    labels = np.arange(count, dtype=np.int64) % len(SHAPES)
    for start in range(0, count, DRAWN_AT_ONCE):
        rows = slice(start, start + DRAWN_AT_ONCE)
        rng = np.random.default_rng([SEED, list(COUNTS).index(split), start])
        images[rows], masks[rows] = _Sheet(rng, len(labels[rows]), size).draw(labels[rows])
        progress(min(start + DRAWN_AT_ONCE, count), count, f"drawing {split} pictures")
    return Split(images, labels, masks)


class _Sheet:
    """``n`` pictures being painted at once: ``paint (n, S, S, 3)`` in 0..1 over coordinates in -1..1."""

    def __init__(self, rng: np.random.Generator, n: int, size: int) -> None:
        self.rng, self.n, self.pixel = rng, n, np.float32(2 / size)
        axis = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * self.pixel - 1
        self.x, self.y = (
            np.broadcast_to(axis, (n, size, size)),
            np.broadcast_to(axis[:, None], (n, size, size)),
        )
        self.paint = np.zeros((n, size, size, 3), np.float32)

    def draw(self, labels: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        hard = DIFFICULTY
        self._ground()
        for _ in range(hard.lines):
            self._cover(self._line(), self._colour())
        for _ in range(hard.dots):
            self._cover(self._blob((0.03, 0.08), wobble=0), self._colour())
        for _ in range(hard.distractors):
            self._cover(self._blob(hard.distractor_radius, wobble=0.35), self._colour())
        mask = self._object(labels)
        for _ in range(hard.lines_in_front):
            self._cover(self._line(), self._colour())
        deviation = self._between(*hard.noise)[..., None]
        self.paint += deviation * self.rng.standard_normal(self.paint.shape, np.float32)
        return (self.paint.clip(0, 1) * 255 + 0.5).astype(np.uint8), mask

    def _between(self, low: float, high: float) -> Array:
        """A number for each picture, ``(n, 1, 1)``."""
        return self.rng.uniform(low, high, (self.n, 1, 1)).astype(np.float32)

    def _colour(self) -> Array:
        return self.rng.uniform(0, 1, (self.n, 1, 1, 3)).astype(np.float32)

    def _muted(self, colour: Array) -> Array:
        grey: Array = colour.mean(-1, keepdims=True)
        return grey + (colour - grey) * np.float32(DIFFICULTY.ground_saturation)

    def _cover(self, distance: Array, colour: Array) -> None:
        """Paint ``colour`` where ``distance`` is negative; a pixel on the edge gets its share of it."""
        share = (np.float32(0.5) - distance / self.pixel).clip(0, 1)[..., None]
        self.paint += share * (colour - self.paint)

    def _pattern(self) -> Array:
        """Waves in one or two random directions, from fine stripes to a slow gradient, in -1..1."""
        waves = np.zeros_like(self.x)
        for _ in range(2):
            angle, phase = self._between(0, np.pi), self._between(0, 2 * np.pi)
            frequency = np.exp(self._between(np.log(0.8), np.log(14)))
            waves += np.sin(frequency * (self.x * np.cos(angle) + self.y * np.sin(angle)) + phase)
        return waves / 2

    def _ground(self) -> None:
        first, second = (self._muted(self._colour()) for _ in range(2))
        angle = self._between(0, 2 * np.pi)
        slope = (self.x * np.cos(angle) + self.y * np.sin(angle)).clip(-1, 1)[..., None] / 2 + np.float32(0.5)
        self.paint += first + slope * (second - first) * np.float32(0.7)
        self.paint += (self._between(0, DIFFICULTY.texture) * self._pattern())[..., None]
        np.clip(self.paint, 0, 1, out=self.paint)

    def _line(self) -> Array:
        """Distance to a thin straight line through a random place."""
        angle, offset = self._between(0, np.pi), self._between(-0.9, 0.9)
        across: Array = self.x * np.cos(angle) + self.y * np.sin(angle) - offset
        return _intersection(across, -across) - self._between(0.01, 0.05)

    def _blob(self, radius: tuple[float, float], wobble: float) -> Array:
        """Distance to a disc in a random place whose edge goes in and out by ``wobble`` of its radius."""
        x, y = self.x - self._between(-0.95, 0.95), self.y - self._between(-0.95, 0.95)
        edge = self._between(*radius)
        if wobble:
            angle = np.arctan2(y, x)
            waves = np.sin(2 * angle + self._between(0, 7)) + np.sin(3 * angle + self._between(0, 7))
            edge = edge * (1 + np.float32(wobble) * waves)
        return np.hypot(x, y) - edge

    def _object(self, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Paint each picture's shape and return where it is, ``(n, S, S)``."""
        distance = self._shape(labels)
        mask = distance < 0
        ground = self.paint.mean((1, 2), where=mask[..., None])
        shade = self._between(0, DIFFICULTY.texture) * self._pattern()
        self._cover(distance, (self._colour_on(ground) + shade[..., None]).clip(0, 1))
        return mask

    def _shape(self, labels: NDArray[np.int64]) -> Array:
        """Signed distance to each picture's shape, in half pictures."""
        radius = np.exp(self._between(*np.log(DIFFICULTY.radius)))
        room = np.maximum(1 - radius, 0.1)
        x, y = self.x - room * self._between(-1, 1), self.y - room * self._between(-1, 1)
        angle = self._between(0, 2 * np.pi)
        stretch = np.exp(self._between(-DIFFICULTY.stretch, DIFFICULTY.stretch) / 2)
        along = (x * np.cos(angle) + y * np.sin(angle)) / (radius * stretch)
        across = (y * np.cos(angle) - x * np.sin(angle)) / (radius / stretch)
        distance: Array = np.empty_like(along)
        for label, shape in enumerate(SHAPES.values()):
            rows = labels == label
            distance[rows] = shape(along[rows], across[rows])
        return distance * radius

    def _colour_on(self, ground: Array) -> Array:
        """The first of some random colours ``(n, 1, 1, 3)`` that stands out from ``ground (n, 3)``."""
        choices = self.rng.uniform(0, 1, (self.n, 8, 3)).astype(np.float32)
        apart = np.linalg.norm(choices - ground[:, None], axis=2)
        best = np.minimum(apart, DIFFICULTY.contrast).argmax(1)
        chosen: Array = choices[np.arange(self.n), best]
        return chosen[:, None, None]
