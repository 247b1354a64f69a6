"""Folders of image files of one color."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

RED = (255, 0, 0)


def save_image(path: Path, color: tuple[int, int, int] = RED, size: tuple[int, int] = (8, 8)) -> Path:
    """Write an image of one color."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def make_classes(root: Path, *classes: str, count: int = 10) -> Path:
    """Write ``root/<class>/0.png`` and so on, each image in its own color."""
    for label, name in enumerate(classes):
        for number in range(count):
            save_image(root / name / f"{number}.png", (number, label, 100))
    return root
