"""Maps of image files, written to disk: one figure, one overlay per image, or the maps as numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from camkd.data.dataset import Progress, cache_folder, no_progress
from camkd.data.file_names import HUGGING_FACE, is_table_name
from camkd.data.hugging_face import extract
from camkd.data.ignored import OUTPUT_MARKER
from camkd.data.images import decode, decode_full, decode_with_remarks
from camkd.data.table import table_images
from camkd.data.walker import find_images
from camkd.explain.explain import Explanation, draw_explanation
from camkd.explain.plots import PANEL_SIZE, overlay_full_image, resize_image
from camkd.types import InputError, Preprocessing
from camkd.utils.files import atomic_write, commit_dir, write_json

BATCH_SIZE = 32
"""Number of images that are decoded and predicted at a time."""

MAX_PANELS = 600
"""Largest number of images and maps in one figure."""


def find_image_files(paths: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """List image files: each given file, all images below each given folder, and those of each given table.

    Args:
        paths: Files, folders and tables. Files are not checked.

    Returns:
        Paths of the images without duplicates, in the order of ``paths``; the images of a folder are sorted. Paths of
        the other files in the folders, which are skipped.

    Raises:
        InputError: If a path is empty, or a folder holds no images.
    """
    images: list[Path] = []
    skipped: list[Path] = []
    if not all(path.strip() for path in paths):
        raise InputError(
            "images must be files or folders, got an empty name. Give a name, or . for the current folder."
        )
    for path in map(Path, paths):
        if str(path).startswith(HUGGING_FACE) and not path.exists():
            path, _ = extract(str(path), cache_folder(), no_progress)
        if path.is_dir():
            folder_images, others = find_images(path)
        else:
            folder_images, others = table_images(path) if is_table_name(path.name) else [path], []
        images += folder_images
        skipped += others
    return list(dict.fromkeys(images)), list(dict.fromkeys(skipped))


def decode_batches(
    paths: Sequence[Path],
    preprocessings: Mapping[str, Preprocessing],
    progress: Progress,
    unreadable: dict[Path, str] | None = None,
    remarks: dict[Path, list[str]] | None = None,
) -> Iterator[dict[str, NDArray[np.uint8]]]:
    """Decode image files to the input of each model, in batches of `BATCH_SIZE`.

    Args:
        paths: Image files.
        preprocessings: Preprocessing by the title of the model.
        progress: Callback, called when the consumer requests the next batch.
        unreadable: Collects the reasons of files that cannot be decoded, which are left out. None: an error is raised.
        remarks: Collects the remarks on the decoded images, see `camkd.data.images.Decoded`.

    Yields:
        Images ``(n, size, size, 3)``, RGB, by the title of the model.

    Raises:
        InputError: If a file cannot be decoded and ``unreadable`` is None. If a file does not exist. If no file can be
            decoded.
    """
    for start in range(0, len(paths), BATCH_SIZE):
        images: dict[Preprocessing, list[NDArray[np.uint8]]] = {
            preprocessing: [] for preprocessing in preprocessings.values()
        }
        for path in paths[start : start + BATCH_SIZE]:
            try:
                decoded = {preprocessing: decode_with_remarks(path, preprocessing) for preprocessing in images}
            except ValueError as error:
                if unreadable is None or not os.path.lexists(path):
                    raise _unreadable_error(path, str(error)) from error
                unreadable[path] = str(error)
                continue
            for preprocessing, (image, image_remarks) in decoded.items():
                images[preprocessing].append(image)
                if image_remarks and remarks is not None:
                    remarks[path] = image_remarks
        if all(images.values()):
            yield {title: np.stack(images[preprocessing]) for title, preprocessing in preprocessings.items()}
        progress(min(start + BATCH_SIZE, len(paths)), len(paths), "explaining images")
    if unreadable and len(unreadable) == len(paths):
        raise _unreadable_error(*next(iter(unreadable.items())), len(paths))


def _decode_full(path: Path, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Decode an image at its own resolution."""
    try:
        return decode_full(path, preprocessing.value_range)
    except ValueError as error:
        raise _unreadable_error(path, str(error)) from error


