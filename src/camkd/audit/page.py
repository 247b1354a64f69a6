"""The page of an audit: the findings with thumbnails of their images, in one HTML file without network and script."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from camkd.audit.findings import KINDS, LEADS, Entry, Finding, class_counts
from camkd.audit.inventory import Inventory
from camkd.data.dataset import SPLITS, Progress
from camkd.report.page import render_page
from camkd.utils.files import write_text
from camkd.utils.plot_style import SERIES_COLORS

PAGE = "audit.html"

MAX_GROUPS = 60
"""Largest number of images or groups of a kind on the page."""

MAX_IMAGES = 8
"""Largest number of images of a group on the page."""

THUMBNAIL_SIDE = 224
"""Largest side of a thumbnail in pixels."""

SMALL_SIDE = 64
"""Largest side in pixels of an image that is stored losslessly, and enlarged without smoothing."""


def write_page(folder: Path, inventory: Inventory, findings: Sequence[Finding], progress: Progress) -> Path:
    """Write ``audit.html``.

    Args:
        folder: Folder of the page.
        inventory: The images.
        findings: The findings, the most severe first.
        progress: Progress callback.

    Returns:
        The path of the page.

    Raises:
        OSError: If the folder cannot be written.
    """
    sections = []
    for done, finding in enumerate(findings):
        sections.append(
            {
                "kind": finding.kind,
                "title": KINDS[finding.kind],
                "summary": finding.summary,
                "lead": LEADS[finding.kind],
                "groups": [_group(inventory, entry) for entry in finding.entries[:MAX_GROUPS]],
                "hidden": max(0, len(finding.entries) - MAX_GROUPS),
            }
        )
        progress(done + 1, len(findings), "drawing the page")
    kinds = len(findings)
    title = (
        f"{inventory.name}: {kinds} kind{'' if kinds == 1 else 's'} of faults"
        if kinds
        else f"{inventory.name}: no faults"
    )
    context = {
        "title": title,
        "facts": [
            f"{len(inventory):,} images",
            f"{len(inventory.classes):,} classes",
            f"compared at {inventory.size} pixels",
        ],
        "lead": "Every image of train, val and test was decoded and compared with all others. An audit finds "
        "candidates: look at the images before you delete or move one.",
        "colors": SERIES_COLORS,
        "sections": sections,
        "splits": SPLITS,
        "classes": class_counts(inventory),
        "notes": inventory.notes,
    }
    path = folder / PAGE
    write_text(path, render_page(PAGE, **context))
    return path


def _group(inventory: Inventory, entry: Entry) -> dict[str, Any]:
    images = [_image(inventory, row) for row in entry.rows[:MAX_IMAGES]]
    images += [
        {"data": to_data_uri(pixels), "is_small": False, "label": caption, "caption": ""}
        for caption, pixels in entry.maps
    ]
    return {"text": entry.text, "images": images, "more": max(0, len(entry.rows) - MAX_IMAGES)}


def _image(inventory: Inventory, row: int) -> dict[str, Any]:
    pixels = None if row in inventory.errors else inventory.read_full(row)
    return {
        "data": None if pixels is None else to_data_uri(pixels),
        "is_small": pixels is not None and max(pixels.shape[:2]) <= SMALL_SIDE,
        "label": inventory.classes[inventory.labels[row]],
        "caption": _caption(inventory, row),
    }


def _caption(inventory: Inventory, row: int) -> str:
    """Return the split and the name of the file."""
    name = inventory.names[row]
    return f"{inventory.splits[row]}, {name.rsplit('/', 1)[-1]}" if inventory.paths else name


def to_data_uri(pixels: NDArray[np.uint8]) -> str:
    """Encode an image: PNG up to `SMALL_SIDE` pixels, else JPEG of at most `THUMBNAIL_SIDE` pixels."""
    image = Image.fromarray(pixels)
    stream = io.BytesIO()
    if max(image.size) <= SMALL_SIDE:
        image.save(stream, "PNG", optimize=True)
        kind = "png"
    else:
        image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        image.save(stream, "JPEG", quality=80)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
