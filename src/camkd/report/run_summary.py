"""Contents of a run folder for the report. Missing files and values are empty or None."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camkd.runs.per_image import read_per_image
from camkd.types import CENTER, MEAN_MAP, ChanceLevel, InputError
from camkd.utils.files import load_json
from camkd.utils.units import finite_number

ROLES = ("teacher", "control", "student")
RUN_FILES = ("metrics.json", "metrics.jsonl", "model.json", "config.yaml")
"""A folder with at least one of these files is a run folder."""

MAX_EPOCH_HEATMAP_BYTES = 600_000
"""Size limit of the data URIs of a run's heatmap figures by epoch."""


@dataclass(frozen=True)
class RunSummary:
    """Contents of one run folder. Everything except the name may be missing.

    Attributes:
        name: Name of the run in the report.
        role: ``teacher``, ``control`` or ``student``.
        metrics: Content of ``metrics.json``.
        history: Content of ``metrics.jsonl``, one entry per epoch.
        model_info: Content of ``model.json``.
        config: Content of ``config.yaml``.
        environment: Content of ``environment.json`` without the class names.
        heatmap: Heatmap figure of the finished model, a PNG as data URI.
        epoch_heatmaps: Epochs and heatmap figures during training.
        gallery: Content of ``gallery.json``, see `camkd.report.gallery`.
        per_image: Columns of ``per_image.npz``, one row per test image.
        calibration: Content of ``calibration.json``.
    """

    name: str
    role: str | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    model_info: dict[str, Any] = field(default_factory=dict)
    config: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    heatmap: str | None = None
    epoch_heatmaps: list[tuple[int, str]] = field(default_factory=list)
    gallery: dict[str, Any] = field(default_factory=dict)
    per_image: dict[str, NDArray[Any]] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)

    def number(self, key: str) -> float | None:
        """Return a number from ``metrics.json``, or from ``model.json`` if ``metrics.json`` lacks the key.

        Args:
            key: Key of the number.

        Returns:
            The number, or None if it is missing or not a finite number.
        """
        return finite_number(self.metrics.get(key, self.model_info.get(key)))

    def calibration_number(self, *keys: str) -> float | None:
        """Return a number of ``calibration.json`` by its keys from the outside in, or None if it is missing."""
        value: Any = self.calibration
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return finite_number(value)

    def column(self, name: str) -> NDArray[Any] | None:
        """Return a column of numbers from ``per_image.npz``.

        Args:
            name: Name of the column.

        Returns:
            The column, or None if it is missing, empty, or not one finite number per label.
        """
        column = self.per_image.get(name)
        labels = self.per_image.get("label")
        if column is None or labels is None or column.ndim != 1 or column.shape != labels.shape or not len(column):
            return None
        return column if column.dtype.kind in "iuf" and np.isfinite(column).all() else None

    @property
    def cosine_chance(self) -> tuple[float, ChanceLevel] | None:
        """The higher of the two chance levels of ``cam_cosine``, and which one it is; None unless both are stored."""
        levels = [(self.number(level.key("cam_cosine")), level) for level in (CENTER, MEAN_MAP)]
        stored = [(value, level) for value, level in levels if value is not None]
        return max(stored) if len(stored) == len(levels) else None

    @cached_property
    def confusion(self) -> list[list[float]] | None:
        """Confusion matrix of counts, rows are true classes; None if it is missing, not square or not of counts."""
        table = self.metrics.get("confusion")
        if not isinstance(table, list) or not table:
            return None
        square = all(isinstance(row, list) and len(row) == len(table) for row in table)
        counts = [finite_number(value) for row in table for value in row] if square else []
        return table if square and all(count is not None and count >= 0 for count in counts) else None

    @property
    def num_test_images(self) -> int | None:
        """Number of test images: ``test_images`` of the metrics, else the sum of the confusion matrix, else None."""
        count = self.number("test_images") or sum(map(sum, self.confusion or []))
        return int(count) if count >= 1 else None

    @cached_property
    def classes(self) -> list[str]:
        """Class names; ``0``, ``1``, ... if ``model.json`` has no list that fits the confusion matrix."""
        stored = self.model_info.get("classes")
        names = [str(name) for name in stored] if isinstance(stored, list) else []
        size = len(self.confusion or names)
        return names if len(names) == size else [str(index) for index in range(size)]

    def class_accuracy(self, index: int) -> float | None:
        """Return the accuracy on a class from the confusion matrix, or None if the matrix has no image of the class."""
        if not self.confusion or index >= len(self.confusion) or not sum(self.confusion[index]):
            return None
        return self.confusion[index][index] / sum(self.confusion[index])

    def confusion_cells(self) -> list[tuple[int, int, int]]:
        """Return true class, predicted class and count of the nonzero cells of the confusion matrix."""
        return [
            (label, predicted, int(count))
            for label, counts in enumerate(self.confusion or [])
            for predicted, count in enumerate(counts)
            if count
        ]


