"""ONNX Runtime sessions of exported files.

This module imports no torch, so that exported files run, and their memory is measured, in a process without torch.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from camkd.types import InputError

if TYPE_CHECKING:
    import onnxruntime

IMAGE, LOGITS, CAM = "image", "logits", "cam"
"""Names of the input and the outputs of an exported file."""

LOG_ERRORS_ONLY = 3
"""Severity level of ONNX Runtime that logs only errors."""

REQUIRED_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""Packages of the extra ``camkd[export]``."""


def check_installed() -> None:
    """Raise ``InputError`` if a package that export needs is missing."""
    missing = [name for name in REQUIRED_PACKAGES if find_spec(name) is None]
    if missing:
        raise InputError(f"{', '.join(missing)} must be installed for export. Run: pip install 'camkd[export]'.")


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """Open an exported file in ONNX Runtime, on one CPU thread.

    Args:
        path: An ONNX file.

    Returns:
        The session.

    Example:
        >>> session = open_session(Path("runs/mine/export/model.onnx"))                       # doctest: +SKIP
        >>> logits, cam = run_session(session, to_input(images))                              # doctest: +SKIP
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = LOG_ERRORS_ONLY
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def to_input(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Convert images to the input of an exported file.

    Args:
        images: RGB ``(N, H, W, 3)`` uint8.

    Returns:
        ``(N, 3, H, W)`` float32 in 0..1.

    Example:
        >>> to_input(np.full((1, 2, 2, 3), 255, np.uint8)).max()
        np.float32(1.0)
    """
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)


def run_session(session: onnxruntime.InferenceSession, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Run an exported file.

    Args:
        session: Session from `open_session`.
        x: Input ``(N, 3, H, W)``, as from `to_input`.

    Returns:
        Logits ``(N, K)`` and, if the file has maps, maps ``(N, K, h, w)``.
    """
    outputs: list[Any] = session.run(None, {IMAGE: x})
    return outputs


@contextmanager
def suppress_output() -> Iterator[None]:
    """Suppress warnings, log messages and output of the exporter and the quantizer."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
