"""Image files as bytes: every format, orientation, color type and profile, with and without damage."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

Pixels = NDArray[np.uint8]

UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: stored.transpose(1, 0, 2)[:, ::-1],
    7: lambda stored: stored.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda stored: stored.transpose(1, 0, 2)[::-1],
}
"""The image that a viewer shows for stored pixels of each EXIF orientation, from the EXIF specification."""

ORIENTATION_TAG = 0x0112
OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "PNG": {},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 90},
    "TIFF": {},
}


def photo(width: int = 48, height: int = 40, channels: int = 3, seed: int = 0) -> Pixels:
    """Smooth random pixels with edges and fine texture, ``(height, width, channels)``."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, channels), np.uint8).squeeze())
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).reshape(height, width, channels)
    noise = rng.integers(-25, 26, (height, width, 1))
    edge = 60 * (np.arange(width) // 11 % 2)[None, :, None]
    return (pixels.astype(int) + noise - edge).clip(0, 255).astype(np.uint8)


def encode(image: Image.Image, image_format: str, **options: Any) -> bytes:
    """Return an image file."""
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


# --- orientation


def tiff_header(orientation: int) -> bytes:
    """Return EXIF data with an orientation only, little-endian."""
    return b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHIHH", ORIENTATION_TAG, 3, 1, orientation, 0) + bytes(4)


def xmp(orientation: int) -> bytes:
    """Return XMP data with an orientation only."""
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" '
        f'tiff:Orientation="{orientation}"/></rdf:RDF></x:xmpmeta>'
    ).encode()


def oriented(pixels: Pixels, image_format: str, orientation: int, carrier: str = "exif") -> bytes:
    """Return a file with an orientation in its EXIF data or only in its XMP data."""
    options = dict(OPTIONS[image_format])
    if carrier == "exif":
        options["exif"] = b"Exif\0\0" + tiff_header(orientation)
    elif image_format == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp(orientation).decode())
    elif image_format == "JPEG":
        content = b"http://ns.adobe.com/xap/1.0/\0" + xmp(orientation)
        segment = b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content
        jpeg = encode(Image.fromarray(pixels), "JPEG", **options)
        return jpeg[:2] + segment + jpeg[2:]
    else:
        options["xmp"] = xmp(orientation)
    return encode(Image.fromarray(pixels), image_format, **options)


# --- PNG and GIF files that Pillow does not write


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(values: NDArray[Any], bits: int, *chunks: bytes) -> bytes:
    """Return a PNG file of raw samples, with additional chunks before the pixels.

    Args:
        values: ``(H, W)`` gray, ``(H, W, 2)`` gray and alpha, ``(H, W, 3)`` RGB or ``(H, W, 4)`` RGBA.
        bits: Bits per sample: 1, 2 or 4 for gray, 8, or 16.
        chunks: Chunks, from `png_chunk`.
    """
    samples = values.reshape(*values.shape[:2], -1)
    height, width, channels = samples.shape
    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in samples]
    elif bits == 8:
        rows = [row.astype(np.uint8).tobytes() for row in samples]
    else:
        as_bits = np.unpackbits(samples.astype(np.uint8), axis=2)[..., -bits:].reshape(height, -1)
        rows = [row.tobytes() for row in np.packbits(as_bits, axis=1)]
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [png_chunk(b"IHDR", header), *chunks, png_chunk(b"IDAT", pixels), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def gif_with_border() -> bytes:
    """Return a GIF of 40 x 30 pixels, whose only frame is the red square of 8 x 8 pixels at (16, 11)."""
    codes = [code for _ in range(32) for code in (4, 0, 0)] + [5]  # clear, two pixels; end. All codes have 3 bits.
    bits = np.concatenate([[code >> k & 1 for k in range(3)] for code in codes])
    data = np.packbits(bits.astype(np.uint8), bitorder="little").tobytes()
    palette = bytes([255, 0, 0, 0, 0, 255, 0, 255, 0, 0, 0, 0])
    screen = struct.pack("<HHBBB", 40, 30, 0x91, 1, 0)  # the background is blue, which browsers ignore
    frame = b"\x2c" + struct.pack("<HHHHB", 16, 11, 8, 8, 0) + b"\x02" + bytes([len(data)]) + data + b"\0"
    return b"GIF89a" + screen + palette + frame + b";"


# --- color profiles


def rgb_profile(primaries: Sequence[tuple[float, float, float]], gamma: float = 2.2) -> bytes:
    """Return an ICC profile of an RGB color space with these primaries, as XYZ under D50."""

    def fixed(*numbers: float) -> bytes:
        return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)

    def xyz(color: Sequence[float]) -> bytes:
        return b"XYZ \0\0\0\0" + fixed(*color)

    white = (0.9642, 1, 0.8249)
    curve = b"curv\0\0\0\0\0\0\0\1" + struct.pack(">H", round(gamma * 256)) + b"\0\0"
    description = (b"desc\0\0\0\0\0\0\0\5test" + bytes(80)).ljust(96, b"\0")
    tags = {b"desc": description, b"cprt": b"text\0\0\0\0none", b"wtpt": xyz(white)}
    for name, primary in zip((b"r", b"g", b"b"), primaries, strict=True):
        tags |= {name + b"XYZ": xyz(primary), name + b"TRC": curve}
    start = 128 + 4 + 12 * len(tags)
    table = struct.pack(">I", len(tags))
    body = b""
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content
    head = struct.pack(">I4sI", start + len(body), b"none", 0x02400000) + b"mntrRGB XYZ " + bytes(12) + b"acsp"
    return head.ljust(68, b"\0") + fixed(*white).ljust(60, b"\0") + table + body


