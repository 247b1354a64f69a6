"""Object masks of image files: geometry, formats, layouts, and images without mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from tests.data.test_table import error_of, list_files, read, write_table
from tests.support.image_folders import make_classes, save_image

from camkd.data.images import decode, decode_mask
from camkd.data.scan import scan
from camkd.data.walker import find_images
from camkd.types import Fit, InputError, Preprocessing


def save_mask(path: Path, mask: NDArray[np.bool_], value: int = 255) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * value).save(path)
    return path


def coverage(
    mask: NDArray[np.bool_], box: tuple[float, float, float, float], width: int, height: int
) -> NDArray[np.float64]:
    """Compute the fraction of each target pixel that the object covers, by exact integration of the area."""

    def shares(length: int, start: float, stop: float, count: int) -> NDArray[np.float64]:
        borders = np.linspace(start, stop, count + 1)
        pixels = np.arange(length)
        overlap = np.minimum(borders[1:, None], pixels + 1) - np.maximum(borders[:-1, None], pixels)
        return overlap.clip(0) / (borders[1] - borders[0])

    left, top, right, bottom = box
    return shares(mask.shape[0], top, bottom, height) @ mask @ shares(mask.shape[1], left, right, width).T


@settings(max_examples=40)
@given(
    width=st.integers(2, 40),
    height=st.integers(2, 40),
    size=st.integers(1, 30),
    factor=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_mask_is_where_half_of_the_area_is_on_the_object(
    tmp_path_factory: pytest.TempPathFactory, width: int, height: int, size: int, factor: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("masks")
    mask = np.random.default_rng(seed).random((height * factor, width * factor)) < 0.5
    save_mask(folder / "m.png", mask)
    save_image(folder / "i.png", size=(width, height))
    for fit in ("crop", "pad"):
        preprocessing = Preprocessing(size, fit)
        result = decode_mask(folder / "m.png", folder / "i.png", preprocessing)
        expected = np.zeros((size, size))
        if fit == "crop":
            side, left, top = min(width, height), max(width - height, 0) / 2, max(height - width, 0) / 2
            box = (left * factor, top * factor, (left + side) * factor, (top + side) * factor)
            expected = coverage(mask, box, size, size)
        else:
            columns = size if width >= height else max(1, round(width / height * size))
            rows = size if height >= width else max(1, round(height / width * size))
            x, y = round((size - columns) / 2), round((size - rows) / 2)
            expected[y : y + rows, x : x + columns] = coverage(
                mask, (0, 0, width * factor, height * factor), columns, rows
            )
        clear = np.abs(expected - 0.5) > 1e-6
        assert (result == (expected > 0.5))[clear].all()
        assert result[~clear].all()


@pytest.mark.parametrize(("fit", "left"), [("crop", 43), ("pad", 42)])  # no pixel is half on the object
def test_mask_lies_on_the_object_of_the_decoded_image(tmp_path: Path, fit: Fit, left: int) -> None:
    """The object is white in the image, so the mask must be where the decoded image is bright."""
    mask = np.zeros((60, 90), np.bool_)
    mask[12:36, left : left + 30] = True
    Image.fromarray(np.repeat(mask[..., None], 3, 2).astype(np.uint8) * 255).save(tmp_path / "i.png")
    for factor in (1, 2) if fit == "crop" else (1, 2, 0.5):
        scaled = Image.fromarray(mask).resize((int(90 * factor), int(60 * factor)), Image.Resampling.NEAREST)
        save_mask(tmp_path / "m.png", np.asarray(scaled))
        preprocessing = Preprocessing(30, fit)

        bright = decode(tmp_path / "i.png", preprocessing)[..., 0] > 127
        assert (decode_mask(tmp_path / "m.png", tmp_path / "i.png", preprocessing) == bright).all()


MASK = np.zeros((8, 8), np.bool_)
MASK[2:6, 1:4] = True


def rgba(color: tuple[int, int, int], outside: int) -> Image.Image:
    """An image of one color, transparent outside of the mask."""
    alpha = np.where(MASK, 255, outside).astype(np.uint8)
    return Image.merge("RGBA", [*Image.new("RGB", (8, 8), color).split(), Image.fromarray(alpha)])


def palette() -> Image.Image:
    """Index 0 is black, index 3 is the object, as in the masks of Pascal VOC."""
    image = Image.fromarray(MASK.astype(np.uint8) * 3, "L").convert("P")
    image.putdata((MASK * 3).ravel().tolist())
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
    return image


@pytest.mark.parametrize(
    ("suffix", "image"),
    [
        (".png", Image.fromarray(MASK)),  # 1 bit
        (".png", Image.fromarray(MASK.astype(np.uint8))),  # 0 and 1
        (".bmp", Image.fromarray(MASK.astype(np.uint8) * 255)),
        (".png", Image.fromarray(MASK.astype(np.uint16) * 300)),
        (".tif", Image.fromarray(MASK.astype(np.float32) / 3)),
        (".png", Image.fromarray(np.stack([MASK * 0, MASK * 0, MASK * 9], 2).astype(np.uint8))),
        (".png", palette()),
        (".png", rgba((255, 0, 0), 0)),
    ],
    ids=["bits", "zeros and ones", "bmp", "16 bits", "floats", "colors", "palette", "transparent"],
)  # fmt: skip
def test_formats(tmp_path: Path, suffix: str, image: Image.Image) -> None:
    image.save(tmp_path / f"m{suffix}")
    save_image(tmp_path / "i.png")
    assert (decode_mask(tmp_path / f"m{suffix}", tmp_path / "i.png", Preprocessing(8)) == MASK).all()


def test_noise_of_jpeg_is_no_object(tmp_path: Path) -> None:
    mask = np.kron(MASK, np.ones((8, 8), np.bool_))
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "m.jpg", quality=30)
    save_image(tmp_path / "i.png", size=(64, 64))
    assert (decode_mask(tmp_path / "m.jpg", tmp_path / "i.png", Preprocessing(8)) == MASK).all()


def test_mask_of_a_rotated_photograph_is_that_of_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # stored 12 x 6, shown 6 x 12
    Image.new("RGB", (12, 6)).save(tmp_path / "i.jpg", exif=exif)
    upright = np.zeros((12, 6), np.bool_)
    upright[3:5, :2] = True
    save_mask(tmp_path / "m.png", upright)
    assert (decode_mask(tmp_path / "m.png", tmp_path / "i.jpg", Preprocessing(6)) == upright[3:9]).all()
    save_mask(tmp_path / "m.png", upright.T)
    with pytest.raises(ValueError, match="must have the proportions of its image, 6 x 12, got 12 x 6"):
        decode_mask(tmp_path / "m.png", tmp_path / "i.jpg", Preprocessing(6))


# --- tables


def masked_table(root: Path, *, every: int = 2) -> Path:
    """Write images and a table in which every second image has a mask."""
    make_classes(root, "a", "b", count=20)
    rows = []
    for number, (name, label) in enumerate(list_files(root)):
        mask = f"m/{number}.png" if number % every == 0 else ""
        if mask:
            save_mask(root / mask, np.roll(MASK, number % 3, 1))
        rows.append((name, label, mask))
    return write_table(root / "t.csv", rows, "image,label,mask")


def test_masks_of_a_table_follow_their_images(tmp_path: Path) -> None:
    table = masked_table(tmp_path)
    numbers = {name: number for number, (name, _) in enumerate(f for f in list_files(tmp_path) if f[1] in "ab")}
    data = read(table)
    assert "20 of 40 images have a mask of the object" in data.notes
    for other in (data, data.limited(5), read(table, limit=5), read(table)):
        for split in other.splits.values():
            assert split.masks is not None
            for name, mask in zip(split.names or (), split.masks, strict=True):
                expected = np.roll(MASK, numbers[name] % 3, 1) if numbers[name] % 2 == 0 else np.zeros_like(MASK)
                assert (mask == expected).all()
    large = data.at_size(16)
    assert large.test.masks is not None
    assert large.test.masks.shape == (len(data.test), 16, 16)
    assert (large.test.masks[:, ::2, ::2] == data.test.masks).all()


def test_masks_are_no_part_of_the_fingerprints(tmp_path: Path) -> None:
    table = masked_table(tmp_path)
    before = read(table)
    save_mask(tmp_path / "m" / "0.png", ~MASK)
    after = read(table)
    plain = read(write_table(tmp_path / "u.csv", [row for row in list_files(tmp_path) if row[1] in "ab"]))
    assert len({data.fingerprint for data in (before, after, plain)}) == 1
    assert len({data.source_fingerprint for data in (before, after, plain)}) == 1
    changed = [
        (a != b).any()
        for split in before.splits
        for a, b in zip(before.splits[split].masks, after.splits[split].masks, strict=True)  # type: ignore[arg-type]
    ]
    assert sum(changed) == 1
    assert plain.test.masks is None


def test_masks_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    table = masked_table(tmp_path)
    (tmp_path / "m" / "0.png").unlink()
    assert "must be a file, absolute or relative to" in error_of(table)
    assert "got row 2 ('m/0.png': No such file or directory)" in error_of(table)
    save_mask(tmp_path / "m" / "0.png", np.ones((8, 4), np.bool_))
    (tmp_path / "m" / "2.png").write_bytes(b"no image")
    message = error_of(table)
    assert "must be images with the proportions of their images, got 2 others" in message
    assert "m/0.png: the mask must have the proportions of its image, 8 x 8, got 4 x 8" in message
    (tmp_path / "m" / "4.png").unlink()
    save_mask(tmp_path / "m" / "6.png", np.zeros((8, 8), np.bool_))
    notes = "\n".join(read(table, bad_images="skip").notes)
    assert "1 masks that are no files were left out: row 6 ('m/4.png': No such file or directory)" in notes
    assert "2 masks were left out: m/" in notes
    assert "1 masks have no object in the used part of the image, and count as no mask: m/6.png" in notes
    assert "17 of 40 images have a mask of the object" in notes


def test_mask_of_an_unreadable_image_is_left_out_with_it(tmp_path: Path) -> None:
    table = masked_table(tmp_path, every=1)
    (tmp_path / "a" / "0.png").write_bytes(b"broken")
    data = read(table, bad_images="skip")
    assert all(split.masks is not None and split.masks.any((1, 2)).all() for split in data.splits.values())
    assert sum(len(split) for split in data.splits.values()) == 39


# --- folders


@pytest.mark.parametrize("layout", ["classes", "splits", "splits, masks by class"])
def test_folder_of_masks(tmp_path: Path, layout: str) -> None:
    root = tmp_path / "pets"
    prefixes = [""] if layout == "classes" else ["train/", "val/", "test/"]
    for prefix in prefixes:
        make_classes(root / prefix, "dog", "cat", count=12)
        for number in range(3):
            folder = "" if layout == "splits, masks by class" else prefix
            save_mask(root / "masks" / folder / "cat" / f"{number}.png", MASK)
    save_mask(root / "masks" / "cat" / "99.png", MASK)
    listing = scan(root)
    assert listing.classes == ("cat", "dog")
    files = [file for split in listing.splits for _, file in listing.samples(split)]
    assert len(files) == 24 * len(prefixes)
    masked = [file.name for file in files if file.mask is not None]
    assert sorted(masked) == sorted(f"{prefix}cat/{number}.png" for prefix in prefixes for number in range(3))
    assert "1 masks of no image were ignored: 'masks/cat/99.png'" in listing.notes
    assert len(find_images(root)[0]) == len(files)
    masks = [split.masks for split in read(root).splits.values() if split.masks is not None]
    assert sum(int(array.any((1, 2)).sum()) for array in masks) == len(masked)


def test_masks_at_any_depth_with_any_suffix_and_unicode_form(tmp_path: Path) -> None:
    make_classes(tmp_path, "dog", count=6)
    save_image(tmp_path / "caf\u00e9" / "deep" / "x.jpg")
    save_image(tmp_path / "caf\u00e9" / "y.png")
    save_mask(tmp_path / "Masks" / "cafe\u0301" / "deep" / "x.bmp", MASK)
    listing = scan(tmp_path, test_only=True)
    masked = [file.name for _, file in listing.samples("test") if file.mask is not None]
    assert masked == ["caf\u00e9/deep/x.jpg"]


def test_two_masks_of_one_image(tmp_path: Path) -> None:
    make_classes(tmp_path, "dog", "cat")
    for suffix in (".png", ".bmp"):
        save_mask(tmp_path / "masks" / "cat" / f"1{suffix}", MASK)
    with pytest.raises(InputError, match=r"must have one mask, got 'masks/cat/1\.bmp' and 'masks/cat/1\.png'"):
        scan(tmp_path)


@pytest.mark.parametrize("names", [("masks/1.png",), ("masks/blue/1.png", "masks/2.png"), ("masks/blue/1.png",)])
def test_class_named_masks(tmp_path: Path, names: tuple[str, ...]) -> None:
    make_classes(tmp_path, "no masks", count=12)
    for name in names:
        save_image(tmp_path / name)
    assert scan(tmp_path, test_only=True).classes == ("masks", "no masks")
