"""Where models look in picture files, as files: a figure, an overlay a picture, or the maps themselves."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from camkd.data.dataset import Progress
from camkd.data.images import decode, decode_full
from camkd.data.scan import find_images
from camkd.explain.explain import Explanation, draw_explanation
from camkd.explain.plots import SIDE, enlarged, overlay_whole
from camkd.types import InputError
from camkd.utils.files import atomic_write, commit_dir, write_json

AT_ONCE = 32
"""Pictures that are decoded and asked about at once."""

PANELS = 600
"""Pictures and maps that one figure holds."""


def find_image_files(given: Sequence[str]) -> list[Path]:
    """The pictures named, and those below the folders named, each once. Raises ``InputError`` for an empty folder."""
    found = [path for one in map(Path, given) for path in (find_images(one) if one.is_dir() else [one])]
    return list(dict.fromkeys(found))


def decoded(paths: Sequence[Path], size: int) -> NDArray[np.uint8]:
    """Decode picture files to ``(N, size, size, 3)``. Raises ``InputError`` naming the first that cannot be read."""
    return np.stack([_decoded(path, size) for path in paths])


def iter_decoded(paths: Sequence[Path], size: int, progress: Progress) -> Iterator[NDArray[np.uint8]]:
    """`decoded`, a few at a time."""
    for start in range(0, len(paths), AT_ONCE):
        yield decoded(paths[start : start + AT_ONCE], size)
        progress(min(start + AT_ONCE, len(paths)), len(paths), "looking at pictures")


def _decoded(path: Path, size: int | None) -> NDArray[np.uint8]:
    try:
        return decode_full(path) if size is None else decode(path, size)
    except ValueError as error:
        raise InputError(f"{str(path)!r} cannot be read as a picture: {error}.") from error


def output_format(out: Path) -> str:
    """What the name ``out`` asks for: ``png``, ``json``, ``npz`` or ``folder``. Raises ``InputError`` for others."""
    kind = "folder" if out.is_dir() or not out.suffix else out.suffix[1:].lower()
    if kind not in ("png", "json", "npz", "folder") or (kind == "folder" and out.is_file()):
        raise InputError(f"--out {out} is no .png, .npz or .json file: give such a name, or a folder for overlays.")
    return kind


def check_figure_size(pictures: int, maps: int) -> None:
    """Raise ``InputError`` where so many pictures with so many maps each are too many for one figure."""
    if pictures * (1 + maps) > PANELS:
        raise InputError(
            f"{pictures:,} pictures with {maps} maps each are more than one figure holds ({PANELS} in all): "
            "name fewer, or give --out a folder, a .npz or a .json file."
        )


def write_figure(out: Path, paths: Sequence[Path], looks: Explanation, classes: Sequence[str]) -> None:
    """The centre square of each picture, in its own pixels as far as they fit, and each model's maps over it."""
    seen = np.stack([_panel(path) for path in paths])
    draw_explanation(seen, looks, classes, out, names=[path.name for path in paths])


def _panel(path: Path) -> NDArray[np.uint8]:
    own = min(_decoded(path, None).shape[:2])
    return enlarged(_decoded(path, min(own, SIDE)), (SIDE, SIDE))


def write_overlays(out: Path, paths: Sequence[Path], maps: NDArray[np.float32], progress: Progress) -> None:
    """An overlay a picture and map ``(N, k, h, w)``, in the picture's own pixels; all of them or none.

    It has the picture's path below what all have in common, and ``.png``, or ``.1.png``, ``.2.png``, ... for ``k > 1``.
    """
    above = os.path.commonpath([path.absolute().parent for path in paths])
    with commit_dir(out) as folder:
        for row, path in enumerate(paths):
            image, place = _decoded(path, None), folder / path.absolute().relative_to(above)
            place.parent.mkdir(parents=True, exist_ok=True)
            for rank, cam in enumerate(maps[row], 1):
                end = ".png" if maps.shape[1] == 1 else f".{rank}.png"
                Image.fromarray(overlay_whole(image, cam)).save(f"{place}{end}")
            progress(row + 1, len(paths), "drawing overlays")


def write_maps(out: Path, paths: Sequence[Path], looks: Explanation, classes: Sequence[str]) -> None:
    """Pictures, classes, and each model's probabilities and maps, as arrays without pickles (``.npz``)."""
    arrays: dict[str, NDArray[Any]] = {
        "pictures": np.array([str(path) for path in paths]),
        "classes": np.array(classes),
        "shown": looks.class_ids,
    }
    for title, one in looks.by.items():
        arrays |= {f"{title}_probabilities": one.probabilities, f"{title}_maps": one.maps}
    with atomic_write(out) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)


def write_records(out: Path, paths: Sequence[Path], looks: Explanation, classes: Sequence[str]) -> None:
    """The same as JSON: what `records` says, and each map as rows of numbers."""
    found = prediction_records(paths, looks, classes)
    for row, said in enumerate(found.values()):
        for title, one in looks.by.items():
            for place, cam in zip(said[title]["shown"], one.maps[row], strict=True):
                place["map"] = cam.tolist()
    write_json(out, {"pictures": found})


def prediction_records(paths: Sequence[Path], looks: Explanation, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By picture and model: its answer, how sure it is, and its probability of each class that is shown."""
    found: dict[str, dict[str, Any]] = {}
    for row, path in enumerate(paths):
        found[str(path)] = {}
        for title, one in looks.by.items():
            sure = one.probabilities[row]
            shown = [{"class": classes[k], "confidence": float(sure[k])} for k in looks.class_ids[row]]
            answer = {"class": classes[sure.argmax()], "confidence": float(sure.max())}
            found[str(path)][title] = {**answer, "shown": shown}
    return found
