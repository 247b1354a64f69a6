"""Decode image files to RGB arrays."""

from __future__ import annotations

import math
import re
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp"})
"""Suffixes of the files that are images, in lower case."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""Formats that are decoded, independent of the file's suffix.

The web page decodes the same formats (``export/web/static/images.js``). AVIF is excluded, as browsers and Pillow decode
transparent and animated images to different colors. TIFF and HEIC are excluded, as few browsers decode them. EPS is
excluded, as its decoder runs another program.
"""

OTHER_FORMATS = {
    "AVIF": rb".{4}ftyp.*avi[fs]",
    "HEIC": rb".{4}ftyp.*(hei[cmsx]|hev[cmsx]|mif1|msf1)",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "ICO": rb"\0\0[\1\2]\0",
    "SVG": rb".*<svg",
    "PDF": rb"%PDF",
    "Photoshop": rb"8BPS",
}
"""Formats that are rejected by name: a regular expression of the first `HEADER_BYTES` bytes, as in ``images.js``."""

HEADER_BYTES = 64

MAX_COMMON_SIZE = 64
"""Largest side in pixels that `common_size` returns."""

ORIENTATION_TAG = 0x0112
"""EXIF tag of the orientation, 1 to 8."""

TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transposition that turns an image of an EXIF orientation upright."""

PNG_GRAY_LEVELS = {"L;2": 85, "L;4": 17}
"""Factor from the values of a gray PNG to 8 bits. Pillow scales the pixels, but not the transparent value."""


def decode(path: str | Path, size: int) -> NDArray[np.uint8]:
    """Decode an image file to a square RGB array.

    The image is the one that browsers show, without color management: the EXIF orientation of JPEG and PNG is applied,
    the first frame of an animation is used, transparent pixels are blended with white, and color profiles are ignored.
    The shorter side is resized to ``size`` with antialiasing and the center square is cropped.

    Args:
        path: Path of the file.
        size: Side of the result in pixels.

    Returns:
        ``(size, size, 3) uint8``.

    Raises:
        ValueError: If the file is not of a format in `FORMATS`, or cannot be decoded completely. The message is the
            reason.

    Example:
        >>> decode(Path("cat.jpg"), 64).shape      # doctest: +SKIP
        (64, 64, 3)
    """
    return np.asarray(_resize_center_square(_decode_rgb(path), size))


def decode_full(path: str | Path) -> NDArray[np.uint8]:
    """Decode an image file to an RGB array at its own resolution, without a crop.

    Orientation, frames, transparency and color profiles are handled as in `decode`.

    Args:
        path: Path of the file.

    Returns:
        ``(H, W, 3) uint8``.

    Raises:
        ValueError: If the file is not of a format in `FORMATS`, or cannot be decoded completely. The message is the
            reason.

    Example:
        >>> decode_full(Path("cat.jpg")).shape     # doctest: +SKIP
        (375, 500, 3)
    """
    return np.asarray(_decode_rgb(path))


def _decode_rgb(path: str | Path) -> Image.Image:
    """Decode a file to an upright RGB image; raise every error of Pillow as ``ValueError``."""
    try:
        with Path(path).open("rb") as file, _open_image(file) as image:
            _check_pixels(image)
            if image.format == "PNG":
                _check_png(file)
            if getattr(image, "default_image", False):  # an image that is not part of the animation of its PNG file
                image.seek(1)
            transposition = TRANSPOSITIONS.get(_read_orientation(image))
            rgb = _to_rgb(_load(image))
            return rgb if transposition is None else rgb.transpose(transposition)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    except Exception as error:  # Pillow raises SyntaxError, struct.error, IndexError, ... on broken files
        raise ValueError(str(error) or type(error).__name__) from error


def _open_image(file: IO[bytes]) -> ImageFile.ImageFile:
    header = file.read(HEADER_BYTES)
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        other = (name for name, pattern in OTHER_FORMATS.items() if re.match(pattern, header, re.DOTALL))
        raise ValueError(
            f"an image must be JPEG, PNG, WebP, GIF or BMP, got {next(other, 'a corrupt or unknown header')}"
        ) from error


def _check_pixels(image: Image.Image) -> None:
    max_pixels = Image.MAX_IMAGE_PIXELS or math.inf
    if image.width * image.height > max_pixels:
        raise ValueError(f"an image must have at most {max_pixels:,} pixels, got {image.width} x {image.height}")


def _check_png(file: IO[bytes]) -> None:
    """Check what Pillow does not and browsers do: the end of a PNG file, and the checksums of its critical chunks."""
    position = file.tell()
    file.seek(len(b"\x89PNG\r\n\x1a\n"))
    kind = b""
    while kind != b"IEND":
        chunk = file.read(8)
        if len(chunk) < 8:
            raise ValueError("image file is truncated")
        length, kind = struct.unpack(">I4s", chunk)
        content = file.read(length)
        checksum = file.read(4)
        if kind[:1].isupper() and zlib.crc32(kind + content).to_bytes(4, "big") != checksum:
            raise ValueError(f"the checksum of the PNG chunk {kind.decode('latin-1')} is wrong")
    file.seek(position)


def _read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation as browsers read it: of JPEG and PNG only, and not from XMP.

    Browsers ignore EXIF data after the pixels, which Pillow adds when it loads the image.
    """
    exif: bytes = image.info.get("exif", b"") if image.format in ("JPEG", "MPO", "PNG") else b""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 10:
        return 1
    (first,) = struct.unpack_from(f"{order}I", tiff, 4)
    (count,) = struct.unpack_from(f"{order}H", tiff, first) if first + 2 <= len(tiff) else (0,)
    for offset in range(first + 2, min(first + 2 + 12 * count, len(tiff) - 11), 12):
        tag, kind, length, value = struct.unpack_from(f"{order}HHIH", tiff, offset)
        if (tag, kind, length) == (ORIENTATION_TAG, 3, 1):  # one unsigned 16-bit integer
            return int(value)
    return 1