DISPLAY_P3 = rgb_profile([(0.5151, 0.2412, -0.0011), (0.292, 0.6923, 0.0419), (0.1571, 0.0666, 0.7841)])
"""Profile of the photos of many phones."""


# --- collections


def readable_files() -> dict[str, bytes]:
    """Return files that Python and the exported web page read, by description."""
    pixels = photo()
    rgb = Image.fromarray(pixels)
    alpha = np.linspace(0, 255, pixels.shape[0] * pixels.shape[1]).reshape(pixels.shape[:2]).astype(np.uint8)
    rgba = Image.fromarray(np.dstack([pixels, alpha]))
    inverted = Image.fromarray(255 - pixels)
    cmyk = np.asarray(rgb.convert("CMYK")).copy()
    cmyk[..., 3] = alpha
    samples = np.random.default_rng(1).integers(0, 65536, (40, 48, 4)).astype(np.uint16)
    cut_out = Image.new("RGBA", rgb.size)
    cut_out.paste(rgb.crop((0, 0, 20, 20)), (9, 9))
    animated = {"save_all": True, "append_images": [inverted]}
    files = {
        "JPEG": encode(rgb, "JPEG", quality=90),
        "JPEG without chroma subsampling": encode(rgb, "JPEG", quality=90, subsampling=0),
        "JPEG 4:2:2": encode(rgb, "JPEG", quality=90, subsampling=1),
        "progressive JPEG": encode(rgb, "JPEG", quality=90, progressive=True),
        "gray JPEG": encode(rgb.convert("L"), "JPEG", quality=90),
        "CMYK JPEG": encode(Image.fromarray(cmyk, "CMYK"), "JPEG", quality=95),
        "JPEG stored as RGB": encode(rgb, "JPEG", quality=90, keep_rgb=True),
        "JPEG with Display P3": encode(rgb, "JPEG", quality=90, icc_profile=DISPLAY_P3),
        "JPEG with two pictures": encode(rgb, "MPO", quality=90, **animated),
        "JPEG with bytes after its end": encode(rgb, "JPEG", quality=90) + b"more" * 50,
        "PNG": encode(rgb, "PNG"),
        "RGBA PNG": encode(rgba, "PNG"),
        "gray PNG with alpha": encode(rgba.convert("LA"), "PNG"),
        "PNG with palette": encode(rgb.quantize(64), "PNG"),
        "PNG with transparent palette": encode(rgb.quantize(64), "PNG", transparency=bytes(range(0, 256, 4))),
        "PNG with a transparent color": encode(rgb, "PNG", transparency=tuple(pixels[3, 4].tolist())),
        "PNG with Display P3": encode(rgb, "PNG", icc_profile=DISPLAY_P3),
        "PNG with linear gamma": png(pixels, 8, png_chunk(b"gAMA", struct.pack(">I", 100_000))),
        "PNG with PQ transfer": png(pixels, 8, png_chunk(b"cICP", bytes([9, 16, 0, 1]))),
        "16-bit RGB PNG": png(samples[..., :3], 16),
        "16-bit RGBA PNG": png(samples, 16),
        "16-bit gray PNG": png(samples[..., 0], 16),
        "16-bit gray PNG with a transparent value": png(
            samples[..., 0] >> 14 << 14, 16, png_chunk(b"tRNS", struct.pack(">H", 1 << 14))
        ),
        "16-bit gray PNG with alpha": png(samples[..., :2], 16),
        "PNG with bytes after its end": encode(rgb, "PNG") + b"more" * 50,
        "animated PNG": encode(rgb, "PNG", **animated),
        "animated PNG with another still image": encode(rgb, "PNG", default_image=True, **animated),
        "WebP": encode(rgb, "WEBP", quality=90),
        "lossless WebP": encode(rgb, "WEBP", lossless=True),
        "RGBA WebP": encode(rgba, "WEBP", lossless=True),
        "WebP with Display P3": encode(rgb, "WEBP", lossless=True, icc_profile=DISPLAY_P3),
        "animated WebP": encode(cut_out, "WEBP", lossless=True, background=(255, 0, 0, 255), **animated),
        "GIF": encode(rgb.quantize(200), "GIF"),
        "transparent GIF": encode(cut_out, "GIF"),
        "animated GIF": encode(rgb.quantize(99), "GIF", save_all=True, append_images=[inverted.quantize(99)]),
        "GIF with a border": gif_with_border(),
        "BMP": encode(rgb, "BMP"),
        "gray BMP": encode(rgb.convert("L"), "BMP"),
        "BMP with palette": encode(rgb.quantize(64), "BMP"),
        "one pixel": encode(rgb.resize((1, 1)), "PNG"),
        "narrow": encode(rgb.resize((2, 300)), "PNG"),
        "EXIF of an unknown kind": encode(rgb, "JPEG", quality=90, exif=b"Exif\0\0nonsense"),
        "EXIF with a wrong offset": encode(rgb, "JPEG", quality=90, exif=b"Exif\0\0II*\0\xff\xff\0\0" + bytes(9)),
        "PNG with EXIF after the pixels": encode(rgb, "PNG")[:-12]
        + png_chunk(b"eXIf", tiff_header(6))
        + png_chunk(b"IEND", b""),
    }
    for bits in (1, 2, 4):
        values = pixels[..., 0] >> (8 - bits)
        files[f"{bits}-bit gray PNG with a transparent value"] = png(
            values, bits, png_chunk(b"tRNS", struct.pack(">H", int(values[5, 5])))
        )
    return files


