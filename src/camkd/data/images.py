"""Decode image files to RGB arrays."""

from __future__ import annotations

import hashlib
import io
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Lock
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin

from camkd.data.file_names import join_first
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
from camkd.types import PAD_VALUE, Preprocessing

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
NARROWED = "color images with 16 bits per channel were read with 8"
OUTSIDE = "images are mostly black or white, because more than half of their values are outside of the value range"
FEW_LEVELS = 32
NEARLY_FLAT = f"{NARROWED}, which leaves fewer than {FEW_LEVELS} of 256 levels; save them as 16-bit gray images"
NARROW_GRAY = (
    f"gray images of more than 8 bits were scaled to 8 bits, which leaves fewer than {FEW_LEVELS} of 256 levels; "
    "spread their values as those of the training images"
)

MAX_CLIPPED_FRACTION = 0.5
"""Fraction of the values of an image outside of the value range above which the image gets the remark `OUTSIDE`."""

MIN_LEVEL_RATIO = 2
"""Ratio of the gray levels before and after scaling from which an image of few levels gets `NARROW_GRAY`."""

BITS_TAG, COMPRESSION_TAG, PHOTOMETRIC_TAG, SAMPLE_FORMAT_TAG = 258, 259, 262, 339
"""Tags of TIFF: bits of each sample, compression, meaning of the values and number format."""

WHITE_IS_ZERO = 0
BLACK_IS_ZERO = 1

SAMPLE_FORMATS = {1: "integer", 2: "signed integer", 3: "float", 4: "untyped", 5: "complex integer", 6: "complex float"}
"""Number formats of the samples of TIFF."""


class Decoded(NamedTuple):
    """A decoded image file.

    Attributes:
        pixels: RGB, ``(H, W, 3) uint8``; or the `ValueSummary` of a gray image of more than 8 bits without value range.
        remarks: `INCOMPLETE`, and one of `OUTSIDE`, `NARROW_GRAY`, `NARROWED` and `NEARLY_FLAT`, as far as they apply.
        sha256: SHA-256 of the file, hexadecimal.
        size: Width and height of the upright image in pixels.
    """

    pixels: NDArray[np.uint8] | ValueSummary
    remarks: list[str]
    sha256: str
    size: tuple[int, int]


class DecodedRows(NamedTuple):
    """Results of `decode_rows` by row.

    Attributes:
        errors: The error message for each row whose file cannot be decoded.
        summaries: The gray values of each image that is summarized.
        remarks: The remarks on each image that has any, see `Decoded`.
        sha256_of: SHA-256 of the file of each decoded image, hexadecimal.
        sizes: Width and height of each decoded image file in pixels.
    """

    errors: dict[int, str]
    summaries: dict[int, ValueSummary]
    remarks: dict[int, list[str]]
    sha256_of: dict[int, str]
    sizes: dict[int, tuple[int, int]]

    @classmethod
    def empty(cls) -> DecodedRows:
        """Return the results of no row."""
        return cls({}, {}, {}, {}, {})

    def update(self, other: DecodedRows) -> None:
        """Add the results of other rows. A row that was summarized before stays in ``summaries``."""
        self.errors.update(other.errors)
        self.summaries.update(other.summaries)
        self.remarks.update(other.remarks)
        self.sha256_of.update(other.sha256_of)
        self.sizes.update(other.sizes)


