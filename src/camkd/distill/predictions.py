"""Cache of a teacher's predictions for the images of a split, without augmentation."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from camkd.data.dataset import cache_folder
from camkd.evaluate import SplitPredictions
from camkd.utils.files import atomic_write

MAX_FILES = 100
"""Maximum number of files. Writing another file removes the oldest file."""


def cached_predictions(key: str, predict: Callable[[], SplitPredictions]) -> SplitPredictions:
    """Read predictions from the cache, or compute and cache them.

    A file that is missing or corrupt is written again. If the cache cannot be written, nothing is cached.

    Args:
        key: Key of the predictions, see `camkd.distill.keys.cache_key`.
        predict: Function that computes the predictions.

    Returns:
        The predictions.
    """
    path = cache_folder() / "predictions" / f"{key}.npz"
    predictions = _read(path)
    if predictions is None:
        predictions = predict()
        with suppress(OSError):  # without space or permission, the teacher runs again next time
            _write(path, predictions)
    return predictions


def _read(path: Path) -> SplitPredictions | None:
    """Return the predictions in a file. None if the file is missing or corrupt: zip members have checksums."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            logits, maps, class_ids = (torch.from_numpy(arrays[name]) for name in ("logits", "maps", "class_ids"))
            return SplitPredictions(logits, maps, class_ids, str(arrays["form"]))
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error):
        return None


def _write(path: Path, predictions: SplitPredictions) -> None:
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        np.savez(
            stream,
            logits=predictions.logits.numpy(),
            maps=predictions.maps.numpy(),
            class_ids=predictions.class_ids.numpy(),
            form=np.array(predictions.form),
        )
    others = sorted(path.parent.glob("*.npz"), key=lambda file: file.stat().st_mtime)
    for file in others[:-MAX_FILES]:
        file.unlink(missing_ok=True)
