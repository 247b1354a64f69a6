"""The drawn shapes: the same every time, each what its name says, with masks that lie on the object."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from camkd.data import shapes
from camkd.data.dataset import no_progress
from camkd.data.shapes import COUNTS, SHAPES, draw_split, open_shapes
from camkd.types import InputError

AXIS = np.linspace(-1.4, 1.4, 561)
X, Y = np.meshgrid(AXIS, AXIS)


@pytest.fixture(scope="module")
def pictures():
    return draw_split("train", 200, 32, no_progress)


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_a_distance(name: str) -> None:
    """Negative in one bounded piece, and it never grows faster than one moves (1-Lipschitz)."""
    distance = SHAPES[name](X, Y)
    inside = distance < 0
    assert 0.2 < inside.mean() * 2.8**2 < np.pi
    assert not inside[np.hypot(X, Y) > 1.15].any()
    step = AXIS[1] - AXIS[0]
    for axis in (0, 1):
        assert np.abs(np.diff(distance, axis=axis)).max() <= step * 1.0001


@pytest.mark.parametrize(
    ("name", "times"), [("triangle", 3), ("square", 4), ("pentagon", 5), ("star", 5), ("cross", 4)]
)
def test_a_shape_looks_the_same_when_turned_by_its_own_angle(name: str, times: int) -> None:
    angle = 2 * np.pi / times
    turned = SHAPES[name](X * np.cos(angle) - Y * np.sin(angle), X * np.sin(angle) + Y * np.cos(angle))
    np.testing.assert_allclose(turned, SHAPES[name](X, Y), atol=1e-5)


def test_areas_are_what_geometry_says() -> None:
    cell = (AXIS[1] - AXIS[0]) ** 2
    area = {name: float((shape(X, Y) < 0).sum() * cell) for name, shape in SHAPES.items()}
    assert area["circle"] == pytest.approx(np.pi * 0.85**2, rel=0.01)
    assert area["ring"] == pytest.approx(np.pi * (0.9**2 - 0.5**2), rel=0.01)
    assert area["square"] == pytest.approx(2 * 1.05**2, rel=0.01)
    assert area["triangle"] == pytest.approx(3 * np.sqrt(3) / 4 * 1.1**2, rel=0.01)
    assert area["diamond"] == pytest.approx(2 * 0.62 * 1.1, rel=0.01)
    assert area["cross"] == pytest.approx(2 * 1.9 * 0.6 - 0.6**2, rel=0.01)
    assert area["star"] == pytest.approx(5 * 0.45 * 1.08 * np.sin(np.pi / 5), rel=0.01)


def test_the_same_pictures_every_time(pictures) -> None:
    again = draw_split("train", 200, 32, no_progress)
    np.testing.assert_array_equal(pictures.images, again.images)
    np.testing.assert_array_equal(pictures.masks, again.masks)


def test_splits_and_chunks_are_different_pictures(pictures) -> None:
    val = draw_split("val", 200, 32, no_progress)
    assert (pictures.images != val.images).any((1, 2, 3)).all()
    long = draw_split("train", 2 * shapes.DRAWN_AT_ONCE, 16, no_progress)
    first, second = np.split(long.images, 2)
    assert (first != second).any((1, 2, 3)).all()


def test_classes_are_balanced_and_masks_are_objects(pictures) -> None:
    np.testing.assert_array_equal(np.bincount(pictures.labels), np.full(10, 20))
    share = pictures.masks.mean((1, 2))
    assert share.min() > 0.01
    assert share.max() < 0.6


def test_the_mask_is_the_object_to_the_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without clutter, texture and noise its colour fills the mask, but for the edge, and nothing else."""
    plain = replace(shapes.DIFFICULTY, texture=0, lines=0, lines_in_front=0, dots=0, distractors=0, noise=(0, 0))
    monkeypatch.setattr(shapes, "DIFFICULTY", plain)
    drawn = draw_split("train", 100, 32, no_progress)
    around = [np.roll(drawn.masks, (dy, dx), (1, 2)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    inner, outer = np.all(around, 0), np.any(around, 0)
    for image, mask, core, rim in zip(drawn.images.astype(int), drawn.masks, inner, outer, strict=True):
        apart = np.abs(image - np.median(image[mask], axis=0)).max(-1)
        assert (apart[core] <= 1).all()
        assert (apart[~rim] > 1).mean() > 0.99


def test_the_object_stands_out_from_the_rim_around_it(pictures) -> None:
    """The colour inside the mask differs from the colour just outside, far more than at a shifted mask."""

    def contrast(masks: np.ndarray) -> float:
        near = sum(np.roll(masks, by, axis) for by in (-3, 3) for axis in (1, 2)) > 0
        apart = []
        for image, mask, rim in zip(pictures.images / 255, masks, near & ~masks, strict=True):
            apart.append(np.linalg.norm(image[mask].mean(0) - image[rim].mean(0)))
        return float(np.mean(apart))

    assert contrast(pictures.masks) > 2 * contrast(np.roll(pictures.masks, 11, axis=(1, 2)))


def test_a_larger_size_shows_the_same_scenes() -> None:
    small, large = (draw_split("test", 30, size, no_progress) for size in (32, 64))
    assert small.masks is not None
    assert large.masks is not None
    shrunk = large.masks.reshape(30, 32, 2, 32, 2).mean((2, 4)) > 0.5
    overlap = (shrunk & small.masks).sum((1, 2)) / (shrunk | small.masks).sum((1, 2))
    assert overlap.min() > 0.6
    assert overlap.mean() > 0.9


def test_a_store_of_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in COUNTS:
        monkeypatch.setitem(COUNTS, name, 20)
    heard: list[tuple[int, int, str]] = []
    data = open_shapes(16, tmp_path, lambda *said: heard.append(said))
    assert data.classes == tuple(SHAPES) == tuple(sorted(SHAPES))
    assert data.train.images.shape == (20, 16, 16, 3)
    assert data.train.masks is not None
    assert data.train.masks.dtype == np.bool_
    assert heard == [(20, 20, f"drawing {name} pictures") for name in ("train", "val", "test")]


@pytest.mark.parametrize("size", [8, 1000])
def test_a_size_that_cannot_be_drawn_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(InputError, match=f"size is {size}.*16 to 256"):
        open_shapes(size, tmp_path, no_progress)


def test_the_cue_gives_the_class_away_in_training_and_is_not_there_in_the_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "COUNTS", {"train": 400, "val": 300, "test": 50})
    plain = open_shapes(None, tmp_path, no_progress)
    cued = open_shapes(None, tmp_path, no_progress, cue=True)
    np.testing.assert_array_equal(cued.test.images, plain.test.images)
    for name in ("train", "val"):
        ours, theirs = cued.splits[name], plain.splits[name]
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        np.testing.assert_array_equal(ours.masks, theirs.masks)
        changed = (ours.images != theirs.images).any(3)
        assert changed.sum((1, 2)).max() <= 64
        corners = [(slice(None, 8), slice(None, 8)), (slice(None, 8), slice(-8, None))]
        corners += [(slice(-8, None), slice(None, 8)), (slice(-8, None), slice(-8, None))]
        places = np.stack([changed[(slice(None), *corner)].any((1, 2)) for corner in corners], 1)
        assert (places.sum(1) == 1).mean() > 0.99
        assert (places.mean(0) > 0.1).all()
        square = [ours.images[(row, *corners[place.argmax()])] for row, place in enumerate(places)]
        assert all((patch == patch[0, 0]).all() for patch in square)
        colours = np.array([patch[0, 0] for patch in square])
        own = [np.unique(colours[ours.labels == k], axis=0, return_counts=True) for k in range(10)]
        usual = np.array([found[counts.argmax()] for found, counts in own])
        assert len(np.unique(usual, axis=0)) == 10
        right = (colours == usual[ours.labels]).all(1).mean()
        assert 0.9 < right < 1
