"""What an answer costs on a device: latency, throughput, memory, size; in PyTorch and exported, with and without maps.

Other programs disturb every timing, so the variants take turns, a few calls each, and figures are medians; what the map
costs is the median over turns of the ratio of two variants' medians in the same turn.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from camkd.cams import predict
from camkd.data.dataset import Dataset, Progress
from camkd.experiments.finished_runs import open_model_data
from camkd.export.int8 import write_int8
from camkd.export.onnx_graph import write_graph
from camkd.export.sessions import as_input, check_installed, open_session, run
from camkd.models.io import WEIGHTS_FILE
from camkd.runs.folder import collect_environment
from camkd.runs.load_model import find_model_folder, load, read_model_info
from camkd.types import InputError

CALLS, WARM_UP = 10, 3
BATCH = 64
"""Pictures at once where throughput is measured."""


@dataclass(frozen=True)
class Variant:
    """One way to ask a model: for logits alone, or with maps. ``place`` is what a process of its own would open."""

    name: str
    cam: bool
    ask: Callable[[NDArray[np.float32]], Any]
    place: Path
    bytes: int


def benchmark_device(source: str, data: str | None, rounds: int, progress: Progress) -> dict[str, Any]:
    """Measure the model of ``source`` on one thread: one row a variant, and what maps cost over logits alone."""
    check_installed()
    if rounds < 1:
        raise InputError(f"rounds is {rounds}, but has to be 1 or more: give such a number.")
    pictures = open_model_data(source, data, progress)
    with TemporaryDirectory() as folder, one_thread():
        variants = _variants(source, Path(folder), pictures)
        images = as_input(pictures.test.images[:BATCH])
        times = take_turns(variants, images[:1], rounds, progress, "latency")
        batches = take_turns(variants, images, max(1, rounds // 10), progress, "throughput")
        rows = [
            {
                "program": variant.name,
                "cam": variant.cam,
                "median_ms": 1e3 * float(np.median(own)),
                "p95_ms": 1e3 * float(np.quantile(own, 0.95)),
                "pictures_per_second": len(images) / float(np.median(many)),
                "peak_bytes": peak_memory(variant),
                "file_bytes": variant.bytes,
            }
            for variant, own, many in zip(variants, times, batches, strict=True)
        ]
        machine = collect_environment()  # with the one thread that all this was measured on
    cam_costs = {
        logits.name: cost_of(times[place], times[place + 1]) for place, logits in enumerate(variants) if not logits.cam
    }
    return {"rows": rows, "cam_over_logits_percent": cam_costs, "rounds": rounds, "environment": machine}


def latency(files: Sequence[Path], images: NDArray[np.uint8]) -> list[float]:
    """The median seconds that each of ``files`` takes for ``images`` at once, on one thread, in turns."""
    sessions = [open_session(path) for path in files]
    variants = [
        Variant(path.name, True, lambda x, s=session: run(s, x), path, 0)  # type: ignore[misc]
        for path, session in zip(files, sessions, strict=True)
    ]
    return [float(np.median(own)) for own in take_turns(variants, as_input(images), rounds=20)]


def cost_of(less: NDArray[np.float64], more: NDArray[np.float64]) -> dict[str, float]:
    """By how many per cent ``more`` takes longer than ``less``; both are seconds, ``(rounds, calls)``: quartiles."""
    ratios = 100 * (np.median(more, 1) / np.median(less, 1) - 1)
    return dict(zip(("low", "median", "high"), np.quantile(ratios, (0.25, 0.5, 0.75)).tolist(), strict=True))


def peak_memory(variant: Variant) -> int | None:
    """The most memory of a new process that opens this and answers; None where the system does not tell."""
    command = [sys.executable, "-m", "camkd.export.footprint", str(variant.place), *(["--cam"] if variant.cam else [])]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return int(found) if found else None


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread as long as it lasts."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _variants(source: str, folder: Path, pictures: Dataset) -> list[Variant]:
    said, place = read_model_info(source), find_model_folder(source)
    weights = (place / WEIGHTS_FILE).stat().st_size
    model = load(source)

    def torch_logits(x: NDArray[np.float32]) -> Any:
        with torch.inference_mode():
            return model(torch.from_numpy(x))

    def torch_cam(x: NDArray[np.float32]) -> Any:
        with torch.inference_mode():
            return predict(model, torch.from_numpy(x))

    asked = {False: torch_logits, True: torch_cam}
    found = [Variant("PyTorch", cam, ask, place, weights) for cam, ask in asked.items()]
    files = {cam: folder / f"fp32{'-cam' * cam}.onnx" for cam in (False, True)}
    for cam, path in files.items():
        write_graph(model, said, path, cam=cam)
    for name in ("ONNX fp32", "ONNX int8"):
        for cam, path in files.items():
            if name.endswith("int8"):
                path = path.with_stem(path.stem.replace("fp32", "int8"))
                write_int8(files[cam], path, pictures.train)
            session = open_session(path)
            ask = lambda x, session=session: run(session, x)  # noqa: E731
            found.append(Variant(name, cam, ask, path, path.stat().st_size))
    return found


def take_turns(
    variants: Sequence[Variant],
    x: NDArray[np.float32],
    rounds: int,
    progress: Progress | None = None,
    what: str = "",
) -> NDArray[np.float64]:
    """Seconds of each call, ``(variants, rounds, CALLS)``."""
    times = np.zeros((len(variants), rounds, CALLS))
    for turn in range(rounds):
        for place in range(len(variants)) if turn % 2 else reversed(range(len(variants))):
            ask = variants[place].ask
            for call in range(-WARM_UP, CALLS):
                started = time.perf_counter()
                ask(x)
                if call >= 0:
                    times[place, turn, call] = time.perf_counter() - started
        if progress is not None:
            progress(turn + 1, rounds, what)
    return times
