"""Perceptual hashes, registration and groups of duplicates, on images with planted copies."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import scipy.fft
import scipy.sparse
from PIL import Image, ImageEnhance

from camkd.data.near_duplicates import (
    GRID,
    HASH_SIDE,
    connected_groups,
    equal_groups,
    find_near_duplicates,
    hash_images,
    pixel_digests,
)
from support.photos import make_photos

COUNT = 24


def to_array(images: list[Image.Image], side: int = 64) -> np.ndarray:
    return np.stack(
        [np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)) for image in images]
    )


def compress(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


def crop(image: Image.Image, fraction: float) -> Image.Image:
    margin = round(fraction * image.width / 2)
    return image.crop((margin, margin, image.width - margin, image.height - margin))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG of quality 30": lambda image: compress(image, 30),
    "half the size": lambda image: image.resize((64, 64)),
    "larger": lambda image: image.resize((210, 210), Image.Resampling.BILINEAR),
    "crop of 4 %": lambda image: crop(image, 0.04),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    "rotated by 1 degree": lambda image: crop(image.rotate(1, Image.Resampling.BICUBIC), 0.03),
    "flipped": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


@pytest.mark.parametrize("name", CHANGES)
def test_planted_copies_are_found_and_nothing_else(name: str) -> None:
    photos = make_photos(COUNT)
    copies = [CHANGES[name](photo) for photo in photos[: COUNT // 2]]
    pairs = find_near_duplicates(hash_images(to_array(photos), to_array(copies)))
    assert list(zip(pairs.first, pairs.second, strict=True)) == [(row, COUNT + row) for row in range(COUNT // 2)]
    assert (pairs.is_mirrored == (name == "flipped")).all()
    assert (pairs.similarity <= 1).all()


def test_other_images_are_compared_with_images_only() -> None:
    photos = to_array(make_photos(6))
    images = np.concatenate([photos[:3], photos[:1]])
    pairs = find_near_duplicates(hash_images(images), hash_images(photos[[5, 2, 0]]))
    assert list(zip(pairs.first, pairs.second, strict=True)) == [(0, 2), (2, 1), (3, 2)]


@pytest.mark.parametrize("side", [20, 32, 45, 96])
def test_images_of_any_side_are_compared(side: int) -> None:
    photos = make_photos(4)
    pairs = find_near_duplicates(hash_images(to_array(photos, 64), to_array(photos, side)))
    assert list(zip(pairs.first, pairs.second, strict=True)) == [(row, 4 + row) for row in range(4)]


def test_same_shape_in_another_color_is_no_duplicate() -> None:
    luminance = np.asarray(make_photos(1, 64)[0].convert("L"), np.float64) / 255
    red, blue = (np.rint(luminance[..., None] * color).astype(np.uint8) for color in ([255, 60, 40], [40, 60, 255]))
    assert len(find_near_duplicates(hash_images(np.stack([red, blue]))).first) == 0


def test_blank_images_are_no_duplicates_of_each_other() -> None:
    rng = np.random.default_rng(0)
    blank = np.full((12, 64, 64, 3), 250, np.uint8) - rng.integers(0, 4, (12, 64, 64, 3)).astype(np.uint8)
    hashed = hash_images(blank, to_array(make_photos(2)))
    assert hashed.is_blank.tolist() == [True] * 12 + [False] * 2
    assert len(find_near_duplicates(hashed).first) == 0


def test_noise_is_no_duplicate_of_noise() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 32, 32, 3)).astype(np.uint8)
    assert len(find_near_duplicates(hash_images(noise)).first) == 0


@pytest.mark.parametrize("count", [0, 1])
def test_few_images_have_no_pairs(count: int) -> None:
    hashed = hash_images(np.zeros((count, 32, 32, 3), np.uint8), np.zeros((0, 8, 8, 3), np.uint8))
    assert len(hashed) == count
    assert len(find_near_duplicates(hashed).first) == 0


def test_hash_is_the_median_of_the_discrete_cosine_transform() -> None:
    images = to_array(make_photos(5), GRID)
    luminance = images.astype(np.float64) @ [0.299, 0.587, 0.114]
    coefficients = scipy.fft.dctn(luminance, axes=(1, 2))[:, :HASH_SIDE, :HASH_SIDE].reshape(5, -1)
    expected = np.packbits(coefficients > np.median(coefficients, 1, keepdims=True), axis=1).view(np.uint64)[:, 0]
    assert np.bitwise_count(expected ^ hash_images(images).hashes).max() <= 1  # rounding at the median


def test_groups_are_the_connected_components() -> None:
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, 60, (40, 2))
    graph = scipy.sparse.coo_array((np.ones(40), pairs.T), (60, 60))
    _, component = scipy.sparse.csgraph.connected_components(graph, directed=False)
    rows = np.unique(pairs)
    expected = {tuple(row for row in rows.tolist() if component[row] == index) for index in component[rows]}
    groups = connected_groups(list(map(tuple, pairs.tolist())))
    assert set(map(tuple, groups)) == expected
    assert [group[0] for group in groups] == sorted(group[0] for group in groups)


def test_equal_pixels_have_equal_digests() -> None:
    images = np.zeros((4, 8, 8, 3), np.uint8)
    images[1, 7, 7, 2] = 1
    digests = pixel_digests(images[:2], images[2:])
    assert equal_groups(digests) == [[0, 2, 3]]
    assert equal_groups([None, None, digests[0]]) == []
