"""Views of photographs: random resized crops, erased rectangles and mixing, independent of the size in pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor

from camkd.data.affine import GRAY, compose, crop_matrices, render_affine
from camkd.data.augment import BOX_X, MIX, POLICIES, PhotoPolicy, pick_augment, random_photo, random_uniform
from camkd.data.dataset import Dataset, Split
from camkd.data.photo import render_photo
from camkd.data.regions import cutmix_area, cutmix_box, erased_edges, fill
from camkd.data.trivial_augment import OPERATIONS, draw_operation
from camkd.data.views import Views

CPU = torch.device("cpu")
SAMPLES = torch.arange(20_000)


def crop_edges(min_area: float) -> Tensor:
    """Return left, top, right and bottom of each crop, ``(4, B)``."""
    matrix = crop_matrices(random_photo(2, 1, SAMPLES), min_area)
    x = torch.stack([matrix[:, 0, 2], matrix[:, 0, 0] + matrix[:, 0, 2]]).sort(0).values
    y = torch.stack([matrix[:, 1, 2], matrix[:, 1, 1] + matrix[:, 1, 2]])
    return torch.stack([x[0], y[0], x[1], y[1]])


# --- crop


@pytest.mark.parametrize("min_area", [0.08, 0.35])
def test_crop_is_inside_the_image_with_uniform_area_and_limited_ratio(min_area: float) -> None:
    left, top, right, bottom = crop_edges(min_area)
    assert min(left.min(), top.min()) >= 0
    assert max(right.max(), bottom.max()) <= 1 + 1e-9
    area = (right - left) * (bottom - top)
    assert stats.kstest(area.numpy(), stats.uniform(min_area, 1 - min_area).cdf).pvalue > 1e-3
    log_ratio = ((right - left) / (bottom - top)).log()
    assert log_ratio.abs().max() <= np.log(4 / 3) + 1e-6
    free = log_ratio[area < 0.75]  # every ratio fits
    assert stats.kstest(free.numpy(), stats.uniform(-np.log(4 / 3), 2 * np.log(4 / 3)).cdf).pvalue > 1e-3
    assert (log_ratio.abs() <= -area.log() + 1e-6).all(), "no side is longer than the image"


def test_crop_position_and_flip_are_uniform() -> None:
    left, top, right, bottom = crop_edges(0.35)
    assert stats.kstest((left / (1 - right + left)).numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest((top / (1 - bottom + top)).numpy(), "uniform").pvalue > 1e-3
    num_flipped = int((crop_matrices(random_photo(2, 1, SAMPLES), 0.35)[:, 0, 0] < 0).sum())
    assert stats.binomtest(num_flipped, len(SAMPLES)).pvalue > 1e-3


def test_crop_without_reduction_is_the_image_or_its_mirror_image() -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 12, 12, 3), np.uint8))
    matrix = crop_matrices(random_photo(0, 0, torch.arange(40)), 1.0)
    x = render_affine(pixels, matrix)
    is_flipped = matrix[:, 0, 0] < 0
    expected = pixels.permute(0, 3, 1, 2).float()
    expected = torch.where(is_flipped[:, None, None, None], expected.flip(3), expected)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-3)
    assert 0 < is_flipped.sum() < 40


def test_crop_matches_pillow() -> None:
    """Pillow resizes boxes with fractions of pixels, without an antialiasing filter for a magnification."""
    image = np.random.default_rng(1).integers(0, 256, (30, 30, 3), np.uint8)
    matrix = crop_matrices(random_photo(3, 0, torch.arange(30)), 0.35)
    x = render_affine(torch.from_numpy(image).repeat(30, 1, 1, 1), matrix)
    for view, m in zip(x, matrix, strict=True):
        left = min(m[0, 2], m[0, 0] + m[0, 2]).item() * 30
        box = (left, 30 * m[1, 2].item(), left + 30 * abs(m[0, 0].item()), 30 * (m[1, 1] + m[1, 2]).item())
        resized = np.asarray(Image.fromarray(image).resize((30, 30), Image.Resampling.BILINEAR, box=box), np.float32)
        expected = resized[:, ::-1] if m[0, 0] < 0 else resized
        difference = abs(view.permute(1, 2, 0).numpy() - expected)[2:-2, 2:-2]  # Pillow does not read outside the box
        assert difference.max() < 1.01


def test_composition_applies_the_inner_map_first() -> None:
    generator = torch.Generator().manual_seed(0)
    outer, inner = torch.rand(2, 5, 2, 3, generator=generator, dtype=torch.float64)
    point = torch.tensor([0.3, 0.8, 1.0], dtype=torch.float64)
    moved = torch.cat([inner @ point, torch.ones(5, 1, dtype=torch.float64)], 1)
    torch.testing.assert_close(compose(outer, inner) @ point, (outer @ moved[:, :, None])[..., 0])


# --- erased rectangle


def test_erased_rectangles_have_the_documented_distribution() -> None:
    left, top, right, bottom = erased_edges(random_photo(5, 0, SAMPLES), 0.25).double()
    exists = right > 0
    assert stats.binomtest(int(exists.sum()), len(SAMPLES), 0.25).pvalue > 1e-3
    width = (right - left)[exists]
    height = (bottom - top)[exists]
    assert min(left[exists].min(), top[exists].min()) >= 0
    assert max(right.max(), bottom.max()) <= 1 + 1e-6
    area = width * height
    assert stats.kstest(area.numpy(), stats.uniform(0.02, 0.31).cdf).pvalue > 1e-3
    ratio = width / height
    assert ratio.max() <= 3.3 + 1e-3
    assert ratio.min() >= 1 / 3.3 - 1e-3


def test_erased_rectangle_is_gray() -> None:
    x = torch.zeros(2, 3, 10, 20)
    edges = torch.tensor([[0.1, 0.0], [0.25, 0.0], [0.5, 0.0], [0.75, 0.0]])
    filled = fill(x, edges, GRAY)
    expected = torch.zeros(3, 10, 20)
    expected[:, 2:7, 2:10] = GRAY  # rows with centers in 0.25..0.75, columns with centers in 0.1..0.5
    assert torch.equal(filled[0], expected)
    assert (filled[1] == 0).all()


def test_erased_rectangle_is_not_changed_by_the_operation_of_color() -> None:
    samples = torch.arange(300)
    u = random_photo(1, 0, samples)
    pixels = torch.zeros(300, 16, 16, 3, dtype=torch.uint8)
    x = render_photo(pixels, u, PhotoPolicy(erase=1.0))
    for name in ("Brightness", "Solarize", "Posterize", "Contrast"):
        views = x[draw_operation(u)[0] == OPERATIONS.index(name)]
        assert (views == 0.5).flatten(1).any(1).all()


# --- the default


def dataset(size: int, names: bool) -> Dataset:
    files = tuple(f"{n}.jpg" for n in range(4)) if names else None
    split = Split(np.zeros((4, size, size, 3), np.uint8), np.arange(4) % 2, names=files)
    return Dataset("pets", ("a", "b"), split, split, split, "f" * 64, "f" * 64, ())


@pytest.mark.parametrize(
    ("size", "names", "expected"),
    [(64, True, "photo"), (33, True, "photo"), (32, True, "light"), (64, False, "light"), (224, False, "light")],
)
def test_auto_is_photo_for_large_images_of_a_folder(size: int, names: bool, expected: str) -> None:
    data = dataset(size, names)
    assert pick_augment("auto", data) == expected
    assert pick_augment("strong", data) == "strong"
    assert pick_augment("auto", data.limited(2)) == expected


# --- keys and sizes


def test_photo_policies() -> None:
    assert POLICIES["photo"] == PhotoPolicy(min_area=0.35, operate=0.25, erase=0.25, mix=0.0)
    assert POLICIES["photo-mix"] == PhotoPolicy(min_area=0.35, operate=0.25, erase=0.25, mix=0.5)
    assert POLICIES["photo"].key() == "photo version=1 min_area=0.35 operate=0.25 erase=0.25 mix=0.0"
    assert POLICIES["photo-mix"].key() == "photo version=1 min_area=0.35 operate=0.25 erase=0.25 mix=0.5"
    assert not POLICIES["photo-mix"].uses_frame


def test_cutmix_label_is_the_area_of_the_box() -> None:
    u = random_uniform(0, 0, SAMPLES[:400])
    area = cutmix_area(u)
    for size in (64, 224):
        fraction = cutmix_box(u, (size, size)).float().mean((1, 2))
        assert (fraction - area).abs().max() < 2 / size
    assert area.min() >= 0
    assert area.max() > 0.7


def test_photo_mix_mixes_the_views_of_photo_as_strong_does() -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8)
    split = Split(images, np.arange(40) % 2)
    samples = torch.arange(40)
    plain = Views(split, 2, "photo", 3, CPU)[1, samples]
    mixed = Views(split, 2, "photo-mix", 3, CPU)[1, samples]
    is_mixed = random_uniform(3, 1, samples)[:, MIX] < 0.5
    assert torch.equal(mixed.x[~is_mixed], plain.x[~is_mixed])
    assert torch.equal(mixed.labels.argmax(1)[~is_mixed], plain.labels[~is_mixed])
    assert 10 < is_mixed.sum() < 30
    assert (mixed.x[is_mixed] != plain.x[is_mixed]).flatten(1).any(1).float().mean() > 0.8


def test_random_numbers_of_photographs_are_independent_of_the_others() -> None:
    u = torch.cat([random_photo(0, 0, SAMPLES), random_uniform(0, 0, SAMPLES), random_photo(0, 1, SAMPLES)], 1).double()
    correlation = np.corrcoef(u.numpy().T) - np.eye(u.shape[1])
    assert abs(correlation).max() < 5 / np.sqrt(len(SAMPLES))
    assert stats.kstest(u[:, BOX_X].numpy(), "uniform").pvalue > 1e-3