def decode(path: str | Path, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Decode an image file to a square RGB array.

    The image is the one that browsers show, without color management: the EXIF orientation of JPEG, PNG and AVIF and
    that of TIFF is applied, the first frame or page is used, transparent pixels are blended with white, and color
    profiles are ignored. Gray images of more than 8 bits are scaled by a value range. The image is
    then resized, and cropped or padded to a square.

    Args:
        path: Path of the file.
        preprocessing: Size, fit, interpolation and value range.

    Returns:
        ``(size, size, 3) uint8``.

    Raises:
        ValueError: If the file is not of a format in `FORMATS`, or cannot be decoded completely. The message is the
            reason.

    Example:
        >>> decode(Path("cat.jpg"), Preprocessing(64)).shape      # doctest: +SKIP
        (64, 64, 3)
    """
    return decode_with_remarks(path, preprocessing)[0]


def decode_with_remarks(path: str | Path, preprocessing: Preprocessing) -> tuple[NDArray[np.uint8], list[str]]:
    """Decode an image file as `decode` does, with remarks on what was lost.

    Args:
        path: Path of the file.
        preprocessing: Size, fit, interpolation and value range.

    Returns:
        ``(size, size, 3) uint8`` and `Decoded.remarks`.

    Raises:
        ValueError: As `decode`.

    Example:
        >>> pixels, remarks = decode_with_remarks(Path("cat.jpg"), Preprocessing(64))      # doctest: +SKIP
    """
    decoded = _decode(path, preprocessing, preprocessing.value_range or FULL_RANGE)
    assert isinstance(decoded.pixels, np.ndarray)
    return decoded.pixels, decoded.remarks


def describe_remarks(remarks: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a note for each remark, with the number and the names of its images.

    Args:
        remarks: The remarks on each image by its name.

    Returns:
        The notes.

    Example:
        >>> describe_remarks({"a.jpg": [INCOMPLETE], "b.jpg": [INCOMPLETE]})
        ['2 images without the end of their file were read: a.jpg, b.jpg']
    """
    names: dict[str, list[str]] = {}
    for name, image_remarks in remarks.items():
        for remark in image_remarks:
            names.setdefault(remark, []).append(name)
    return [f"{len(images):,} {remark}: {join_first(images)}" for remark, images in names.items()]


def decode_full(path: str | Path, value_range: ValueRange | None = None) -> NDArray[np.uint8]:
    """Decode an image file to an RGB array at its own resolution, without crop and padding.

    Orientation, frames, transparency, color profiles and gray values are handled as in `decode`.

    Args:
        path: Path of the file.
        value_range: The gray values that become 0 and 255, for gray images of more than 8 bits. None: `FULL_RANGE`.

    Returns:
        ``(H, W, 3) uint8``.

    Raises:
        ValueError: If the file is not of a format in `FORMATS`, or cannot be decoded completely. The message is the
            reason.

    Example:
        >>> decode_full(Path("cat.jpg")).shape     # doctest: +SKIP
        (375, 500, 3)
    """
    pixels = _decode(path, None, value_range or FULL_RANGE).pixels
    assert isinstance(pixels, np.ndarray)
    return pixels


def _decode(path: str | Path, preprocessing: Preprocessing | None, value_range: ValueRange | None) -> Decoded:
    """Decode a file to upright RGB; raise every error of Pillow as ``ValueError``.

    Without a preprocessing, the image keeps its size. Without a value range, gray values are only summarized.
    """
    with _value_errors(), Path(path).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        opened = _open_image(file)
        with opened.image as image:
            loaded, is_complete = _load(opened)
            remarks = [] if is_complete else [INCOMPLETE]
            transposition = TRANSPOSITIONS.get(opened.orientation)
            upright = loaded if transposition is None else loaded.transpose(transposition)
            if upright.mode[0] in "IF":  # gray with more than 8 bits
                is_16_bits = image.mode.startswith("I;16") or image.format == "PNG"
                values = np.asarray(upright).astype(np.uint16) if is_16_bits else np.asarray(upright)
                if isinstance(image, _TiffImage) and image.is_inverted:
                    values = _invert(values, image.tag_v2[BITS_TAG][0])
                transparent = image.info.get("transparency")
                if value_range is None:
                    return Decoded(summarize(values, transparent), remarks, sha256, upright.size)
                pixels = scale_to_bytes(values, value_range, transparent)
                visible = np.ones(values.shape, bool) if transparent is None else values != transparent
                remarks += _remarks_on_scaling(values[visible], pixels[visible], value_range)
                rgb = Image.fromarray(pixels).convert("RGB")
            else:
                rgb = _to_rgb(upright)
                if opened.is_narrowed:
                    remarks.append(NARROWED if _num_levels(np.asarray(rgb)) >= FEW_LEVELS else NEARLY_FLAT)
            square = _to_square(rgb, preprocessing) if preprocessing else rgb
            return Decoded(np.asarray(square), remarks, sha256, rgb.size)


@contextmanager
def _value_errors() -> Iterator[None]:
    """Raise every error of Pillow and of the operating system as ``ValueError``."""
    try:
        yield
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    except Exception as error:  # Pillow raises SyntaxError, struct.error, IndexError, ... on broken files
        raise ValueError(str(error) or type(error).__name__) from error


def decode_mask(path: str | Path, image_path: str | Path, preprocessing: Preprocessing) -> NDArray[np.bool_]:
    """Decode the object mask of an image, with the geometry of the image.

    The object is where the mask is not black and not transparent. In formats whose black is not exact (JPEG, WebP,
    AVIF), it is where the mask is brighter than half of its largest value. A pixel of the result is on the object if
    half of its area or more is. An enlarged mask keeps its edges.

    Args:
        path: Image file of the mask. It may have another resolution than the image, but must have its proportions.
        image_path: Image file of the image.
        preprocessing: Size and fit of the image.

    Returns:
        ``(size, size) bool``, False on padding.

    Raises:
        ValueError: If a file cannot be decoded, or the proportions differ. The message is the reason.

    Example:
        >>> decode_mask(Path("masks/cat.png"), Path("cat.jpg"), Preprocessing(64)).shape      # doctest: +SKIP
        (64, 64)
    """
    with _value_errors():
        with Path(image_path).open("rb") as file:
            opened = _open_image(file)
            with opened.image as image:
                width, height = image.size if opened.orientation < 5 else image.size[::-1]
        with Path(path).open("rb") as file:
            opened = _open_image(file)
            with opened.image as image:
                loaded = _load(opened)[0]
                transposition = TRANSPOSITIONS.get(opened.orientation)
                upright = loaded if transposition is None else loaded.transpose(transposition)
                is_object = _find_object(upright, image.format)
        mask_height, mask_width = is_object.shape
        scale_x, scale_y = mask_width / width, mask_height / height
        if min(abs(mask_height - height * scale_x), abs(mask_width - width * scale_y)) > 1:
            raise ValueError(
                f"the mask must have the proportions of its image, {width} x {height}, got {mask_width} x {mask_height}"
            )
        (left, top, right, bottom), target = place(width, height, preprocessing)
        rows = np.linspace(top * scale_y, bottom * scale_y, target[3] - target[1] + 1)
        columns = np.linspace(left * scale_x, right * scale_x, target[2] - target[0] + 1)
        area = _integrate(_integrate(is_object, rows).T, columns).T
        coverage = area / ((rows[1] - rows[0]) * (columns[1] - columns[0]))
        mask = np.zeros((preprocessing.size, preprocessing.size), np.bool_)
        mask[target[1] : target[3], target[0] : target[2]] = coverage > 0.5 - 1e-9
        return mask


def _integrate(values: NDArray[Any], borders: NDArray[np.float64]) -> NDArray[np.float64]:
    """Integrate ``values (N, M)``, constant in each row, between consecutive ``borders`` in 0..N."""
    kind = np.int32 if values.dtype == np.bool_ else np.float64
    sums = np.concatenate([np.zeros((1, values.shape[1]), kind), np.cumsum(values, 0, dtype=kind)])
    index = np.minimum(borders.astype(np.int64), len(values) - 1)
    result: NDArray[np.float64] = np.diff(sums[index] + (borders - index)[:, None] * values[index], axis=0)
    return result


def _find_object(image: Image.Image, image_format: str | None) -> NDArray[np.bool_]:
    """Return where a mask is not black and not transparent."""
    if image.mode[0] in "IF":
        is_object: NDArray[np.bool_] = np.asarray(image) != 0
        return is_object
    rgba = np.asarray(image.convert("RGBA"))
    brightness = rgba[..., :3].max(2)
    threshold = brightness.max() / 2 if image_format in ("JPEG", "WEBP", "AVIF") else 0
    is_object = (brightness > threshold) & (rgba[..., 3] > 0)
    return is_object


def _remarks_on_scaling(values: NDArray[Any], pixels: NDArray[np.uint8], value_range: ValueRange) -> list[str]:
    """Return `OUTSIDE` if most of the visible values were clipped, or `NARROW_GRAY` if few gray levels are left."""
    num_clipped = np.count_nonzero(values < value_range[0]) + np.count_nonzero(values > value_range[1])
    if num_clipped > MAX_CLIPPED_FRACTION * values.size:
        return [OUTSIDE]
    num_levels = _num_levels(pixels)
    has_lost_levels = 0 < num_levels < FEW_LEVELS and len(np.unique(values)) >= MIN_LEVEL_RATIO * num_levels
    return [NARROW_GRAY] if has_lost_levels else []


def _num_levels(pixels: NDArray[np.uint8]) -> int:
    return int(np.count_nonzero(np.bincount(pixels.ravel(), minlength=256)))


def _invert(values: NDArray[Any], num_bits: int) -> NDArray[Any]:
    """Invert integers whose zero is white. For floats, the value of white is undefined, and they stay as they are."""
    if values.dtype == np.uint16:
        return np.uint16((1 << num_bits) - 1) - values
    return values if values.dtype.kind == "f" else ~values


class _TiffImage(TiffImagePlugin.TiffImageFile):
    """TIFF file of which only the first page is read, and no metadata. Pillow would rewrite them as EXIF data.

    Attributes:
        is_inverted: Whether the values are gray with more than 8 bits, and zero is white. Pillow does not invert them.
    """

    is_inverted: bool

    def _setup(self) -> None:
        bits = self.tag_v2.get(BITS_TAG, (1,))
        self.is_inverted = self.tag_v2.get(PHOTOMETRIC_TAG) == WHITE_IS_ZERO and bits[0] > 8
        if self.is_inverted:
            self.tag_v2[PHOTOMETRIC_TAG] = BLACK_IS_ZERO  # Pillow reads few kinds of the other
        try:
            super()._setup()
        except (OSError, SyntaxError, KeyError) as error:
            content = self._describe_content(bits)
            if content is None:
                raise
            raise ValueError(content) from error

    def _describe_content(self, bits: tuple[int, ...]) -> str | None:
        """Return the reason why a file with an intact header cannot be read, or None if the header is corrupt."""
        compression = self.tag_v2.get(COMPRESSION_TAG, 1)
        if compression not in TiffImagePlugin.COMPRESSION_INFO:
            return f"TIFF with compression {compression} cannot be read; save it without compression"
        sample_format = SAMPLE_FORMATS.get(self.tag_v2.get(SAMPLE_FORMAT_TAG, (1,))[0])
        if not self.width or not self.height or sample_format is None or not 1 <= min(bits) <= max(bits) <= 128:
            return None
        kind = f"{bits[0]}-bit {sample_format} samples"
        if len(bits) > 1:
            kind = f"{len(bits)} {kind} per pixel"
        return f"TIFF with {kind} cannot be read; save it with 8 or 16 bits"

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


class Placement(NamedTuple):
    """Position of an image in the square input of a network.

    Attributes:
        box: Left, top, right and bottom of the part of the image that is used, in pixels of the image.
        target: Left, top, right and bottom of this part in the input, in whole pixels of the input.
    """

    box: tuple[float, float, float, float]
    target: tuple[int, int, int, int]


def place(width: int, height: int, preprocessing: Preprocessing) -> Placement:
    """Compute the position of an image in the square input of a network.

    Args:
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        preprocessing: Size and fit.

    Returns:
        The used part of the image, and its position in the input. With ``pad`` these are those of `PIL.ImageOps.pad`.

    Example:
        >>> place(300, 100, Preprocessing(64))
        Placement(box=(100.0, 0.0, 200.0, 100.0), target=(0, 0, 64, 64))
        >>> place(300, 100, Preprocessing(64, "pad"))
        Placement(box=(0, 0, 300, 100), target=(0, 22, 64, 43))
    """
    size = preprocessing.size
    if preprocessing.fit == "crop":
        side = min(width, height)
        left = (width - side) / 2
        top = (height - side) / 2
        return Placement((left, top, left + side, top + side), (0, 0, size, size))
    target_width = size if width >= height else max(1, round(width / height * size))
    target_height = size if height >= width else max(1, round(height / width * size))
    left = round((size - target_width) / 2)
    top = round((size - target_height) / 2)
    return Placement((0, 0, width, height), (left, top, left + target_width, top + target_height))


def _to_square(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Resize an image, and crop or pad it to a square."""
    size = preprocessing.size
    if image.size == (size, size):
        return image
    box, target = place(image.width, image.height, preprocessing)
    resample = Image.Resampling[preprocessing.interpolation.upper()]
    resized = _resize(image, box, (target[2] - target[0], target[3] - target[1]), resample)
    if resized.size == (size, size):
        return resized
    square = Image.new("RGB", (size, size), (PAD_VALUE,) * 3)
    square.paste(resized, target[:2])
    return square


def _resize(
    image: Image.Image, box: tuple[float, float, float, float], size: tuple[int, int], resample: Image.Resampling
) -> Image.Image:
    """Resize a part of an image, columns first. Pillow's own order of the two passes depends on its version."""
    left, top, right, bottom = box
    margin = math.ceil(2 * max((bottom - top) / size[1], 1)) + 1  # rows beyond the box that the filter reads
    first = max(math.floor(top) - margin, 0)
    last = min(math.ceil(bottom) + margin, image.height)
    rows = image if last - first == image.height else image.crop((0, first, image.width, last))
    narrow = rows.resize((size[0], rows.height), resample, (left, 0, right, rows.height))
    return narrow.resize(size, resample, (0, top - first, size[0], bottom - first))


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
    images: NDArray[np.uint8],
    rows: Sequence[int],
    paths: Sequence[str],
    preprocessing: Preprocessing,
    *,
    summarize_gray: bool = False,
) -> DecodedRows:
    """Decode image files into rows of an array.

    Args:
        images: Output array, ``(N, size, size, 3) uint8``.
        rows: The row of each image.
        paths: Image files.
        preprocessing: Size, fit, interpolation and value range.
        summarize_gray: Whether gray images of more than 8 bits are not decoded, but summarized.

    Returns:
        Errors, summaries, remarks, checksums and sizes. Rows with an error or a summary are left unchanged.
    """
    result = DecodedRows.empty()
    value_range = None if summarize_gray else preprocessing.value_range or FULL_RANGE
    with _suppress_pillow_warnings():
        for row, path in zip(rows, paths, strict=True):
            try:
                decoded = _decode(path, preprocessing, value_range)
            except ValueError as error:
                result.errors[row] = str(error)
                continue
            if isinstance(decoded.pixels, ValueSummary):
                result.summaries[row] = decoded.pixels
            else:
                images[row] = decoded.pixels
                result.sha256_of[row] = decoded.sha256
                result.sizes[row] = decoded.size
            if decoded.remarks:
                result.remarks[row] = decoded.remarks
    return result


@contextmanager
def _suppress_pillow_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
