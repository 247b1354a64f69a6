"""Picture files to square RGB arrays, whatever the files hold."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
"""What a file may hold, whatever its suffix claims. Not EPS and the like, whose decoders run programs."""

LARGEST_OWN_SIZE = 64


def decode(path: str | Path, size: int) -> NDArray[np.uint8]:
    """The picture at ``path`` as ``(size, size, 3) uint8``: upright, on white, its centre square.

    The shorter side becomes ``size``, antialiased, and the longer one is cropped. An animation gives its
    first frame. Raises `ValueError` with the reason where the file cannot be read whole.

    >>> decode(Path("cat.jpg"), 64).shape      # doctest: +SKIP
    (64, 64, 3)
    """
    with _opened(path, size) as image:
        return np.asarray(_square(_rgb(image), size))


def decode_full(path: str | Path) -> NDArray[np.uint8]:
    """The picture at ``path`` as ``(H, W, 3) uint8``: upright, on white, every pixel. Raises as `decode` does.

    >>> whole(Path("cat.jpg")).shape           # doctest: +SKIP
    (375, 500, 3)
    """
    with _opened(path) as image:
        return np.asarray(_rgb(image))


@contextmanager
def _opened(path: str | Path, size: int | None = None) -> Iterator[Image.Image]:
    """The upright picture, at least of twice ``size`` where it has that; what Pillow says of it as `ValueError`."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or np.inf):
                raise ValueError(f"{image.width} x {image.height} pixels are more than is safe to decode")
            if size is not None:
                image.draft(None, (2 * size, 2 * size))
            ImageOps.exif_transpose(image, in_place=True)
            yield image
    except UnidentifiedImageError as error:
        raise ValueError("not a picture in a known format") from error
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    except Exception as error:  # Pillow raises SyntaxError, struct.error, IndexError, ... on broken files
        raise ValueError(str(error) or type(error).__name__) from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image  # which convert() would copy
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        above = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", above.size, "white"), above).convert("RGB")
    return image.convert("RGB")


def _square(image: Image.Image, size: int) -> Image.Image:
    if image.size == (size, size):
        return image
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))


def own_size(paths: Iterable[str]) -> int | None:
    """The side that all these pictures share, where they are squares of at most 64 pixels. Reads headers alone."""
    sizes = set()
    for path in paths:
        try:
            with _quiet(), Image.open(path, formats=FORMATS) as image:
                sizes.add(image.size)
        except Exception:  # decode() says later what is wrong with it
            continue
    if len(sizes) != 1:
        return None
    width, height = sizes.pop()
    return width if width == height <= LARGEST_OWN_SIZE else None


def decode_rows(images: NDArray[np.uint8], start: int, paths: Iterable[str]) -> dict[int, str]:
    """Decode ``paths`` into ``images (N, size, size, 3) uint8`` from row ``start`` on.

    Returns the reason for each row that could not be read.
    """
    reasons = {}
    with _quiet():
        for row, path in enumerate(paths, start):
            try:
                images[row] = decode(path, images.shape[1])
            except ValueError as error:
                reasons[row] = str(error)
    return reasons


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of Pillow's as long as it lasts: `decode` judges the files itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
