"""Decode image files to RGB arrays."""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Lock
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin

from camkd.data.image_formats import (
    FORMAT_NAMES,
    HEADER_BYTES,
    ORIENTATION_TAG,
    TRUNCATED,
    StrippedFile,
    detect_format,
    exif_orientation,
    read_jpeg,
    read_png,
    repaired_jpegs,
)
from camkd.data.value_range import FULL_RANGE, ValueRange, ValueSummary, scale_to_bytes, summarize

MAX_COMMON_SIZE = 64
"""Largest side in pixels that `common_size` returns."""

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

MAX_MISSING_FRACTION = 1 / 16
"""Largest fraction of the pixels that a JPEG file without its end may lack."""

BLOCK_SIDE = 18
"""Side in pixels of the area that a block of a JPEG file affects: 16, and a border where colors are interpolated."""

INCOMPLETE = "images without the end of their file were read"
NARROWED = "color images of 16 bits were read with 8 bits per channel"
OUTSIDE = "images are black or white, because all of their values are outside of the value range"
FEW_LEVELS = 32
NEARLY_FLAT = f"{NARROWED}, which leaves fewer than {FEW_LEVELS} of 256 levels; save them as gray images of 16 bits"


class Decoded(NamedTuple):
    """A decoded image file.

    Attributes:
        pixels: RGB, ``(H, W, 3) uint8``. Only the `ValueSummary` of an image of more than 8 bits without a value range.
        remark: `INCOMPLETE`, `OUTSIDE`, `NARROWED`, `NEARLY_FLAT` or None.
    """

    pixels: NDArray[np.uint8] | ValueSummary
    remark: str | None


class DecodedRows(NamedTuple):
    """Results of `decode_rows` by row.

    Attributes:
        errors: The error message for each row whose file cannot be decoded.
        summaries: The gray values of each image that is not decoded because it needs a value range.
        remarks: `INCOMPLETE`, `OUTSIDE`, `NARROWED` or `NEARLY_FLAT`.
    """

    errors: dict[int, str]
    summaries: dict[int, ValueSummary]
    remarks: dict[int, str]


def decode(path: str | Path, size: int, value_range: ValueRange = FULL_RANGE) -> NDArray[np.uint8]:
    """Decode an image file to a square RGB array.

    The image is the one that browsers show, without color management: the EXIF orientation of JPEG, PNG and AVIF and
    that of TIFF is applied, the first frame or page is used, transparent pixels are blended with white, and color
    profiles are ignored. Gray images of more than 8 bits are scaled by a value range. The shorter side is resized to
    ``size`` with antialiasing and the center square is cropped.

    Args:
        path: Path of the file.
        size: Side of the result in pixels.
        value_range: The gray values that become 0 and 255, for gray images of more than 8 bits.

    Returns:
        ``(size, size, 3) uint8``.

    Raises:
        ValueError: If the file is not of a format in `FORMATS`, or cannot be decoded completely. The message is the
            reason.

    Example:
        >>> decode(Path("cat.jpg"), 64).shape      # doctest: +SKIP
        (64, 64, 3)
    """
    pixels = _decode(path, size, value_range).pixels
    assert isinstance(pixels, np.ndarray)
    return pixels


def decode_full(path: str | Path, value_range: ValueRange = FULL_RANGE) -> NDArray[np.uint8]:
    """Decode an image file to an RGB array at its own resolution, without a crop.

    Orientation, frames, transparency, color profiles and gray values are handled as in `decode`.

    Args:
        path: Path of the file.
        value_range: The gray values that become 0 and 255, for gray images of more than 8 bits.

    Returns:
        ``(H, W, 3) uint8``.

    Raises:
        ValueError: If the file is not of a format in `FORMATS`, or cannot be decoded completely. The message is the
            reason.

    Example:
        >>> decode_full(Path("cat.jpg")).shape     # doctest: +SKIP
        (375, 500, 3)
    """
    pixels = _decode(path, None, value_range).pixels
    assert isinstance(pixels, np.ndarray)
    return pixels


