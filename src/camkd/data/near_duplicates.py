"""Exact and near duplicates among images: perceptual hashes find candidates, a registration of both images decides.

1. *Hash.* The luminance is averaged over 32 x 32 cells. Bit k is 1 if the k-th of the 8 x 8 lowest coefficients of its
   discrete cosine transform is above the median of the 64 (C. Zauner, "Implementation and Benchmarking of Perceptual
   Image Hash Functions", 2010, section 3.2). Pairs whose hashes differ in at most `MAX_DISTANCE` bits are candidates.
2. *Registration.* Both images are averaged over 32 x 32 cells and smoothed. With x and y the relative position, image P
   is fitted by least squares to image Q, shifted, scaled, rotated and with another brightness and contrast::

       P = a Q + b + (c1 + c2 x + c3 y) dQ/dx + (c4 + c5 x + c6 y) dQ/dy

   the first-order registration of B. Lucas and T. Kanade (IJCAI 1981). The similarity of a pair is the explained
   fraction of the variance, R^2, the smaller one of both directions. It is computed in RGB, so that the same object in
   another color is not a duplicate.

Images that are nearly uniform have no structure to compare. They are marked as blank, and are in no pair.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from camkd.data.dataset import CHUNK_BYTES, Progress, max_rows, no_progress

MAX_DISTANCE = 12
"""Largest number of different bits of the hashes of a candidate pair."""

MIN_SIMILARITY = 0.98
"""Smallest similarity of near duplicates. `docs/data.md` states the recall and precision."""

BLANK_STD = 4.0
"""Standard deviation of the luminance, of 0 to 255, below which an image is blank."""

GRID = 32
"""Number of cells per side to which images are averaged."""

HASH_SIDE = 8
"""Number of frequencies per axis of the hash."""

SMOOTHING = 1.0
"""Standard deviation in cells of the Gaussian that smooths images before the registration."""

BORDER = 2
"""Number of cells at each border that the registration leaves out."""

NUM_TERMS = 7
"""Number of terms of the registration, without the constant."""

LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)

ROWS_PER_BLOCK = 256
"""Number of images whose hashes are compared with all others at a time."""

PAIRS_PER_BLOCK = 512
"""Number of pairs that are registered at a time."""


@dataclass(frozen=True)
class HashedImages:
    """Images with their perceptual hashes.

    Args:
        parts: Arrays of images, ``(n, S, S, 3) uint8``, for example of the splits of a dataset. The rows of all parts
            are counted through, from 0.
        hashes: Hash of each image, ``(N,) uint64``.
        mirrored_hashes: Hash of each image flipped from left to right, ``(N,) uint64``.
        is_blank: Whether each image is nearly uniform, ``(N,) bool``.
    """

    parts: tuple[NDArray[np.uint8], ...]
    hashes: NDArray[np.uint64]
    mirrored_hashes: NDArray[np.uint64]
    is_blank: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.hashes)

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Read the images at ``rows``, averaged over cells and smoothed, ``(n, GRID, GRID, 3)``."""
        result = np.empty((len(rows), GRID, GRID, 3), np.float32)
        start = 0
        for part in self.parts:
            inside = np.flatnonzero((rows >= start) & (rows < start + len(part)))
            step = max_rows(CHUNK_BYTES, part)
            for first in range(0, len(inside), step):
                chosen = inside[first : first + step]
                result[chosen] = _reduce(part[rows[chosen] - start], _smoothing() @ _averaging(part.shape[1]))
            start += len(part)
        return result


