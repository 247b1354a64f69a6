"""Decoding of image files in every format and mode, and of broken files."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camkd.data.images import common_size, decode, decode_full, decode_rows
from camkd.types import Preprocessing
from support.image_files import (
    UPRIGHT,
    corrupt_files,
    encode,
    files_of_no_image,
    files_of_other_formats,
    gif_with_border,
    oriented,
    photo,
    readable_files,
)

RED = (255, 0, 0)
GREEN = (0, 255, 0)
BLUE = (0, 0, 255)
WHITE = (255, 255, 255)


def decode_bytes(path: Path, content: bytes, size: int | None = None) -> np.ndarray:
    path.write_bytes(content)
    return decode_full(path) if size is None else decode(path, Preprocessing(size))


# --- orientation: as browsers show it


@pytest.mark.fault("unusual image")
@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_exif_orientation_of_jpeg_and_png_is_applied(tmp_path: Path, image_format: str, orientation: int) -> None:
    pixels = photo(48, 32)
    shown = decode_bytes(tmp_path / "x", oriented(pixels, image_format, orientation))
    stored = decode_bytes(tmp_path / "y", oriented(pixels, image_format, 1))
    np.testing.assert_array_equal(shown, UPRIGHT[orientation](stored))


@pytest.mark.fault("unusual image")
@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize(
    ("image_format", "carrier"), [("WEBP", "exif"), ("WEBP", "xmp"), ("PNG", "xmp"), ("JPEG", "xmp")]
)
def test_orientation_of_webp_and_of_xmp_is_ignored(
    tmp_path: Path, image_format: str, carrier: str, orientation: int
) -> None:
    content = oriented(photo(48, 32), image_format, orientation, carrier)
    with Image.open(io.BytesIO(content)) as image:
        stored = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode_bytes(tmp_path / "x", content), stored)


@pytest.mark.parametrize("value", [0, 9, 6 << 8])
def test_unknown_exif_orientation_is_ignored(tmp_path: Path, value: int) -> None:
    stored = decode_bytes(tmp_path / "x", oriented(photo(), "JPEG", 1))
    np.testing.assert_array_equal(decode_bytes(tmp_path / "y", oriented(photo(), "JPEG", value)), stored)


def test_exif_rotation_is_applied_before_the_crop(tmp_path: Path) -> None:
    """A file of 24 x 8 pixels, rotated by 90 degrees: its middle third is the center of the upright image."""
    image = Image.new("RGB", (24, 8), RED)
    image.paste(BLUE, (8, 0, 16, 8))
    assert (decode_bytes(tmp_path / "x.png", oriented(np.asarray(image), "PNG", 6), 8) == BLUE).all()
    assert decode_full(tmp_path / "x.png").shape == (24, 8, 3)


# --- colors, transparency and frames


@pytest.mark.fault("unusual image")
@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA-png", "RGB-key"])
def test_transparent_pixels_become_white(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "x.png"
    if mode == "PA-png":
        image = Image.new("P", (4, 4), 0)
        image.putpalette([*BLUE, *RED])
        image.save(path, transparency=b"\x00\xff")
    elif mode == "RGB-key":
        Image.new("RGB", (4, 4), BLUE).save(path, transparency=BLUE)
    else:
        Image.new(mode, (4, 4), (0,) * len(mode)).save(path)
    assert (decode(path, Preprocessing(4)) == 255).all()


def test_half_transparent_pixels_are_blended_with_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(tmp_path / "x.png")
    np.testing.assert_allclose(decode(tmp_path / "x.png", Preprocessing(8))[0, 0], (255, 127, 127), atol=1)


@pytest.mark.fault("unusual image")
def test_sixteen_bit_images_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "x.png")
    pixels = decode(tmp_path / "x.png", Preprocessing(8))
    np.testing.assert_allclose(pixels[..., 0], np.rint(ramp / 257), atol=0)
    assert (pixels == pixels[..., :1]).all()


@pytest.mark.fault("unusual image")
@pytest.mark.parametrize(
    ("name", "mode", "color", "expected"),
    [
        ("x.png", "L", 77, (77, 77, 77)),
        ("x.bmp", "RGB", GREEN, GREEN),
        ("x.BMP", "1", 1, WHITE),
        ("x.webp", "RGB", WHITE, WHITE),
        ("x.jpg", "CMYK", (0, 255, 255, 0), RED),
        ("x.JPG", "L", 128, (128, 128, 128)),
        ("x.gif", "RGB", BLUE, BLUE),
    ],
)
def test_every_format_and_mode_becomes_rgb(
    tmp_path: Path, name: str, mode: str, color: int | tuple[int, ...], expected: tuple[int, int, int]
) -> None:
    Image.new(mode, (8, 8), color).save(tmp_path / name)
    pixels = decode(tmp_path / name, Preprocessing(8))
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels.reshape(-1, 3), np.tile(expected, (64, 1)), atol=2)


@pytest.mark.fault("unusual image")
@pytest.mark.parametrize("image_format", ["webp", "png", "gif", "mpo"])
def test_first_frame_of_an_animation_is_used(tmp_path: Path, image_format: str) -> None:
    """The format is detected from the content; every file has the suffix ``.jpg``."""
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, BLUE)]
    frames[0].save(tmp_path / "x.jpg", image_format, save_all=True, append_images=frames[1:], lossless=True)
    np.testing.assert_allclose(decode(tmp_path / "x.jpg", Preprocessing(8))[4, 4], RED, atol=2)


def test_first_frame_of_an_animated_png_with_another_still_image(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, GREEN, BLUE)]
    content = encode(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=True)
    assert (decode_bytes(tmp_path / "x", content, 8) == GREEN).all()


def test_border_of_a_gif_around_its_first_frame_is_white(tmp_path: Path) -> None:
    expected = np.full((30, 40, 3), 255, np.uint8)
    expected[11:19, 16:24] = RED
    np.testing.assert_array_equal(decode_bytes(tmp_path / "x", gif_with_border()), expected)


@pytest.mark.parametrize("profile", ["JPEG with Display P3", "PNG with Display P3", "WebP with Display P3"])
def test_color_profiles_are_ignored(tmp_path: Path, profile: str) -> None:
    content = readable_files()[profile]
    with Image.open(io.BytesIO(content)) as image:
        assert image.info["icc_profile"]
        stored = np.asarray(image)
    np.testing.assert_array_equal(decode_bytes(tmp_path / "x", content), stored)


@pytest.mark.parametrize("bits", [1, 2, 4, 16])
def test_transparent_value_of_a_gray_png_becomes_white(tmp_path: Path, bits: int) -> None:
    name = f"{bits}-bit gray PNG with a transparent value"
    pixels = decode_bytes(tmp_path / "x", readable_files()[name])
    values = np.arange(1 << min(bits, 2)) * (255 // ((1 << min(bits, 2)) - 1))
    assert (pixels == 255).any()
    if bits == 16:
        assert 64 not in pixels  # the transparent value 1 << 14, rounded to 8 bits
    elif bits < 4:
        assert len(np.unique(pixels)) == len(values) - 1 or 0 not in pixels


# --- resizing


def bicubic_weights(length: int, side: int, size: int) -> np.ndarray:
    """Weights ``(size, length)`` of an antialiased bicubic filter for the central ``side`` of ``length`` pixels."""
    scale = side / size
    centers = (length - side) / 2 + (np.arange(size) + 0.5) * scale
    x = np.abs(np.arange(length) + 0.5 - centers[:, None]) / max(scale, 1)
    weights = np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("width_height", [(500, 375), (375, 500), (501, 377), (1333, 1000), (999, 2221), (224, 398)])
@pytest.mark.parametrize("size", [32, 64])
def test_jpeg_is_resized_from_its_full_resolution(tmp_path: Path, width_height: tuple[int, int], size: int) -> None:
    """The reference is computed without rounding from the pixels of the whole file."""
    content = encode(Image.fromarray(photo(*width_height)), "JPEG", quality=90)
    with Image.open(io.BytesIO(content)) as image:
        full = np.asarray(image, np.float64)
    height, width, _ = full.shape
    rows, columns = (bicubic_weights(length, min(height, width), size) for length in (height, width))
    expected = np.einsum("yr,rcn,xc->yxn", rows, full, columns, optimize=True).clip(0, 255)
    np.testing.assert_allclose(decode_bytes(tmp_path / "x.jpg", content, size), expected, atol=2)  # rounded twice


@pytest.mark.parametrize(("width", "height"), [(40, 123), (123, 40), (33, 120), (90, 90)])
def test_columns_are_resized_before_rows(tmp_path: Path, width: int, height: int) -> None:
    """The page resizes columns first. The order of Pillow depends on its version."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    side = min(width, height)
    left = (width - side) / 2
    top = (height - side) / 2
    narrow = image.resize((16, height), Image.Resampling.BICUBIC, (left, 0, left + side, height))
    expected = narrow.resize((16, 16), Image.Resampling.BICUBIC, (0, top, 16, top + side))
    np.testing.assert_array_equal(decode_bytes(tmp_path / "x.png", encode(image, "PNG"), 16), np.asarray(expected))


