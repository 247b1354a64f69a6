"""Formats of image files: detection by content, and the parts of a file that affect its pixels.

PNG and JPEG files are passed to the decoder without metadata, so that no text, profile or EXIF tag makes an image
unreadable. Only the orientation is read.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import IO, NamedTuple

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif"}
)
"""Suffixes of the files that are images, in lower case."""

FORMATS = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WebP": rb"RIFF.{4}WEBP",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "AVIF": rb".{4}ftyp.*avi[fs]",
}
"""Formats that are decoded, independent of the file's suffix: a regular expression of the first `HEADER_BYTES` bytes.

The web page decodes the same formats except TIFF (``export/web/static/images.js``). HEIC is excluded, as neither Pillow
nor most browsers decode it. EPS is excluded, as its decoder runs another program. Pillow and browsers decode
transparent and animated AVIF to slightly different colors.
"""

FORMAT_NAMES = "JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF"

OTHER_CONTENT = {
    "HEIC": rb".{4}ftyp.*(hei[cmsx]|hev[cmsx]|mif1|msf1)",
    "a video": rb".{4}ftyp|RIFF.{4}AVI |\x1a\x45\xdf\xa3",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "ICO": rb"\0\0[\x01\x02]\0",
    "Photoshop": rb"8BPS",
    "DICOM": rb".{128}DICM",
    "PDF": rb"%PDF",
    "an archive": rb"PK\x03\x04|\x1f\x8b|Rar!|7z\xbc\xaf",
    "only zero bytes": rb"\0+$",
    "a Git LFS pointer": rb"version https?://(git-lfs|hawser\.github|git-media)\.",
    "a git-annex pointer": rb"[^\r\n]*[/\\](annex[/\\]objects|\.git[/\\]annex)[/\\]|\.git[/\\]annex[/\\]",
    "an HTML page": rb"\s*<([hH][tT][mM][lL]|!(doctype|DOCTYPE) (html|HTML)|head|body)",
    "SVG": rb".*<svg",
    "a text file": rb"[\t\n\r\x20-\x7e\x80-\xff]+$",
}
"""Rejected content by its name in the error message: a regular expression of the first `HEADER_BYTES` bytes.

``export/web/static/images.js`` has the same table.
"""

HEADER_BYTES = 256

ORIENTATION_TAG = 0x0112
"""EXIF and TIFF tag of the orientation, 1 to 8."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_CRITICAL_CHUNKS = (b"IHDR", b"PLTE", b"IDAT")
PNG_PIXEL_CHUNKS = (b"tRNS", b"acTL", b"fcTL", b"fdAT")
"""Ancillary chunks of PNG that affect the pixels. The others are text, color profiles and other metadata."""

PNG_END = b"\0\0\0\0IEND\xae\x42\x60\x82"

JPEG_END = b"\xff\xd9"
JPEG_START_OF_SCAN = 0xDA
JPEG_STANDALONE = {0x01, *range(0xD0, 0xD9)}
"""Markers without content."""
JPEG_METADATA = {*range(0xE0, 0xFF)}
"""Application segments, reserved segments and comments."""
JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
"""Markers of the image size and the components."""
JPEG_MARKER = re.compile(rb"\xff[^\0\xff\x01\xd0-\xd8]")
"""A marker with content, within pixels or between segments."""
JPEG_UNKNOWN = 16
"""Number of missing bits of a coefficient that no scan contains."""
JPEG_OTHER_PIXELS = bytes(range(1, 250, 7))
"""Arbitrary data in place of missing pixels, repeated."""

TRUNCATED = "image file is truncated"


class StrippedFile(NamedTuple):
    """An image file without metadata.

    Attributes:
        content: The file.
        orientation: The EXIF orientation, 1 to 8.
        complete: Whether the end of the file is present.
    """

    content: bytes
    orientation: int
    complete: bool


def detect_format(header: bytes) -> str:
    """Return the format of an image file.

    Args:
        header: The first `HEADER_BYTES` bytes of the file, or the whole file if it is shorter.

    Returns:
        A name in `FORMATS`.

    Raises:
        ValueError: If the file has none of these formats. The message names the content.

    Example:
        >>> detect_format(b"GIF89a...")
        'GIF'
    """
    if not header:
        raise ValueError("the file is empty (0 bytes)")
    for name, pattern in FORMATS.items():
        if re.match(pattern, header, re.DOTALL):
            return name
    other = (name for name, pattern in OTHER_CONTENT.items() if re.match(pattern, header, re.DOTALL))
    raise ValueError(f"an image must be {FORMAT_NAMES}, got {next(other, 'a corrupt or unknown header')}")