def _unreadable_error(path: Path, reason: str, count: int = 1) -> InputError:
    others = f"; {count - 1:,} more are unreadable" if count > 1 else ""
    return InputError(
        f"{str(path)!r} must be a readable image file, got an error: {reason}{others}. Leave it out or replace it."
    )


def output_format(out: Path) -> str:
    """Derive the output format from a path.

    Args:
        out: The output path.

    Returns:
        ``folder`` for an existing folder or a path without suffix, otherwise the suffix ``png``, ``json`` or ``npz``.

    Raises:
        InputError: If ``out`` has another suffix, or is an existing file without suffix.

    Example:
        >>> output_format(Path("maps.npz"))
        'npz'
    """
    file_format = "folder" if out.is_dir() or not out.suffix else out.suffix[1:].lower()
    if file_format not in ("png", "json", "npz", "folder") or (file_format == "folder" and out.is_file()):
        raise InputError(
            f"`--out` must be a .png, .npz or .json file or a folder, got {out}. "
            "Choose another file name, or a folder for overlays."
        )
    return file_format


def check_figure_size(num_images: int, maps_per_image: int) -> None:
    """Check the number of panels of a figure.

    Args:
        num_images: Number of images.
        maps_per_image: Number of maps of each image.

    Raises:
        InputError: If the figure would hold more than `MAX_PANELS` panels.
    """
    panels = num_images * (1 + maps_per_image)
    if panels > MAX_PANELS:
        raise InputError(
            f"a figure must hold {MAX_PANELS} images and maps or fewer, got {panels:,}: {num_images:,} images with "
            f"{maps_per_image} maps each. Explain fewer images, or set `--out` to a folder, a .npz or a .json file."
        )


def write_figure(
    out: Path,
    paths: Sequence[Path],
    explanation: Explanation,
    classes: Sequence[str],
    preprocessing: Preprocessing,
) -> None:
    """Write one PNG with each image, cropped or padded to a square, and each model's maps over it.

    The pixels of a square smaller than a panel are enlarged without smoothing. A larger square is shrunk.

    Args:
        out: The PNG file to write.
        paths: The ``N`` image files.
        explanation: Maps of the images.
        classes: Names of all ``K`` classes.
        preprocessing: Preprocessing of the models.

    Raises:
        InputError: If a file cannot be decoded.
    """
    images = np.stack([_panel_image(path, preprocessing) for path in paths])
    draw_explanation(images, explanation, classes, out, names=[path.name for path in paths])


