"""Picture files of every kind become upright square RGB arrays, or say why they cannot."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camkd.data.images import decode, decode_rows, own_size

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


@pytest.mark.fault("odd pictures")
def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16), RED)
    image.paste(BLUE, (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    image.save(tmp_path / "x.png", exif=exif)
    pixels = decode(tmp_path / "x.png", 16)
    assert tuple(pixels[2, 2]) == RED
    assert tuple(pixels[13, 2]) == BLUE


def test_a_photograph_taken_upright_is_cropped_as_it_is_seen(tmp_path: Path) -> None:
    """Stored lying, 24 x 8, and turned by a quarter: its middle third is the middle of the upright picture."""
    image = Image.new("RGB", (24, 8), RED)
    image.paste(BLUE, (8, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "x.png", exif=exif)
    assert (decode(tmp_path / "x.png", 8) == BLUE).all()


@pytest.mark.fault("odd pictures")
@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA-png", "RGB-key"])
def test_transparency_lies_on_white(tmp_path: Path, mode: str) -> None:
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


def test_half_transparent_is_half_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(tmp_path / "x.png")
    np.testing.assert_allclose(decode(tmp_path / "x.png", 8)[0, 0], (255, 127, 127), atol=1)


@pytest.mark.fault("odd pictures")
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "x.png")
    pixels = decode(tmp_path / "x.png", 8)
    np.testing.assert_allclose(pixels[..., 0], np.rint(ramp / 257), atol=0)
    assert (pixels == pixels[..., :1]).all()


@pytest.mark.fault("odd pictures")
@pytest.mark.parametrize(
    ("name", "mode", "colour", "expected"),
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
def test_modes_become_rgb(
    tmp_path: Path, name: str, mode: str, colour: int | tuple[int, ...], expected: tuple[int, int, int]
) -> None:
    Image.new(mode, (8, 8), colour).save(tmp_path / name)
    pixels = decode(tmp_path / name, 8)
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels.reshape(-1, 3), np.tile(expected, (64, 1)), atol=2)


@pytest.mark.fault("odd pictures")
def test_the_first_of_several_frames_counts_whatever_the_suffix(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), BLUE)
    for kind in ("webp", "png", "gif", "mpo"):
        path = tmp_path / f"{kind}.jpg"
        first.save(path, kind, save_all=True, append_images=[second], lossless=True)
        np.testing.assert_allclose(decode(path, 8)[4, 4], RED, atol=2)


@pytest.mark.parametrize(("width", "height"), [(90, 30), (30, 90)])
def test_the_shorter_side_fits_and_the_centre_is_kept(tmp_path: Path, width: int, height: int) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    image.save(tmp_path / "x.png")
    left, top = (width // 3 - 10) // 2, (height // 3 - 10) // 2
    whole = image.resize((width // 3, height // 3), Image.Resampling.BICUBIC)
    expected = np.asarray(whole.crop((left, top, left + 10, top + 10)))
    np.testing.assert_array_equal(decode(tmp_path / "x.png", 10), expected)


def test_shrinking_averages(tmp_path: Path) -> None:
    """A fine checkerboard becomes grey, where picking pixels would give black and white."""
    board = ((np.indices((256, 256)).sum(0) % 2) * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "x.png")
    assert np.ptp(decode(tmp_path / "x.png", 32)[4:-4, 4:-4].astype(int)) <= 4


def test_a_large_jpeg_is_close_to_the_same_picture_as_png(tmp_path: Path) -> None:
    y, x = np.mgrid[0:1200, 0:1600] / 4
    smooth = np.stack([np.sin(x) * 100 + 128, np.cos(y) * 100 + 128, np.sin(x + y) * 100 + 128], 2)
    image = Image.fromarray(smooth.astype(np.uint8))
    image.save(tmp_path / "x.png")
    image.save(tmp_path / "x.jpg", quality=95)
    apart = decode(tmp_path / "x.png", 200).astype(int) - decode(tmp_path / "x.jpg", 200)
    assert np.abs(apart).mean() < 3


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
def test_own_size(tmp_path: Path, sizes: list[tuple[int, int]], expected: int | None) -> None:
    paths = [tmp_path / f"{row}.png" for row in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        Image.new("L", size).save(path)
    (tmp_path / "broken.png").write_bytes(b"")
    assert own_size(map(str, [tmp_path / "broken.png", *paths])) == expected


def bomb(path: Path) -> None:
    """A PNG that claims 40,000 x 40,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


def truncated(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path.with_suffix(".whole.jpg"))
    whole = path.with_suffix(".whole.jpg").read_bytes()
    path.with_suffix(".whole.jpg").unlink()
    path.write_bytes(whole[: len(whole) // 2])


BROKEN: dict[str, Callable[[Path], object]] = {
    "truncated": truncated,
    "not a picture": lambda path: path.write_text("<html>404</html>"),
    "not a picture in a known format": lambda path: path.write_bytes(b""),
    "could be decompression bomb DOS attack": bomb,
    "No such file": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.fault("bad pictures")
@pytest.mark.parametrize("reason", BROKEN)
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, reason: str) -> None:
    BROKEN[reason](tmp_path / "x.jpg")
    with pytest.raises(ValueError, match=reason):
        decode(tmp_path / "x.jpg", 8)


def test_rows_that_cannot_be_read_are_told_and_the_others_are_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between once and twice its safe number of pixels Pillow only warns; such a picture is refused too."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for name, width in (("good.png", 10), ("large.png", 15), ("huge.png", 30)):
        Image.new("RGB", (width, 10), RED).save(tmp_path / name)
    images = np.zeros((5, 10, 10, 3), np.uint8)
    paths = [str(tmp_path / name) for name in ("large.png", "good.png", "huge.png", "good.png")]
    bad = decode_rows(images, 1, paths)
    assert sorted(bad) == [1, 3]
    assert bad[1] == "15 x 10 pixels are more than is safe to decode"
    assert (images[[2, 4]] == RED).all()
    assert not images[0].any()