def read_png(file: IO[bytes]) -> StrippedFile:
    """Read the chunks of a PNG file that affect its pixels.

    As in browsers, the checksums of critical chunks must be correct, and an ancillary chunk with a wrong checksum is
    ignored. EXIF data after the pixels are ignored. The chunk that ends the file may be missing.

    Args:
        file: The file.

    Returns:
        The file without metadata.

    Raises:
        ValueError: If another chunk is cut off, or if the checksum of a critical chunk is wrong.
    """
    file.seek(len(PNG_SIGNATURE))
    parts = [PNG_SIGNATURE]
    exif = b""
    has_pixels = False
    while True:
        head = file.read(8)
        kind = head[4:]
        if len(head) < 8 or kind == b"IEND":
            break
        (length,) = struct.unpack(">I", head[:4])
        is_critical = kind[:1].isupper()
        if not is_critical and kind not in PNG_PIXEL_CHUNKS and (kind != b"eXIf" or has_pixels):
            file.seek(length + 4, 1)
            continue
        content = file.read(length)
        checksum = file.read(4)
        if len(checksum) < 4:
            raise ValueError(TRUNCATED)
        if is_critical and kind not in PNG_CRITICAL_CHUNKS:
            raise ValueError(f"the PNG chunk {kind.decode('latin-1')} is unknown")
        if zlib.crc32(kind + content).to_bytes(4, "big") != checksum:
            if is_critical:
                raise ValueError(f"the checksum of the PNG chunk {kind.decode('latin-1')} is wrong")
        elif kind == b"eXIf":
            exif = exif or content
        else:
            parts.append(head + content + checksum)
            has_pixels |= kind == b"IDAT"
    if not has_pixels:
        raise ValueError(TRUNCATED)
    return StrippedFile(b"".join([*parts, PNG_END]), exif_orientation(exif), kind == b"IEND" and len(file.read(4)) == 4)


def read_jpeg(file: IO[bytes]) -> StrippedFile:
    """Read the segments of a JPEG file that affect its pixels. Only the first image of several is read.

    Args:
        file: The file.

    Returns:
        The file without metadata. The end of the file is missing if `repaired_jpegs` is needed.

    Raises:
        ValueError: If the file ends before the pixels.
    """
    file.seek(2)
    parts = [b"\xff\xd8"]
    exif = b""
    for marker in _jpeg_markers(file):
        if marker in JPEG_STANDALONE:
            continue
        length = file.read(2)
        content = file.read(max(int.from_bytes(length, "big") - 2, 0))
        if len(content) + 2 < int.from_bytes(length, "big"):
            break
        if marker == 0xE1 and content.startswith(b"Exif\0\0"):
            exif = exif or content[6:]
        is_jfif = marker == 0xE0 and content.startswith(b"JFIF\0") and len(content) >= 14
        is_adobe = marker == 0xEE and content.startswith(b"Adobe") and len(content) >= 12
        if marker not in JPEG_METADATA or is_jfif or is_adobe:  # these two determine the color space
            parts.append(b"\xff" + bytes([marker]) + length + content)
        if marker == JPEG_START_OF_SCAN:
            parts.append(file.read())
            return StrippedFile(b"".join(parts), exif_orientation(exif), JPEG_END in parts[-1])
    raise ValueError(TRUNCATED)


def _jpeg_markers(file: IO[bytes]) -> Iterator[int]:
    """Yield the next marker after the position of the file, until the end. Bytes between segments are skipped."""
    previous = b""
    while byte := file.read(1):
        if previous == b"\xff" and byte not in (b"\xff", b"\0"):
            yield byte[0]
            byte = b""
        previous = byte


def repaired_jpegs(content: bytes) -> tuple[bytes, bytes] | None:
    """Add the end to a JPEG file, in two ways that differ only in the pixels that are missing.

    Args:
        content: A file without its end, from `read_jpeg`.

    Returns:
        Two complete files. The decoder fills the missing pixels of the first one. None if whole scans are missing.
    """
    precision: dict[int, list[int]] = {}  # number of missing bits of each coefficient of each component
    height = width = 0
    position = 2
    try:
        while match := JPEG_MARKER.search(content, position):
            marker = match[0][1]
            position = match.end()
            (length,) = struct.unpack_from(">H", content, position)
            segment = content[position + 2 : position + length]
            if marker in JPEG_FRAMES:
                height, width = struct.unpack_from(">HH", segment, 1)
                precision = {segment[6 + 3 * index]: [JPEG_UNKNOWN] * 64 for index in range(segment[5])}
            elif marker == JPEG_START_OF_SCAN:
                first, last, bits = segment[1 + 2 * segment[0] :][:3]
                for index in range(segment[0]):
                    precision[segment[1 + 2 * index]][first : last + 1] = [bits & 15] * (last + 1 - first)
            position += length
    except (struct.error, IndexError, KeyError, ValueError):
        return None
    if not precision or any(map(any, precision.values())) or position > len(content):
        return None
    body = content.removesuffix(b"\xff")
    return body + JPEG_END, body + JPEG_OTHER_PIXELS * (width * height // 64 + 1) + JPEG_END


def exif_orientation(exif: bytes) -> int:
    """Return the orientation of EXIF data, 1 to 8; 1 for EXIF data without orientation or with errors."""
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
