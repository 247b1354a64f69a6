"""``python -m camkd.export.footprint PLACE [--cam]``: print the most memory this process took to answer, in bytes.

``PLACE`` is an exported file or a run folder. Torch is imported for a run folder alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

ANSWERS = 20


def answer_with_onnx(path: Path) -> None:
    """Open an exported file and answer one picture a few times."""
    import numpy as np

    from camkd.export.sessions import open_session, run

    session = open_session(path)
    sides = [side if isinstance(side, int) else 1 for side in session.get_inputs()[0].shape]
    for _ in range(ANSWERS):
        run(session, np.zeros((1, *sides[1:]), np.float32))


def answer_with_torch(folder: Path, cam: bool) -> None:
    """Load a run and answer one picture a few times."""
    import torch

    from camkd.cams import predict
    from camkd.runs.load_model import load, read_model_info

    torch.set_num_threads(1)
    model, size = load(folder), read_model_info(folder).size
    with torch.inference_mode():
        for _ in range(ANSWERS):
            x = torch.zeros(1, 3, size, size)
            predict(model, x) if cam else model(x)


def peak() -> int | None:
    """The largest resident size of this process so far; None where the system does not tell."""
    status = Path("/proc/self/status")  # getrusage would count the parent, from which this process was forked
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)


def main(place: str, cam: bool) -> None:
    """Answer, then print."""
    if place.endswith(".onnx"):
        answer_with_onnx(Path(place))
    else:
        answer_with_torch(Path(place), cam)
    found = peak()
    print("" if found is None else found)


if __name__ == "__main__":
    main(sys.argv[1], "--cam" in sys.argv)
