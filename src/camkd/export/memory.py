"""``python -m camkd.export.memory PATH [--cam]``: print the peak memory of this process after predictions, in bytes.

``PATH`` is an exported file or a run folder. Torch is imported only for a run folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

NUM_PREDICTIONS = 20
"""Number of predictions before the memory is read."""


def predict_with_onnx(path: Path) -> None:
    """Open an exported file and predict one image `NUM_PREDICTIONS` times."""
    import numpy as np

    from camkd.export.sessions import open_session, run_session

    session = open_session(path)
    shape = [side if isinstance(side, int) else 1 for side in session.get_inputs()[0].shape]
    for _ in range(NUM_PREDICTIONS):
        run_session(session, np.zeros((1, *shape[1:]), np.float32))


def predict_with_torch(folder: Path, cam: bool) -> None:
    """Load a run and predict one image `NUM_PREDICTIONS` times, with maps if ``cam``."""
    import torch

    from camkd.cams import predict
    from camkd.runs.loading import load, read_model_info

    torch.set_num_threads(1)
    model = load(folder)
    size = read_model_info(folder).size
    with torch.inference_mode():
        for _ in range(NUM_PREDICTIONS):
            x = torch.zeros(1, 3, size, size)
            predict(model, x) if cam else model(x)


def peak_resident_bytes() -> int | None:
    """Return the peak resident set size of this process, or None if the operating system does not report it."""
    status = Path("/proc/self/status")  # unlike getrusage, without the memory of the parent before exec
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)


def main(path: str, cam: bool) -> None:
    """Predict, then print the peak memory in bytes, or an empty line if it is unknown."""
    if path.endswith(".onnx"):
        predict_with_onnx(Path(path))
    else:
        predict_with_torch(Path(path), cam)
    peak = peak_resident_bytes()
    print("" if peak is None else peak)


if __name__ == "__main__":
    main(sys.argv[1], "--cam" in sys.argv)