def corrupt_files() -> dict[str, bytes]:
    """Return files of a known format that neither Python nor the exported web page reads, by description."""
    rgb = Image.fromarray(photo())
    whole = {name: encode(rgb, name) for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP")}
    progressive = encode(rgb, "JPEG", progressive=True)
    files = {f"half of a {name} file": content[: len(content) // 2] for name, content in whole.items()}
    broken_data = bytearray(whole["PNG"])
    broken_data[-14] ^= 1  # the checksum of the pixels
    return files | {
        "half of a progressive JPEG file": progressive[: len(progressive) // 2],
        "PNG without checksum and end": whole["PNG"][:-16],
        "PNG with a wrong checksum": bytes(broken_data),
        "JPEG header only": whole["JPEG"][:20],
        "PNG header only": whole["PNG"][:33],
    }


def incomplete_files() -> dict[str, bytes]:
    """Return files without their last bytes that viewers, Python and the exported web page read, by description."""
    rgb = Image.fromarray(photo())
    jpeg, progressive = (encode(rgb, "JPEG", quality=90, progressive=progressive) for progressive in (False, True))
    thumbnail = encode(rgb, "JPEG", quality=90, exif=b"Exif\0\0\xff\xd9")  # as the end of a thumbnail
    return {
        "JPEG without its last byte": jpeg[:-1],
        "JPEG without its end": jpeg[:-2],
        "JPEG without its last 6 bytes": jpeg[:-6],
        "progressive JPEG without its end": progressive[:-2],
        "JPEG without its end and with a thumbnail": thumbnail[:-2],
        "PNG without its end": encode(rgb, "PNG")[:-12],
    }


def files_with_broken_metadata() -> dict[str, bytes]:
    """Return files that show `photo`, with metadata that are broken or too large for Pillow, by description."""
    pixels = photo()
    rgb = Image.fromarray(pixels)
    jpeg = encode(rgb, "JPEG", quality=90)
    bomb = zlib.compress(bytes(100_000_000))
    wrong_checksum = bytearray(png(pixels, 8, png_chunk(b"tEXt", b"a\0text")))
    wrong_checksum[wrong_checksum.index(b"tEXt") + 6] ^= 1

    def with_segment(marker: int, content: bytes, count: int = 1) -> bytes:
        segment = bytes([255, marker]) + struct.pack(">H", len(content) + 2) + content
        return jpeg[:2] + count * segment + jpeg[2:]

    # a resolution that is text, an offset beyond the end, and an unknown type
    entries = [(0x11A, 2, 4, b"abc\0"), (0x8769, 4, 1, b"\xff\xff\xff\x7f"), (0x9286, 200, 1, b"\1\2\3\4")]
    directory = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + directory + bytes(4)
    return {
        "PNG with 3 MB of text": png(pixels, 8, png_chunk(b"tEXt", b"a\0" + b"x" * 3_000_000)),
        "PNG with 100 MB of compressed text": png(pixels, 8, png_chunk(b"zTXt", b"a\0\0" + bomb)),
        "PNG with 3 MB of XMP": png(pixels, 8, png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"x" * 3_000_000)),
        "PNG with a profile of 100 MB": png(pixels, 8, png_chunk(b"iCCP", b"a\0\0" + bomb)),
        "PNG with a broken profile": png(pixels, 8, png_chunk(b"iCCP", b"broken")),
        "PNG with a broken time": png(pixels, 8, png_chunk(b"tIME", b"1")),
        "PNG with a wrong checksum of its text": bytes(wrong_checksum),
        "JPEG with strange EXIF tags": with_segment(0xE1, exif),
        "JPEG with 2 MB of EXIF": with_segment(0xE1, b"Exif\0\0" + bytes(65_000), 32),
        "JPEG with a broken profile": with_segment(0xE2, b"ICC_PROFILE\0\5\2abc"),
        "JPEG with a broken index of pictures": with_segment(0xE2, b"MPF\0II*\0\x08\0\0\0\1\0"),
        "JPEG with broken Photoshop data": with_segment(0xED, b"Photoshop 3.0\x008BIM\3\xed\0\0\0\0\0\xff"),
        "JPEG with a short JFIF segment": with_segment(0xE0, b"JFIF"),
        "JPEG with 2 MB of comments": with_segment(0xFE, b"x" * 65_000, 32),
    }


def files_of_no_image() -> dict[str, bytes]:
    """Return files that are not images, by the name of their content in the message."""
    return {
        "an HTML page": b"<!DOCTYPE html>\n<html><body>404 <svg></svg></body></html>",
        "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid",
        "a git-annex pointer": b"../../.git/annex/objects/Xq/7k/SHA256E-s9--0.png/SHA256E-s9--0.png",
        "a text file": b'{"error": 404}\n',
        "only zero bytes": bytes(5000),
        "an archive": b"PK\3\4" + bytes(99),
        "a video": b"\0\0\0\x18ftypmp42" + bytes(99),
        "DICOM": bytes(128) + b"DICM" + bytes(99),
    }


def files_of_other_formats() -> dict[str, bytes]:
    """Return files that are refused, by the name of their format in the message."""
    rgb = Image.fromarray(photo())
    return {
        "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99),
        "JPEG XL": b"\xff\x0a" + bytes(99),
        "JPEG 2000": encode(rgb, "JPEG2000"),
        "ICO": encode(rgb.resize((32, 32)), "ICO"),
        "SVG": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "PDF": encode(rgb, "PDF"),
        "Photoshop": b"8BPS\0\1" + bytes(99),
        "a corrupt or unknown header": bytes(range(256)),
    }
