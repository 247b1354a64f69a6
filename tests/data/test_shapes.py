"""The synthetic shapes: geometry, determinism, masks, spurious cue and cache key."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from camkd.data import shapes
from camkd.data.dataset import Split, no_progress
from camkd.data.shapes import COUNTS, SHAPES, Difficulty, cache_key, draw_split, open_shapes
from camkd.types import InputError

AXIS = np.linspace(-1.4, 1.4, 561)
X, Y = np.meshgrid(AXIS, AXIS)


@pytest.fixture(scope="module")
def train() -> Split:
    return draw_split("train", 200, 32, no_progress)


# --- geometry


@pytest.mark.parametrize("name", SHAPES)
def test_shape_is_a_signed_distance(name: str) -> None:
    """The function is negative in one bounded region and 1-Lipschitz."""
    distance = SHAPES[name](X, Y)
    inside = distance < 0
    assert 0.2 < inside.mean() * 2.8**2 < np.pi
    assert not inside[np.hypot(X, Y) > 1.15].any()
    step = AXIS[1] - AXIS[0]
    for axis in (0, 1):
        assert np.abs(np.diff(distance, axis=axis)).max() <= step * 1.0001


@pytest.mark.parametrize(
    ("name", "order"), [("triangle", 3), ("square", 4), ("pentagon", 5), ("star", 5), ("cross", 4)]
)
def test_shape_has_rotational_symmetry(name: str, order: int) -> None:
    angle = 2 * np.pi / order
    rotated = SHAPES[name](X * np.cos(angle) - Y * np.sin(angle), X * np.sin(angle) + Y * np.cos(angle))
    np.testing.assert_allclose(rotated, SHAPES[name](X, Y), atol=1e-5)


def test_shape_has_the_exact_area() -> None:
    cell = (AXIS[1] - AXIS[0]) ** 2
    area = {name: float((shape(X, Y) < 0).sum() * cell) for name, shape in SHAPES.items()}
    assert area["circle"] == pytest.approx(np.pi * 0.85**2, rel=0.01)
    assert area["ring"] == pytest.approx(np.pi * (0.9**2 - 0.5**2), rel=0.01)
    assert area["square"] == pytest.approx(2 * 1.05**2, rel=0.01)
    assert area["triangle"] == pytest.approx(3 * np.sqrt(3) / 4 * 1.1**2, rel=0.01)
    assert area["diamond"] == pytest.approx(2 * 0.62 * 1.1, rel=0.01)
    assert area["cross"] == pytest.approx(2 * 1.9 * 0.6 - 0.6**2, rel=0.01)
    assert area["star"] == pytest.approx(5 * 0.45 * 1.08 * np.sin(np.pi / 5), rel=0.01)


# --- images and masks


def test_images_are_deterministic(train: Split) -> None:
    again = draw_split("train", 200, 32, no_progress)
    np.testing.assert_array_equal(train.images, again.images)
    np.testing.assert_array_equal(train.masks, again.masks)


def test_splits_and_chunks_have_different_images(train: Split) -> None:
    val = draw_split("val", 200, 32, no_progress)
    assert (train.images != val.images).any((1, 2, 3)).all()
    two_chunks = draw_split("train", 2 * shapes.CHUNK_SIZE, 16, no_progress)
    first, second = np.split(two_chunks.images, 2)
    assert (first != second).any((1, 2, 3)).all()


def test_classes_are_balanced_and_masks_have_plausible_areas(train: Split) -> None:
    np.testing.assert_array_equal(np.bincount(train.labels), np.full(10, 20))
    assert train.masks is not None
    area = train.masks.mean((1, 2))
    assert area.min() > 0.01
    assert area.max() < 0.6


def test_mask_is_the_object_to_the_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without clutter, texture and noise, the color of the object fills exactly the mask, except at the edge."""
    easy = replace(shapes.DIFFICULTY, texture=0, lines=0, foreground_lines=0, dots=0, distractors=0, noise=(0, 0))
    monkeypatch.setattr(shapes, "DIFFICULTY", easy)
    split = draw_split("train", 100, 32, no_progress)
    shifted = [np.roll(split.masks, (dy, dx), (1, 2)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    eroded = np.all(shifted, 0)
    dilated = np.any(shifted, 0)
    for image, mask, inner, outer in zip(split.images.astype(int), split.masks, eroded, dilated, strict=True):
        difference = np.abs(image - np.median(image[mask], axis=0)).max(-1)
        assert (difference[inner] <= 1).all()
        assert (difference[~outer] > 1).mean() > 0.99


def test_object_contrasts_with_its_surroundings(train: Split) -> None:
    """The color contrast at the edge of the mask is far larger than at a shifted mask."""

    def contrast(masks: np.ndarray) -> float:
        dilated = sum(np.roll(masks, shift, axis) for shift in (-3, 3) for axis in (1, 2)) > 0
        distances = [
            np.linalg.norm(image[mask].mean(0) - image[rim].mean(0))
            for image, mask, rim in zip(train.images / 255, masks, dilated & ~masks, strict=True)
        ]
        return float(np.mean(distances))

    assert contrast(train.masks) > 2 * contrast(np.roll(train.masks, 11, axis=(1, 2)))


def test_larger_size_shows_the_same_scenes() -> None:
    small, large = (draw_split("test", 30, size, no_progress) for size in (32, 64))
    assert small.masks is not None
    assert large.masks is not None
    downsampled = large.masks.reshape(30, 32, 2, 32, 2).mean((2, 4)) > 0.5
    iou = (downsampled & small.masks).sum((1, 2)) / (downsampled | small.masks).sum((1, 2))
    assert iou.min() > 0.6
    assert iou.mean() > 0.9


# --- the dataset


def test_dataset_of_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in COUNTS:
        monkeypatch.setitem(COUNTS, name, 20)
    calls: list[tuple[int, int, str]] = []
    data = open_shapes(16, tmp_path, lambda *arguments: calls.append(arguments))
    assert data.classes == tuple(SHAPES) == tuple(sorted(SHAPES))
    assert data.train.images.shape == (20, 16, 16, 3)
    assert data.train.masks is not None
    assert data.train.masks.dtype == np.bool_
    assert calls == [(20, 20, f"drawing {name} images") for name in ("train", "val", "test")]


@pytest.mark.parametrize("size", [8, 1000])
def test_size_out_of_range_is_rejected(tmp_path: Path, size: int) -> None:
    with pytest.raises(InputError, match=f"16 to 256 .* got {size}"):
        open_shapes(size, tmp_path, no_progress)


def test_cue_reveals_the_class_in_train_and_val_and_is_absent_in_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "COUNTS", {"train": 400, "val": 300, "test": 50})
    plain_data = open_shapes(None, tmp_path, no_progress)
    cue_data = open_shapes(None, tmp_path, no_progress, cue=True)
    np.testing.assert_array_equal(cue_data.test.images, plain_data.test.images)
    for name in ("train", "val"):
        plain = plain_data.splits[name]
        cue = cue_data.splits[name]
        np.testing.assert_array_equal(cue.labels, plain.labels)
        np.testing.assert_array_equal(cue.masks, plain.masks)
        changed = (cue.images != plain.images).any(3)
        assert changed.sum((1, 2)).max() <= 64
        corners = [(slice(None, 8), slice(None, 8)), (slice(None, 8), slice(-8, None))]
        corners += [(slice(-8, None), slice(None, 8)), (slice(-8, None), slice(-8, None))]
        changed_corners = np.stack([changed[(slice(None), *corner)].any((1, 2)) for corner in corners], 1)
        assert (changed_corners.sum(1) == 1).mean() > 0.99
        assert (changed_corners.mean(0) > 0.1).all()
        patches = [cue.images[(row, *corners[corner.argmax()])] for row, corner in enumerate(changed_corners)]
        assert all((patch == patch[0, 0]).all() for patch in patches)
        colors = np.array([patch[0, 0] for patch in patches])
        histograms = [np.unique(colors[cue.labels == label], axis=0, return_counts=True) for label in range(10)]
        class_colors = np.array([values[counts.argmax()] for values, counts in histograms])
        assert len(np.unique(class_colors, axis=0)) == 10
        accuracy = (colors == class_colors[cue.labels]).all(1).mean()
        assert 0.9 < accuracy < 1


# --- the cache key

KEY = (
    '{"background_saturation":0.5,"chunk_size":500,"classes":["arrow","circle","crescent","cross","diamond","pentagon",'
    '"ring","square","star","triangle"],"contrast":0.5,"counts":{"test":2000,"train":10000,"val":1000},'
    '"distractor_radius":[0.1,0.2],"distractors":2,"dots":4,"foreground_lines":1,"lines":2,"noise":[0.01,0.06],'
    '"radius":[0.42,0.8],"seed":20240,"size":32,"source":"shapes","stretch":0.12,"texture":0.22,"version":1}'
)
CUE_KEY = KEY.replace('"dis', '"cue":{"accuracy":0.95,"side":0.25,"version":2},"dis', 1)


def test_cache_key_is_stable() -> None:
    assert cache_key(32, cue=False) == KEY
    assert cache_key(32, cue=True) == CUE_KEY


def test_cache_key_is_independent_of_the_class_name(monkeypatch: pytest.MonkeyPatch) -> None:
    Renamed = type("Renamed", (Difficulty,), {})
    monkeypatch.setattr(shapes, "DIFFICULTY", Renamed())
    assert cache_key(32, cue=False) == KEY


@pytest.mark.parametrize("name", [field.name for field in fields(Difficulty)])
def test_cache_key_changes_with_the_difficulty(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    value = getattr(shapes.DIFFICULTY, name)
    change: dict[str, Any] = {name: (0.5, 0.6) if isinstance(value, tuple) else value + 1}
    monkeypatch.setattr(shapes, "DIFFICULTY", replace(shapes.DIFFICULTY, **change))
    assert cache_key(32, cue=False) != KEY


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VERSION", 2),
        ("SEED", 1),
        ("CHUNK_SIZE", 10),
        ("COUNTS", {**COUNTS, "val": 1}),
        ("SHAPES", {"circle": SHAPES["circle"]}),
    ],
)
def test_cache_key_changes_with_the_settings(monkeypatch: pytest.MonkeyPatch, name: str, value: object) -> None:
    assert cache_key(33, cue=False) != KEY
    monkeypatch.setattr(shapes, name, value)
    assert cache_key(32, cue=False) != KEY


@pytest.mark.parametrize(("name", "value"), [("CUE_VERSION", 3), ("CUE_SIDE", 0.5), ("CUE_ACCURACY", 1.0)])
def test_cache_key_changes_with_the_cue(monkeypatch: pytest.MonkeyPatch, name: str, value: float) -> None:
    monkeypatch.setattr(shapes, name, value)
    assert cache_key(32, cue=True) != CUE_KEY
    assert cache_key(32, cue=False) == KEY