class Pairs(NamedTuple):
    """Pairs of near duplicates.

    Attributes:
        first: Row of the first image of each pair, ``(P,) int64``.
        second: Row of the second image, ``(P,) int64``.
        similarity: Similarity, ``(P,) float64``, at most 1.
        is_mirrored: Whether one image is flipped from left to right, ``(P,) bool``.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    similarity: NDArray[np.float64]
    is_mirrored: NDArray[np.bool_]


def hash_images(*parts: NDArray[np.uint8], progress: Progress = no_progress) -> HashedImages:
    """Compute the perceptual hashes of images.

    Args:
        *parts: Arrays of square images, ``(n, S, S, 3) uint8``. The side S may differ between arrays.
        progress: Progress callback.

    Returns:
        The images with their hashes.

    Example:
        >>> images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
        >>> images[1] = images[0]
        >>> hashed = hash_images(images)
        >>> bool(hashed.hashes[0] == hashed.hashes[1]), bool(hashed.hashes[0] == hashed.hashes[2])
        (True, False)
    """
    count = sum(map(len, parts))
    hashes = np.zeros((2, count), np.uint64)
    is_blank = np.zeros(count, np.bool_)
    done = 0
    for part in parts:
        for images in _chunks(part):
            rows = slice(done, done + len(images))
            luminance = _reduce(images, _averaging(images.shape[1])) @ LUMINANCE
            is_blank[rows] = luminance.std((1, 2)) < BLANK_STD
            hashes[0, rows] = _hash_bits(luminance)
            hashes[1, rows] = _hash_bits(luminance[:, :, ::-1])
            done += len(images)
            progress(done, count, "hashing images")
    return HashedImages(tuple(parts), hashes[0], hashes[1], is_blank)


def find_near_duplicates(
    images: HashedImages, others: HashedImages | None = None, *, progress: Progress = no_progress
) -> Pairs:
    """Find the pairs of near duplicates among images, or between images and other images.

    The memory does not grow with the number of pairs that are compared.

    Args:
        images: Images.
        others: Other images (default: each image is compared with the images after it).
        progress: Progress callback.

    Returns:
        The pairs, sorted by ``first`` and ``second``. ``second`` counts the rows of ``others`` if given.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> blocks = rng.integers(0, 256, (3, 8, 8, 3), np.uint8)
        >>> images = blocks.repeat(8, 1).repeat(8, 2)
        >>> images[2] = images[0, :, ::-1] // 2
        >>> pairs = find_near_duplicates(hash_images(images))
        >>> pairs.first.tolist(), pairs.second.tolist(), pairs.is_mirrored.tolist()
        ([0], [2], [True])
    """
    reference = images if others is None else others
    parts = []
    for mirrored in (False, True):
        target = reference.mirrored_hashes if mirrored else reference.hashes
        first, second = _candidates(images, reference, target, is_within=others is None, progress=progress)
        similarity = _similarity(images, reference, first, second, mirrored)
        kept = similarity >= MIN_SIMILARITY
        parts.append((first[kept], second[kept], similarity[kept], np.full(int(kept.sum()), mirrored)))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.lexsort((-columns[2], columns[1], columns[0]))  # of a pair found in both ways, the more similar is first
    first, second = columns[0][order], columns[1][order]
    is_new = np.ones(len(order), np.bool_)
    is_new[1:] = (np.diff(first) != 0) | (np.diff(second) != 0)
    return Pairs(*(column[order[is_new]] for column in columns))


class DuplicateGroup(NamedTuple):
    """Images that are duplicates of each other.

    Attributes:
        rows: Rows of two or more images, sorted.
        is_exact: Whether all images have the same pixels.
        similarity: Smallest similarity of the pairs that connect the images; 1 for exact duplicates.
    """

    rows: tuple[int, ...]
    is_exact: bool
    similarity: float


def find_duplicates(
    *parts: NDArray[np.uint8], skip: NDArray[np.bool_] | None = None, progress: Progress = no_progress
) -> tuple[list[DuplicateGroup], NDArray[np.bool_]]:
    """Find the groups of exact and near duplicates among images.

    Args:
        *parts: Arrays of square images, ``(n, S, S, 3) uint8``. The rows of all parts are counted through, from 0.
        skip: Images to leave out, ``(N,) bool``.
        progress: Progress callback.

    Returns:
        The groups, in the order of their first row, and whether each image is blank, ``(N,) bool``. Blank images are in
        no group.

    Example:
        >>> images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
        >>> images[3] = images[1]
        >>> find_duplicates(images)[0]
        [DuplicateGroup(rows=(1, 3), is_exact=True, similarity=1.0)]
    """
    hashed = hash_images(*parts, progress=progress)
    ignored = hashed.is_blank if skip is None else hashed.is_blank | skip
    digests = [
        None if is_ignored else digest for digest, is_ignored in zip(pixel_digests(*parts), ignored, strict=True)
    ]
    equal = equal_groups(digests)
    pairs: dict[tuple[int, int], float] = {(group[0], row): 1.0 for group in equal for row in group[1:]}
    copies = np.zeros(len(hashed), np.bool_)
    copies[[row for group in equal for row in group[1:]]] = True  # the first image stands for the others
    near = find_near_duplicates(replace(hashed, is_blank=ignored | copies), progress=progress)
    pairs |= dict(
        zip(zip(near.first.tolist(), near.second.tolist(), strict=True), near.similarity.tolist(), strict=True)
    )
    groups = connected_groups(list(pairs))
    group_of = {row: index for index, rows in enumerate(groups) for row in rows}
    similarity = [1.0] * len(groups)
    for (first, _), value in pairs.items():
        index = group_of[first]
        similarity[index] = min(similarity[index], value)
    result = [
        DuplicateGroup(tuple(rows), len({digests[row] for row in rows}) == 1, value)
        for rows, value in zip(groups, similarity, strict=True)
    ]
    return result, hashed.is_blank


def connected_groups(pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return the groups of rows that pairs connect, each sorted, in the order of their first row.

    Args:
        pairs: Pairs of rows.

    Returns:
        The groups.

    Example:
        >>> connected_groups([(0, 3), (1, 2), (3, 7)])
        [[0, 3, 7], [1, 2]]
    """
    parent: dict[int, int] = {}

    def root(row: int) -> int:
        parent.setdefault(row, row)
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for first, second in pairs:
        low, high = sorted((root(first), root(second)))
        parent[high] = low
    groups: dict[int, list[int]] = {}
    for row in sorted(parent):
        groups.setdefault(root(row), []).append(row)
    return list(groups.values())


