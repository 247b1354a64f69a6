"""Decoding of image files in every format and mode, and of broken files."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camkd.data.images import common_size, decode, decode_full, decode_rows

RED = (255, 0, 0)
GREEN = (0, 255, 0)
BLUE = (0, 0, 255)
WHITE = (255, 255, 255)


@pytest.mark.fault("unusual image")
def test_exif_rotation_by_180_degrees(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16), RED)
    image.paste(BLUE, (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 3
    image.save(tmp_path / "x.png", exif=exif)
    pixels = decode(tmp_path / "x.png", 16)
    assert tuple(pixels[2, 2]) == RED
    assert tuple(pixels[13, 2]) == BLUE


def test_exif_rotation_is_applied_before_the_crop(tmp_path: Path) -> None:
    """A file of 24 x 8 pixels, rotated by 90 degrees: its middle third is the center of the upright image."""
    image = Image.new("RGB", (24, 8), RED)
    image.paste(BLUE, (8, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "x.png", exif=exif)
    assert (decode(tmp_path / "x.png", 8) == BLUE).all()
    assert decode_full(tmp_path / "x.png").shape == (24, 8, 3)


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
    assert (decode(path, 4) == 255).all()


def test_half_transparent_pixels_are_blended_with_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(tmp_path / "x.png")
    np.testing.assert_allclose(decode(tmp_path / "x.png", 8)[0, 0], (255, 127, 127), atol=1)


@pytest.mark.fault("unusual image")
def test_sixteen_bit_images_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "x.png")
    pixels = decode(tmp_path / "x.png", 8)
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
    pixels = decode(tmp_path / name, 8)
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels.reshape(-1, 3), np.tile(expected, (64, 1)), atol=2)


@pytest.mark.fault("unusual image")
@pytest.mark.parametrize("image_format", ["webp", "png", "gif", "mpo"])
def test_first_frame_of_an_animation_is_used(tmp_path: Path, image_format: str) -> None:
    """The format is detected from the content; every file has the suffix ``.jpg``."""
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, BLUE)]
    frames[0].save(tmp_path / "x.jpg", image_format, save_all=True, append_images=frames[1:], lossless=True)
    np.testing.assert_allclose(decode(tmp_path / "x.jpg", 8)[4, 4], RED, atol=2)


@pytest.mark.parametrize(("width", "height"), [(90, 30), (30, 90)])
def test_shorter_side_is_resized_and_the_center_is_cropped(tmp_path: Path, width: int, height: int) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    image.save(tmp_path / "x.png")
    left = (width // 3 - 10) // 2
    top = (height // 3 - 10) // 2
    resized = image.resize((width // 3, height // 3), Image.Resampling.BICUBIC)
    expected = np.asarray(resized.crop((left, top, left + 10, top + 10)))
    np.testing.assert_array_equal(decode(tmp_path / "x.png", 10), expected)


def test_resize_is_antialiased(tmp_path: Path) -> None:
    """A fine checkerboard becomes gray; sampling single pixels would give black and white."""
    board = ((np.indices((256, 256)).sum(0) % 2) * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "x.png")
    assert np.ptp(decode(tmp_path / "x.png", 32)[4:-4, 4:-4].astype(int)) <= 4


def test_large_jpeg_is_close_to_the_same_image_as_png(tmp_path: Path) -> None:
    y, x = np.mgrid[0:1200, 0:1600] / 4
    smooth = np.stack([np.sin(x) * 100 + 128, np.cos(y) * 100 + 128, np.sin(x + y) * 100 + 128], 2)
    image = Image.fromarray(smooth.astype(np.uint8))
    image.save(tmp_path / "x.png", compress_level=1)
    image.save(tmp_path / "x.jpg", quality=95)
    difference = decode(tmp_path / "x.png", 200).astype(int) - decode(tmp_path / "x.jpg", 200)
    assert np.abs(difference).mean() < 3


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
    "html": (lambda path: path.write_text("<html>404</html>"), "not an image in a known format"),
    "empty": (lambda path: path.write_bytes(b""), "not an image in a known format"),
    "decompression bomb": (decompression_bomb, "could be decompression bomb DOS attack"),
    "broken link": (lambda path: path.symlink_to("nowhere"), "No such file"),
}


@pytest.mark.fault("unreadable image")
@pytest.mark.parametrize("kind", BROKEN_FILES)
def test_broken_file_raises_an_error_with_the_reason(tmp_path: Path, kind: str) -> None:
    write, reason = BROKEN_FILES[kind]
    write(tmp_path / "x.jpg")
    with pytest.raises(ValueError, match=reason):
        decode(tmp_path / "x.jpg", 8)


def test_decode_rows_reports_errors_and_fills_the_other_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow only warns about images of up to twice its limit of pixels; `decode` rejects these images too."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for name, width in (("good.png", 10), ("large.png", 15), ("huge.png", 30)):
        Image.new("RGB", (width, 10), RED).save(tmp_path / name)
    images = np.zeros((5, 10, 10, 3), np.uint8)
    paths = [str(tmp_path / name) for name in ("large.png", "good.png", "huge.png", "good.png")]
    errors = decode_rows(images, 1, paths)
    assert sorted(errors) == [1, 3]
    assert errors[1] == "an image must have at most 100 pixels, got 15 x 10"
    assert (images[[2, 4]] == RED).all()
    assert not images[0].any()
