"""Running exported files. Without torch: a device has none, and what is measured here should not pay for it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from camkd.types import InputError

if TYPE_CHECKING:
    import onnxruntime

IMAGE, LOGITS, CAM = "image", "logits", "cam"
"""What goes into an exported file and what comes out of it."""

ERRORS_ALONE = 3
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_installed() -> None:
    """Raise ``InputError`` where a package that exporting needs is not there."""
    from importlib.util import find_spec

    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise InputError(f"exporting needs {', '.join(missing)}: pip install 'camkd[export]'.")


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """The exported file ``path`` in ONNX Runtime, on one thread of the processor."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = ERRORS_ALONE
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def as_input(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pictures ``(N, H, W, 3)`` uint8 as an exported file takes them: ``(N, 3, H, W)`` float, 0..1.

    >>> as_input(np.full((1, 2, 2, 3), 255, np.uint8)).max()
    np.float32(1.0)
    """
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)


def run(session: onnxruntime.InferenceSession, pixels: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """The outputs for ``pixels (N, 3, H, W)``."""
    found: list[Any] = session.run(None, {IMAGE: pixels})
    return found


@contextmanager
def quietly() -> Iterator[None]:
    """Without what exporter and quantiser tell about their own work."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