def read_runs(paths: Sequence[Path]) -> list[RunSummary]:
    """Read run folders. If folder names are not unique, the name of a run includes the parent folder.

    Args:
        paths: Run folders, or folders of ``camkd train`` with the run folders ``teacher``, ``control`` or ``student``.

    Returns:
        One summary per run folder.

    Raises:
        InputError: If a folder is not a run folder, or a JSON file or ``per_image.npz`` is invalid.
    """
    folders = [folder for path in paths for folder in _run_folders(path)]
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [f"{folder.resolve().parent.name}/{name}" for folder, name in zip(folders, names, strict=True)]
    return [_read_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def _run_folders(path: Path) -> list[Path]:
    """Return the run folders ``teacher``, ``control`` and ``student`` in ``path``, or ``path`` if it has none."""
    inside = [path / role for role in ROLES if _is_run(path / role)]
    if not inside and not _is_run(path):
        contents = ", ".join((*RUN_FILES, *ROLES))
        raise InputError(f"A run folder must contain one of {contents}, got {path} without any. Name a run folder.")
    return inside or [path]


def _is_run(path: Path) -> bool:
    return any((path / name).is_file() for name in RUN_FILES)


def _read_run(folder: Path, name: str) -> RunSummary:
    model_info = _read_json(folder / "model.json")
    role = model_info.get("role", folder.resolve().name)
    figures = folder / "figures"
    per_image_file = folder / "per_image.npz"
    environment = _read_json(folder / "environment.json")
    return RunSummary(
        name=name,
        role=role if role in ROLES else None,
        metrics=_read_json(folder / "metrics.json"),
        history=list(_parse_history(_read_text(folder / "metrics.jsonl"))),
        model_info=model_info,
        config=_read_text(folder / "config.yaml"),
        environment={key: value for key, value in environment.items() if key != "classes"},
        heatmap=_png_uri(figures / "cams.png"),
        epoch_heatmaps=_thin_out(_read_epoch_heatmaps(figures)),
        gallery=_read_json(folder / "gallery.json"),
        per_image=read_per_image(per_image_file) if per_image_file.is_file() else {},
        calibration=_read_json(folder / "calibration.json"),
    )


def _read_epoch_heatmaps(figures: Path) -> list[tuple[int, str]]:
    """Return the epochs and data URIs of ``cams-epoch-*.png``, by epoch."""
    matches = [(re.fullmatch(r"cams-epoch-(\d+)\.png", path.name), path) for path in figures.glob("*.png")]
    epochs = sorted((int(match[1]), path) for match, path in matches if match)
    return [(epoch, uri) for epoch, path in epochs if (uri := _png_uri(path))]


def _thin_out(heatmaps: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Keep every second figure, then every fourth, ..., until their size is allowed. The first figure stays."""
    while len(heatmaps) > 1 and sum(len(uri) for _, uri in heatmaps) > MAX_EPOCH_HEATMAP_BYTES:
        heatmaps = heatmaps[::2]
    return heatmaps


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = load_json(_read_text(path) or "{}")
    except ValueError as error:
        raise InputError(f"{path} must be valid JSON, got an error: {error}. Write it again or remove it.") from error
    return value if isinstance(value, dict) else {}


def _parse_history(text: str) -> Iterator[dict[str, Any]]:
    """Yield the lines that are JSON objects. Other lines are skipped: an interrupted run may leave half a line."""
    for line in text.splitlines():
        try:
            value = load_json(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value


def _png_uri(path: Path) -> str | None:
    if not path.is_file():
        return None
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