def _decode(path: str | Path, size: int | None, value_range: ValueRange | None) -> Decoded:
    """Decode a file to upright RGB; raise every error of Pillow as ``ValueError``."""
    try:
        with Path(path).open("rb") as file:
            opened = _open_image(file)
            with opened.image as image:
                loaded, is_complete = _load(opened)
                remark = None if is_complete else INCOMPLETE
                transposition = TRANSPOSITIONS.get(opened.orientation)
                upright = loaded if transposition is None else loaded.transpose(transposition)
                if upright.mode[0] in "IF":  # gray with more than 8 bits
                    is_16_bits = image.mode.startswith("I;16") or image.format == "PNG"
                    values = np.asarray(upright).astype(np.uint16) if is_16_bits else np.asarray(upright)
                    transparent = image.info.get("transparency")
                    if value_range is None:
                        return Decoded(summarize(values, transparent), remark)
                    if remark is None and (values.max() < value_range[0] or values.min() > value_range[1]):
                        remark = OUTSIDE
                    rgb = Image.fromarray(scale_to_bytes(values, value_range, transparent)).convert("RGB")
                else:
                    rgb = _to_rgb(upright)
                    if opened.is_narrowed and remark is None:
                        num_levels = np.count_nonzero(np.bincount(np.asarray(rgb).ravel(), minlength=256))
                        remark = NARROWED if num_levels >= FEW_LEVELS else NEARLY_FLAT
                return Decoded(np.asarray(rgb if size is None else _resize_center_square(rgb, size)), remark)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    except Exception as error:  # Pillow raises SyntaxError, struct.error, IndexError, ... on broken files
        raise ValueError(str(error) or type(error).__name__) from error


class _TiffImage(TiffImagePlugin.TiffImageFile):
    """TIFF file of which only the first page is read, and no metadata. Pillow would rewrite them as EXIF data."""

    def load_end(self) -> None:
        """Leave the image as it is stored."""


class _Opened(NamedTuple):
    """An image file whose pixels are not decoded yet.

    Attributes:
        image: The image.
        orientation: Its orientation, 1 to 8.
        is_narrowed: Whether Pillow reads 8 of the 16 bits of color images.
        stripped: The file without metadata; None for formats that Pillow reads itself.
    """

    image: ImageFile.ImageFile
    orientation: int
    is_narrowed: bool
    stripped: StrippedFile | None


def _open_image(file: IO[bytes]) -> _Opened:
    """Read the header of a file and check its number of pixels."""
    image_format = detect_format(file.read(HEADER_BYTES))
    stripped = {"PNG": read_png, "JPEG": read_jpeg}[image_format](file) if image_format in ("PNG", "JPEG") else None
    file.seek(0)
    source = file if stripped is None else io.BytesIO(stripped.content)
    if image_format == "AVIF" and ".avif" not in Image.registered_extensions():
        raise ValueError(f"an image must be {FORMAT_NAMES}, got AVIF, which needs Pillow 11.3 or later")
    try:
        image = _TiffImage(source) if image_format == "TIFF" else Image.open(source, formats=[image_format.upper()])
    except (OSError, SyntaxError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"the {image_format} header is corrupt") from error
    max_pixels = Image.MAX_IMAGE_PIXELS or math.inf
    if image.width * image.height > max_pixels:
        raise ValueError(f"an image must have at most {max_pixels:,} pixels, got {image.width} x {image.height}")
    orientation = stripped.orientation if stripped else 1
    if isinstance(image, _TiffImage):
        orientation = image.tag_v2.get(ORIENTATION_TAG, 1)
    elif image_format == "AVIF":
        orientation = exif_orientation(image.info.get("exif", b""))
    if getattr(image, "default_image", False):  # an image that is not part of the animation of its PNG file
        image.seek(1)
    is_narrowed = image_format in ("PNG", "TIFF") and any(";16" in str(tile[3]) for tile in image.tile)
    return _Opened(image, orientation, is_narrowed, stripped)