def _panel_image(path: Path, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Decode an image to the square of a panel. A small image is not resized by the filter of the preprocessing."""
    height, width, _ = _decode_full(path, preprocessing).shape
    side = min(height, width) if preprocessing.fit == "crop" else max(height, width)
    square = decode(path, replace(preprocessing, size=min(side, PANEL_SIZE)))
    return resize_image(square, (PANEL_SIZE, PANEL_SIZE))


def write_overlays(
    out: Path,
    paths: Sequence[Path],
    maps: NDArray[np.float32],
    progress: Progress,
    preprocessing: Preprocessing,
) -> None:
    """Write one PNG per image and map, at the resolution of the image. On an error, no file is written.

    The overlay of an image has the same path below ``out`` as the image below the common parent folder of all images,
    with the suffix ``.png`` appended. For ``k > 1`` the suffixes are ``.1.png``, ``.2.png``, ... A new folder is marked
    with `OUTPUT_MARKER`, so that its overlays are not taken for images of a dataset.

    Args:
        out: The folder to write.
        paths: The ``N`` image files.
        maps: Maps ``(N, k, h, w)``.
        progress: Callback, called after each image.
        preprocessing: Preprocessing of the model.

    Raises:
        InputError: If a file cannot be decoded, or the overlays would lie beside the images.
    """
    parent = os.path.commonpath([path.absolute().parent for path in paths])
    if out.resolve() == Path(parent).resolve():
        raise InputError(
            f"--out must be another folder than that of the images, got '{out}'. Choose a new folder for the overlays."
        )
    is_new = not out.exists() or not any(out.iterdir())
    with commit_dir(out) as folder:
        if is_new:
            (folder / OUTPUT_MARKER).touch()
        for row, path in enumerate(paths):
            image = _decode_full(path, preprocessing)
            target = folder / path.absolute().relative_to(parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            for rank, cam in enumerate(maps[row], 1):
                suffix = ".png" if maps.shape[1] == 1 else f".{rank}.png"
                Image.fromarray(overlay_full_image(image, cam, preprocessing)).save(f"{target}{suffix}")
            progress(row + 1, len(paths), "drawing overlays")


def write_maps(out: Path, paths: Sequence[Path], explanation: Explanation, classes: Sequence[str]) -> None:
    """Write an explanation as arrays in a compressed ``.npz`` file, without pickles.

    The arrays are ``images`` (paths), ``classes`` (names of all classes), ``class_ids (N, k)``, ``against (d,)`` (class
    indices, empty without a contrast) and, for each model, ``<title>_probabilities (N, K)`` and
    ``<title>_maps (N, k, h, w)``.

    Args:
        out: The file to write.
        paths: The ``N`` image files.
        explanation: Maps of the images.
        classes: Names of all ``K`` classes.
    """
    arrays: dict[str, NDArray[Any]] = {
        "images": np.array([str(path) for path in paths]),
        "classes": np.array(classes),
        "class_ids": explanation.class_ids,
        "against": np.array(explanation.against, np.int64),
    }
    for title, model_maps in explanation.maps_by_model.items():
        arrays[f"{title}_probabilities"] = model_maps.probabilities
        arrays[f"{title}_maps"] = model_maps.maps
    with atomic_write(out) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)


def write_records(out: Path, paths: Sequence[Path], explanation: Explanation, classes: Sequence[str]) -> None:
    """Write an explanation as JSON: ``classes``, ``against``, and the `prediction_records` with maps under ``images``.

    Each entry of ``classes_shown`` has a ``map``. ``against`` lists the names of the classes of a contrast.

    Args:
        out: The file to write.
        paths: The ``N`` image files.
        explanation: Maps of the images.
        classes: Names of all ``K`` classes.
    """
    records = prediction_records(paths, explanation, classes)
    for row, record in enumerate(records.values()):
        for title, model_maps in explanation.maps_by_model.items():
            for entry, cam in zip(record[title]["classes_shown"], model_maps.maps[row], strict=True):
                entry["map"] = cam.tolist()
    against = [classes[k] for k in explanation.against]
    write_json(out, {"classes": list(classes), "against": against, "images": records})


def prediction_records(
    paths: Sequence[Path], explanation: Explanation, classes: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Tabulate predictions by image and model.

    Args:
        paths: The ``N`` image files.
        explanation: Maps of the images.
        classes: Names of all ``K`` classes.

    Returns:
        One record per image and model, by the image's path and the model's title.

        - ``class``: name of the predicted class.
        - ``confidence``: probability of the predicted class.
        - ``unsure``: whether the confidence is below the threshold of the model; absent if the model has none.
        - ``classes_shown``: for each class with a map, its name ``class`` and its probability ``confidence``.

    Example:
        >>> from camkd.explain.explain import ModelMaps
        >>> model_maps = ModelMaps(np.array([[0.9, 0.1]]), np.zeros((1, 1, 2, 2)))
        >>> explanation = Explanation(np.array([[0]]), {"student": model_maps})
        >>> prediction_records([Path("x.png")], explanation, ("cat", "dog"))["x.png"]["student"]
        {'class': 'cat', 'confidence': 0.9, 'classes_shown': [{'class': 'cat', 'confidence': 0.9}]}
    """
    records: dict[str, dict[str, Any]] = {}
    for row, path in enumerate(paths):
        record: dict[str, Any] = {}
        for title, model_maps in explanation.maps_by_model.items():
            probabilities = model_maps.probabilities[row]
            record[title] = {
                "class": classes[probabilities.argmax()],
                "confidence": float(probabilities.max()),
                **({"unsure": bool(model_maps.unsure[row])} if model_maps.threshold else {}),
                "classes_shown": [
                    {"class": classes[k], "confidence": float(probabilities[k])} for k in explanation.class_ids[row]
                ],
            }
        records[str(path)] = record
    return records