def _load(image: ImageFile.ImageFile) -> Image.Image:
    """Load an image, and correct two cases that Pillow decodes unlike browsers."""
    tiles = list(image.tile)
    image.load()
    if image.format == "PNG" and tiles[0][3] in PNG_GRAY_LEVELS and "transparency" in image.info:
        image.info["transparency"] *= PNG_GRAY_LEVELS[tiles[0][3]]
    if image.format == "GIF" and tiles[0][1] != (0, 0, *image.size):  # the first frame leaves a border free
        frame = image.convert("RGBA").crop(tiles[0][1])
        canvas = Image.new("RGBA", image.size)
        canvas.paste(frame, tiles[0][1])
        return canvas
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB and blend its transparent pixels with white."""
    if image.mode.startswith("I"):  # 16 bits per pixel
        gray = np.asarray(image).astype(np.int64).clip(0, 65535)
        gray[gray == image.info.get("transparency")] = 65535
        return Image.fromarray(((gray + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        foreground = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", foreground.size, "white"), foreground).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # convert() would copy it


def _resize_center_square(image: Image.Image, size: int) -> Image.Image:
    """Resize the center square, columns first. Pillow's own order of the two passes depends on its version."""
    if image.size == (size, size):
        return image
    side = min(image.size)
    left = (image.width - side) / 2
    top = (image.height - side) / 2
    margin = math.ceil(2 * max(side / size, 1)) + 1  # rows beyond the square that the filter reads
    first = max(math.floor(top) - margin, 0)
    last = min(math.ceil(top) + side + margin, image.height)
    rows = image if last - first == image.height else image.crop((0, first, image.width, last))
    narrow = rows.resize((size, rows.height), Image.Resampling.BICUBIC, (left, 0, left + side, rows.height))
    return narrow.resize((size, size), Image.Resampling.BICUBIC, (0, top - first, size, top - first + side))


def common_size(paths: Iterable[str]) -> int | None:
    """Return the common side of small square images. Only the file headers are read.

    Args:
        paths: Image files. Unreadable files are ignored.

    Returns:
        The side in pixels. None if no image is readable, if the images differ in size, or if they are not square or
        are larger than `MAX_COMMON_SIZE`.
    """
    sizes = set()
    for path in paths:
        try:
            with _suppress_pillow_warnings(), Image.open(path, formats=FORMATS) as image:
                sizes.add(image.size)
        except Exception:  # decode() reports the reason later
            continue
    if len(sizes) != 1:
        return None
    width, height = sizes.pop()
    return width if width == height <= MAX_COMMON_SIZE else None


def decode_rows(images: NDArray[np.uint8], start: int, paths: Iterable[str]) -> dict[int, str]:
    """Decode image files into consecutive rows of an array.

    Args:
        images: Output array, ``(N, size, size, 3) uint8``.
        start: Row of the first image.
        paths: Image files.

    Returns:
        The error message for each row whose file cannot be decoded. These rows are left unchanged.
    """
    errors = {}
    with _suppress_pillow_warnings():
        for row, path in enumerate(paths, start):
            try:
                images[row] = decode(path, images.shape[1])
            except ValueError as error:
                errors[row] = str(error)
    return errors


@contextmanager
def _suppress_pillow_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