def _load(opened: _Opened) -> tuple[Image.Image, bool]:
    """Load an image; return it and whether its file is complete. Correct cases that Pillow decodes unlike browsers."""
    image = opened.image
    tiles = list(image.tile)
    if image.format == "JPEG" and opened.stripped and not opened.stripped.complete:
        return _load_incomplete_jpeg(opened.stripped.content), False
    with _suppress_libtiff_messages() if image.format == "TIFF" else nullcontext():
        image.load()
    if image.format == "PNG" and tiles[0][3] in PNG_GRAY_LEVELS and "transparency" in image.info:
        image.info["transparency"] *= PNG_GRAY_LEVELS[tiles[0][3]]
    if image.format == "GIF" and tiles[0][1] != (0, 0, *image.size):  # the first frame leaves a border free
        frame = image.convert("RGBA").crop(tiles[0][1])
        canvas = Image.new("RGBA", image.size)
        canvas.paste(frame, tiles[0][1])
        return canvas, True
    return image, opened.stripped is None or opened.stripped.complete


_stderr_lock = Lock()


@contextmanager
def _suppress_libtiff_messages() -> Iterator[None]:
    """Suppress the messages that libtiff writes to stderr about corrupt files. The exception is enough."""
    with _stderr_lock:
        try:
            stderr = os.dup(2)
        except OSError:  # closed
            yield
            return
        with open(os.devnull, "wb") as devnull:
            os.dup2(devnull.fileno(), 2)
            try:
                yield
            finally:
                os.dup2(stderr, 2)
                os.close(stderr)


def _load_incomplete_jpeg(content: bytes) -> Image.Image:
    """Load a JPEG file without its end, unless more than `MAX_MISSING_FRACTION` of its pixels are missing."""
    files = repaired_jpegs(content)
    if files is None:
        raise ValueError(TRUNCATED)
    image, other = (Image.open(io.BytesIO(repaired), formats=["JPEG"]) for repaired in files)
    difference = (np.asarray(image) != np.asarray(other)).reshape(image.height, image.width, -1).any(2)
    if difference.any():
        first = int(difference.any(1).argmax())
        num_missing = difference[first : first + BLOCK_SIDE].sum() + difference[first + BLOCK_SIDE :].size
        num_pixels = difference.size
        if num_missing > max(MAX_MISSING_FRACTION * num_pixels, min(BLOCK_SIDE**2, num_pixels / 3)):
            raise ValueError(TRUNCATED)
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB and blend its transparent pixels with white."""
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
            with _suppress_pillow_warnings(), Path(path).open("rb") as file, _open_image(file).image as image:
                sizes.add(image.size)
        except Exception:  # decode() reports the reason later
            continue
    if len(sizes) != 1:
        return None
    width, height = sizes.pop()
    return width if width == height <= MAX_COMMON_SIZE else None


def decode_rows(
    images: NDArray[np.uint8], rows: Sequence[int], paths: Sequence[str], value_range: ValueRange | None = FULL_RANGE
) -> DecodedRows:
    """Decode image files into rows of an array.

    Args:
        images: Output array, ``(N, size, size, 3) uint8``.
        rows: The row of each image.
        paths: Image files.
        value_range: The gray values that become 0 and 255, for gray images of more than 8 bits. None: these images are
            not decoded, but summarized.

    Returns:
        Errors, summaries and remarks. Rows with an error or a summary are left unchanged.
    """
    result = DecodedRows({}, {}, {})
    with _suppress_pillow_warnings():
        for row, path in zip(rows, paths, strict=True):
            try:
                pixels, remark = _decode(path, images.shape[1], value_range)
            except ValueError as error:
                result.errors[row] = str(error)
                continue
            if isinstance(pixels, ValueSummary):
                result.summaries[row] = pixels
            else:
                images[row] = pixels
            if remark:
                result.remarks[row] = remark
    return result


@contextmanager
def _suppress_pillow_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
