"""Recall and precision of near duplicates, on planted copies.

    python benchmarks/near_duplicates.py FOLDER --out benchmarks/results/DATE-near-duplicates.json

Copies of 200 random images are made by one change each, and compared with all images. A pair of a copy with another
image than its own is a false pair. The pairs among the images themselves are listed: look at them to judge precision.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from camkd.data.images import decode, decode_full
from camkd.data.near_duplicates import MAX_DISTANCE, MIN_SIMILARITY, find_near_duplicates, hash_images
from camkd.data.walker import holds_images
from camkd.types import InputError, Preprocessing

COPIES = 200


def compress(image: Image.Image, quality: int) -> Image.Image:
    """Return an image after JPEG compression."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


def resize(image: Image.Image, factor: float) -> Image.Image:
    """Return an image at another resolution."""
    return image.resize((round(factor * image.width), round(factor * image.height)), Image.Resampling.BICUBIC)


def crop(image: Image.Image, fraction: float, center: bool) -> Image.Image:
    """Remove a fraction of the width and of the height, at all borders or at the left and the top."""
    width, height = image.width * fraction, image.height * fraction
    if not center:
        return image.crop((round(width), round(height), image.width, image.height))
    left, top = round(width / 2), round(height / 2)
    return image.crop((left, top, image.width - round(width) + left, image.height - round(height) + top))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG of quality 30": lambda image: compress(image, 30),
    "JPEG of quality 10": lambda image: compress(image, 10),
    "half the size": lambda image: resize(image, 0.5),
    "1.7 times the size": lambda image: resize(image, 1.7),
    "2 % cropped": lambda image: crop(image, 0.02, True),
    "4 % cropped": lambda image: crop(image, 0.04, True),
    "6 % cropped": lambda image: crop(image, 0.06, True),
    "10 % cropped": lambda image: crop(image, 0.10, True),
    "3 % cropped at two sides": lambda image: crop(image, 0.03, False),
    "5 % cropped at two sides": lambda image: crop(image, 0.05, False),
    "brightness 0.8": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
    "brightness 1.2": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "brightness 1.5": lambda image: ImageEnhance.Brightness(image).enhance(1.5),
    "contrast 0.7": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    "rotated by 3 degrees": lambda image: image.rotate(3, Image.Resampling.BICUBIC),
    "flipped": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "gray": lambda image: image.convert("L").convert("RGB"),
}


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not holds_images(options.folder):
        raise InputError(f"folder must hold images, got '{options.folder}'. Choose another folder.")
    preprocessing = Preprocessing(options.size)
    paths = sorted(path for path in options.folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    images = np.stack([decode(path, preprocessing) for path in paths])
    seconds = [time.process_time()]
    hashed = hash_images(images)
    seconds.append(time.process_time())
    own = find_near_duplicates(hashed)
    seconds.append(time.process_time())
    chosen = random.Random(0).sample(range(len(paths)), min(COPIES, len(paths)))
    recall, false = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "copy.bmp"
        for name, change in CHANGES.items():
            copies = []
            for row in chosen:
                change(Image.fromarray(decode_full(paths[row]))).save(file)
                copies.append(decode(file, preprocessing))
            pairs = find_near_duplicates(hash_images(np.stack(copies)), hashed)
            is_true = np.array(chosen)[pairs.first] == pairs.second
            recall[name] = int(is_true.sum()) / len(chosen)
            false[name] = int((~is_true).sum())
            print(f"{name:26} recall {recall[name]:.3f}, false pairs {false[name]}")
    result = {
        "images": len(paths),
        "size": options.size,
        "copies": len(chosen),
        "max_distance": MAX_DISTANCE,
        "min_similarity": MIN_SIMILARITY,
        "cpu_seconds": {"hash": seconds[1] - seconds[0], "compare": seconds[2] - seconds[1]},
        "recall": recall,
        "false_pairs": false,
        "pairs": [
            [*(str(paths[row].relative_to(options.folder)) for row in (first, second)), round(float(similarity), 4)]
            for first, second, similarity, _ in zip(*own, strict=True)
        ],
    }
    print(json.dumps({key: result[key] for key in ("images", "cpu_seconds")}), f"{len(result['pairs'])} pairs")
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
