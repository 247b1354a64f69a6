"""Cropping and padding of image files to a square, by two filters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from camkd.data import open_data
from camkd.data.dataset import Dataset, no_progress
from camkd.data.decode import DecodeTask
from camkd.data.files import open_listing
from camkd.data.images import decode, place
from camkd.data.scan import scan
from camkd.types import PAD_VALUE, Fit, InputError, Interpolation, Preprocessing

FILTERS: dict[Interpolation, Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
SIZES = [(90, 30), (30, 90), (101, 47), (47, 101), (9, 5), (3, 17), (40, 40), (500, 20), (20, 500)]


def save_noise(path: Path, width: int, height: int) -> Image.Image:
    """Save noise of so little contrast that no intermediate result of a filter is clipped."""
    image = Image.fromarray(np.random.default_rng(0).integers(96, 160, (height, width, 3), np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return image


# --- one image


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("size", [16, 17])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_pad_is_that_of_pillow(
    tmp_path: Path, width: int, height: int, size: int, interpolation: Interpolation
) -> None:
    image = save_noise(tmp_path / "x.png", width, height)
    expected = ImageOps.pad(image, (size, size), FILTERS[interpolation], color=(PAD_VALUE,) * 3)
    pixels = decode(tmp_path / "x.png", Preprocessing(size, "pad", interpolation))
    assert np.abs(pixels.astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_crop_is_the_resized_center_square_of_pillow(
    tmp_path: Path, width: int, height: int, interpolation: Interpolation
) -> None:
    image = save_noise(tmp_path / "x.png", width, height)
    side = min(width, height)
    left = (width - side) / 2
    top = (height - side) / 2
    expected = image.resize((16, 16), FILTERS[interpolation], (left, top, left + side, top + side))
    pixels = decode(tmp_path / "x.png", Preprocessing(16, "crop", interpolation))
    assert np.abs(pixels.astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("is_tall", [False, True])
@pytest.mark.parametrize("end", [0, -1])
def test_dot_at_the_edge_of_a_long_image_survives_padding_and_not_cropping(
    tmp_path: Path, interpolation: Interpolation, is_tall: bool, end: int
) -> None:
    """A red dot of 4 x 4 pixels at the end of a black 96 x 32 image is 2 x 2 pixels of a padded image of 48 pixels."""
    pixels = np.zeros((32, 96, 3), np.uint8)
    columns = slice(0, 4) if end == 0 else slice(-4, None)
    pixels[14:18, columns, 0] = 255
    Image.fromarray(pixels.transpose(1, 0, 2) if is_tall else pixels).save(tmp_path / "x.png")
    padded = decode(tmp_path / "x.png", Preprocessing(48, "pad", interpolation)).astype(int)
    padded = padded.transpose(1, 0, 2) if is_tall else padded
    assert (padded[:16] == PAD_VALUE).all()
    assert (padded[32:] == PAD_VALUE).all()
    redness = padded[16:32, :, 0]
    rows, columns_found = np.nonzero(redness > 128)
    assert (rows.min(), rows.max()) == (7, 8)
    assert (columns_found.min(), columns_found.max()) == ((0, 1) if end == 0 else (46, 47))
    assert decode(tmp_path / "x.png", Preprocessing(48, "crop", interpolation)).max() == 0


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_square_image_of_the_size_keeps_its_bits(tmp_path: Path, fit: Fit) -> None:
    image = save_noise(tmp_path / "x.png", 16, 16)
    np.testing.assert_array_equal(decode(tmp_path / "x.png", Preprocessing(16, fit, "bilinear")), np.asarray(image))


def test_fits_of_a_square_image_are_equal(tmp_path: Path) -> None:
    save_noise(tmp_path / "x.png", 50, 50)
    cropped, padded = (decode(tmp_path / "x.png", Preprocessing(16, fit)) for fit in ("crop", "pad"))
    np.testing.assert_array_equal(cropped, padded)


@pytest.mark.parametrize(("width", "height"), [*SIZES, (500, 1), (1, 500)])
def test_padded_image_is_centered_and_inside_the_square(width: int, height: int) -> None:
    left, top, right, bottom = place(width, height, Preprocessing(16, "pad")).target
    assert max(right - left, bottom - top) == 16
    assert min(right - left, bottom - top) >= 1
    assert min(left, top) == 0
    assert abs(left - (16 - right)) <= 1
    assert abs(top - (16 - bottom)) <= 1


# --- folders


def open_wide(root: Path, cache: Path, **options: object) -> Dataset:
    defaults = {"size": 12, "limit": None, "workers": 1, "bad_images": "fail"}
    return open_listing(scan(root), cache=cache, progress=no_progress, **(defaults | options))  # type: ignore[arg-type]


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        for number in range(6):
            save_noise(tmp_path / "wide" / name / f"{number}.png", 30 + number, 20)
    return tmp_path / "wide"


def test_folder_is_stored_for_each_fit_and_interpolation(wide: Path, tmp_path: Path) -> None:
    datasets = []
    for fit in ("crop", "pad"):
        for interpolation in FILTERS:
            data = open_wide(wide, tmp_path / "cache", fit=fit, interpolation=interpolation)
            preprocessing = Preprocessing(12, fit, interpolation)
            assert data.test.names is not None
            for image, name in zip(data.test.images, data.test.names, strict=True):
                np.testing.assert_array_equal(image, decode(wide / name, preprocessing))
            datasets.append(data)
    assert len({data.fingerprint for data in datasets}) == 4
    assert len({data.source_fingerprint for data in datasets}) == 1
    assert [data.fit for data in datasets] == ["crop", "crop", "pad", "pad"]


@pytest.mark.slow
def test_worker_processes_pad_like_this_process(wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("camkd.data.decode.IN_PROCESS_SECONDS", 0)
    monkeypatch.setattr("camkd.data.decode.FILES_PER_TASK", 2)
    options = {"fit": "pad", "interpolation": "bilinear"}
    first, second = (open_wide(wide, tmp_path / str(workers), workers=workers, **options) for workers in (1, 2))
    assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize("value_range", [None, (0.0, 65535.0)])
def test_task_of_a_worker_survives_its_encoding(value_range: tuple[float, float] | None) -> None:
    task = DecodeTask("x.npy", [3, 4], ["a\udcff.png", "b.png"], Preprocessing(8, "pad", "bilinear", value_range), True)
    assert DecodeTask.from_json(task.to_json()) == task


# --- errors


@pytest.mark.parametrize("name", ["shapes", "shapes-cue", "cifar10", "cifar100"])
@pytest.mark.parametrize(
    ("option", "value", "default"), [("fit", "pad", "crop"), ("interpolation", "bilinear", "bicubic")]
)
def test_built_in_datasets_refuse_another_preprocessing(
    tmp_path: Path, name: str, option: str, value: str, default: str
) -> None:
    with pytest.raises(InputError, match=f"{option} must be {default} for {name}, .*, got {value}"):
        open_data(name, cache=tmp_path, **{option: value})  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "choices"), [("fit", "'crop' or 'pad'"), ("interpolation", "'bicubic' or 'bilinear'")]
)
def test_unknown_values_are_refused(wide: Path, tmp_path: Path, option: str, choices: str) -> None:
    with pytest.raises(InputError, match=f"{option} must be {choices}, got 'stretch'"):
        open_data(wide, cache=tmp_path, **{option: "stretch"})  # type: ignore[arg-type]