def pixel_digests(*parts: NDArray[np.uint8]) -> list[bytes]:
    """Compute the SHA-256 of the pixels of each image. Images with equal pixels have equal digests.

    Args:
        *parts: Arrays of images, ``(n, H, W, 3) uint8``.

    Returns:
        The digests of all images.

    Example:
        >>> len(set(pixel_digests(np.zeros((2, 4, 4, 3), np.uint8))))
        1
    """
    return [hashlib.sha256(image.tobytes()).digest() for part in parts for images in _chunks(part) for image in images]


def equal_groups(digests: Sequence[bytes | str | None]) -> list[list[int]]:
    """Return the groups of two or more rows with equal digests. None equals nothing.

    Args:
        digests: Digest of each row.

    Returns:
        The groups, each sorted, in the order of their first row.

    Example:
        >>> equal_groups(["a", "b", "a", None, None])
        [[0, 2]]
    """
    rows: dict[bytes | str, list[int]] = {}
    for row, digest in enumerate(digests):
        if digest is not None:
            rows.setdefault(digest, []).append(row)
    return [group for group in rows.values() if len(group) > 1]


def _candidates(
    images: HashedImages, others: HashedImages, target: NDArray[np.uint64], *, is_within: bool, progress: Progress
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pairs of rows whose hashes differ in few bits. Blank images are in no pair."""
    rows = np.flatnonzero(~images.is_blank)
    columns = np.flatnonzero(~others.is_blank)
    hashes = target[columns]
    first, second = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for start in range(0, len(rows), ROWS_PER_BLOCK):
        block = images.hashes[rows[start : start + ROWS_PER_BLOCK]]
        offset = start if is_within else 0  # rows and columns are the same, earlier columns were compared before
        near = np.bitwise_count(block[:, None] ^ hashes[None, offset:]) <= MAX_DISTANCE
        row, column = np.nonzero(near)
        row, column = row + start, column + offset
        if is_within:
            row, column = row[column > row], column[column > row]
        first.append(rows[row])
        second.append(columns[column])
        progress(min(start + ROWS_PER_BLOCK, len(rows)), len(rows), "comparing images")
    return np.concatenate(first), np.concatenate(second)


def _similarity(
    images: HashedImages,
    others: HashedImages,
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    mirrored: bool,
) -> NDArray[np.float64]:
    """Return the similarity of each pair; of pairs that are not near duplicates, an upper bound of it."""
    result = np.empty(len(first), np.float64)
    for start in range(0, len(first), PAIRS_PER_BLOCK):
        block = slice(start, start + PAIRS_PER_BLOCK)
        p = _read_repeated(images, first[block])
        q = _read_repeated(others, second[block])
        q = q[:, :, ::-1] if mirrored else q
        similarity = _explained_variance(p, q)
        similar = np.flatnonzero(similarity >= MIN_SIMILARITY)
        similarity[similar] = np.minimum(similarity[similar], _explained_variance(q[similar], p[similar]))
        result[block] = similarity
    return result


def _read_repeated(images: HashedImages, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Read the images at ``rows``, each once from disk."""
    distinct, positions = np.unique(rows, return_inverse=True)
    return images.read(distinct)[positions]


def _explained_variance(p: NDArray[np.float32], q: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return R^2 of the registration of ``q`` to ``p``, both ``(n, GRID, GRID, 3)``."""
    position = (np.arange(GRID, dtype=np.float32) - (GRID - 1) / 2) / GRID
    y, x = position[:, None, None], position[None, :, None]
    dy, dx = np.gradient(q, axis=1), np.gradient(q, axis=2)
    inner = slice(BORDER, -BORDER)
    terms = np.stack([q, dx, dy, x * dx, y * dx, x * dy, y * dy], 1)[:, :, inner, inner]
    size = 3 * (GRID - 2 * BORDER) ** 2
    terms = terms.reshape(len(p), NUM_TERMS, size)
    values = p[:, inner, inner].reshape(len(p), size)
    terms = terms - terms.mean(2, keepdims=True)
    values = values - values.mean(1, keepdims=True)
    gram = (terms @ terms.transpose(0, 2, 1)).astype(np.float64)
    scale = np.trace(gram, axis1=1, axis2=2)[:, None, None]
    gram += (1e-6 * scale + 1e-6) * np.eye(gram.shape[1])  # solvable for images without structure
    moments = (terms @ values[:, :, None]).astype(np.float64)
    explained = (moments * np.linalg.solve(gram, moments)).sum((1, 2))
    total = np.square(values, dtype=np.float64).sum(1)
    ratio: NDArray[np.float64] = explained / np.maximum(total, 1e-6)
    return np.minimum(ratio, 1.0)


def _hash_bits(luminance: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return the 64-bit hash of each image ``(n, GRID, GRID)``."""
    transform = _cosine_transform()
    coefficients = (transform @ luminance @ transform.T).reshape(len(luminance), HASH_SIDE**2)
    bits = coefficients > np.median(coefficients, 1, keepdims=True)
    packed: NDArray[np.uint64] = np.packbits(bits, axis=1).view(np.uint64)[:, 0]
    return packed


def _reduce(images: NDArray[np.uint8], matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Apply a matrix ``(GRID, S)`` to the rows and to the columns of images ``(n, S, S, 3)``."""
    n, side = images.shape[:2]
    rows = matrix @ images.reshape(n, side, -1).astype(np.float32)  # (n, GRID, S * 3)
    reduced: NDArray[Any] = matrix @ rows.reshape(n * GRID, side, 3)
    return reduced.reshape(n, GRID, GRID, 3)


@cache
def _averaging(side: int) -> NDArray[np.float32]:
    """Return the matrix ``(GRID, side)`` that averages pixels over cells of equal size."""
    edges = np.linspace(0, side, GRID + 1)
    pixels = np.arange(side)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    overlap = overlap.clip(0)
    averaging: NDArray[np.float32] = (overlap / overlap.sum(1, keepdims=True)).astype(np.float32)
    return averaging


@cache
def _smoothing() -> NDArray[np.float32]:
    """Return the matrix ``(GRID, GRID)`` of a Gaussian, normalized at the borders."""
    cells = np.arange(GRID)
    weights = np.exp(-0.5 * np.square((cells[:, None] - cells) / SMOOTHING))
    normalized: NDArray[np.float32] = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return normalized


@cache
def _cosine_transform() -> NDArray[np.float32]:
    """Return the lowest frequencies of the discrete cosine transform (DCT-II), ``(HASH_SIDE, GRID)``."""
    cells = np.arange(GRID)
    frequencies = np.arange(HASH_SIDE)[:, None]
    transform: NDArray[np.float32] = np.cos(np.pi * (2 * cells + 1) * frequencies / (2 * GRID)).astype(np.float32)
    return transform


def _chunks(images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Yield consecutive images, a few megabytes at a time."""
    step = max_rows(CHUNK_BYTES, images)
    for start in range(0, len(images), step):
        yield images[start : start + step]