@pytest.mark.parametrize(("width", "height"), [(90, 30), (30, 90)])
def test_shorter_side_is_resized_and_the_center_is_cropped(tmp_path: Path, width: int, height: int) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    image.save(tmp_path / "x.png")
    left = (width // 3 - 10) // 2
    top = (height // 3 - 10) // 2
    resized = image.resize((width // 3, height // 3), Image.Resampling.BICUBIC)
    expected = np.asarray(resized.crop((left, top, left + 10, top + 10)))
    difference = decode(tmp_path / "x.png", Preprocessing(10)).astype(int) - expected
    assert np.abs(difference).max() <= 1


def test_resize_is_antialiased(tmp_path: Path) -> None:
    """A fine checkerboard becomes gray; sampling single pixels would give black and white."""
    board = ((np.indices((256, 256)).sum(0) % 2) * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "x.png")
    assert np.ptp(decode(tmp_path / "x.png", Preprocessing(32))[4:-4, 4:-4].astype(int)) <= 4


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(8, 8)] * 3, 8),
        ([(8, 8), (9, 9)], None),
        ([(8, 9)] * 2, None),
        ([(65, 65)] * 2, None),
        ([(64, 64)], 64),
    ],
)
def test_common_size(tmp_path: Path, sizes: list[tuple[int, int]], expected: int | None) -> None:
    paths = [tmp_path / f"{row}.png" for row in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        Image.new("L", size).save(path)
    (tmp_path / "broken.png").write_bytes(b"")
    assert common_size(map(str, [tmp_path / "broken.png", *paths])) == expected


def decompression_bomb(path: Path) -> None:
    """Write a PNG whose header states 40,000 x 40,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


def truncated(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


BROKEN_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncated, "truncated"),
    "html": (lambda path: path.write_text("<html>404</html>"), "must be JPEG, .*, got an HTML page"),
    "empty": (lambda path: path.write_bytes(b""), r"^the file is empty \(0 bytes\)$"),
    "decompression bomb": (decompression_bomb, "could be decompression bomb DOS attack"),
    "broken link": (lambda path: path.symlink_to("nowhere"), "No such file"),
}


@pytest.mark.fault("unreadable image")
@pytest.mark.parametrize("kind", BROKEN_FILES)
def test_broken_file_raises_an_error_with_the_reason(tmp_path: Path, kind: str) -> None:
    write, reason = BROKEN_FILES[kind]
    write(tmp_path / "x.jpg")
    with pytest.raises(ValueError, match=reason):
        decode(tmp_path / "x.jpg", Preprocessing(8))


@pytest.mark.fault("unreadable image")
@pytest.mark.parametrize("name", corrupt_files())
def test_corrupt_file_is_rejected(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"truncated|checksum|header is corrupt"):
        decode_bytes(tmp_path / "x", corrupt_files()[name], 8)


@pytest.mark.parametrize("name", {**files_of_other_formats(), **files_of_no_image()})
def test_file_of_another_format_is_rejected_with_its_name(tmp_path: Path, name: str) -> None:
    content = {**files_of_other_formats(), **files_of_no_image()}[name]
    with pytest.raises(ValueError, match=f"an image must be JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF, got {name}$"):
        decode_bytes(tmp_path / "x.jpg", content, 8)


def test_decode_rows_reports_errors_and_fills_the_other_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow only warns about images of up to twice its limit of pixels; `decode` rejects these images too."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for name, width in (("good.png", 10), ("large.png", 15), ("huge.png", 30)):
        Image.new("RGB", (width, 10), RED).save(tmp_path / name)
    images = np.zeros((5, 10, 10, 3), np.uint8)
    paths = [str(tmp_path / name) for name in ("large.png", "good.png", "huge.png", "good.png")]
    errors = decode_rows(images, range(1, 5), paths, Preprocessing(images.shape[1])).errors
    assert sorted(errors) == [1, 3]
    assert errors[1] == "an image must have at most 100 pixels, got 15 x 10"
    assert (images[[2, 4]] == RED).all()
    assert not images[0].any()
