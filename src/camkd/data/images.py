"""Decode image files to RGB arrays."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
"""Suffixes of the files that are images, in lower case."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
"""Formats that are decoded, independent of the file's suffix. EPS is excluded, as its decoder runs another program."""

MAX_COMMON_SIZE = 64
"""Largest side in pixels that `common_size` returns."""


def decode(path: str | Path, size: int) -> NDArray[np.uint8]:
    """Decode an image file to a square RGB array.

    EXIF rotation is applied and transparent pixels are blended with white. The shorter side is resized to ``size``
    with antialiasing and the center square is cropped. The first frame of an animation is used.

    Args:
        path: Path of the file.
        size: Side of the result in pixels.

    Returns:
        ``(size, size, 3) uint8``.

    Raises:
        ValueError: If the file cannot be decoded completely. The message is the reason.

    Example:
        >>> decode(Path("cat.jpg"), 64).shape      # doctest: +SKIP
        (64, 64, 3)
    """
    with _open_image(path, size) as image:
        return np.asarray(_resize_and_center_crop(_to_rgb(image), size))


def decode_full(path: str | Path) -> NDArray[np.uint8]:
    """Decode an image file to an RGB array at its own resolution, without a crop.

    EXIF rotation is applied and transparent pixels are blended with white, as in `decode`.

    Args:
        path: Path of the file.

    Returns:
        ``(H, W, 3) uint8``.

    Raises:
        ValueError: If the file cannot be decoded completely. The message is the reason.

    Example:
        >>> decode_full(Path("cat.jpg")).shape     # doctest: +SKIP
        (375, 500, 3)
    """
    with _open_image(path) as image:
        return np.asarray(_to_rgb(image))


@contextmanager
def _open_image(path: str | Path, size: int | None = None) -> Iterator[Image.Image]:
    """Open an image with EXIF rotation applied; raise every error of Pillow as ``ValueError``.

    A large JPEG is decoded at a reduced resolution of at least ``2 * size``.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            max_pixels = Image.MAX_IMAGE_PIXELS or np.inf
            if image.width * image.height > max_pixels:
                raise ValueError(
                    f"an image must have at most {max_pixels:,} pixels, got {image.width} x {image.height}"
                )
            if size is not None:
                image.draft(None, (2 * size, 2 * size))
            ImageOps.exif_transpose(image, in_place=True)
            yield image
    except UnidentifiedImageError as error:
        raise ValueError("not an image in a known format") from error
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    except Exception as error:  # Pillow raises SyntaxError, struct.error, IndexError, ... on broken files
        raise ValueError(str(error) or type(error).__name__) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image  # convert() would copy it
    if image.mode.startswith("I"):  # 16 bits per pixel
        gray = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((gray + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        foreground = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", foreground.size, "white"), foreground).convert("RGB")
    return image.convert("RGB")


def _resize_and_center_crop(image: Image.Image, size: int) -> Image.Image:
    if image.size == (size, size):
        return image
    side = min(image.size)
    left = (image.width - side) / 2
    top = (image.height - side) / 2
    return image.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))


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
