"""Benchmark of a model on one thread: latency, throughput, memory and file size, in PyTorch and as ONNX files.

Other programs disturb every timing. The variants therefore run in turns of a few calls, and results are medians. The
cost of the maps is the median over rounds of a ratio. The ratio is the median time of a variant with maps, divided by
the median time of the variant without maps in the same round.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from camkd.cams import predict
from camkd.data.dataset import Dataset, Progress
from camkd.data.files import BadImages
from camkd.experiments.finished_runs import open_model_data
from camkd.export.int8 import write_int8
from camkd.export.onnx_graph import write_onnx
from camkd.export.sessions import check_installed, open_session, run_session, to_input
from camkd.models.io import WEIGHTS_FILE
from camkd.runs.folder import collect_environment
from camkd.runs.loading import find_model_folder, load, read_model_info
from camkd.types import InputError

TIMED_CALLS = 10
"""Timed calls of a variant per round."""

WARMUP_CALLS = 3
"""Calls of a variant before the timed calls of a round."""

BATCH_SIZE = 64
"""Batch size for the throughput."""


@dataclass(frozen=True)
class Variant:
    """A program that runs a model, with or without maps.

    Args:
        name: Name of the program, such as ``ONNX fp32``.
        cam: Whether the maps are computed too.
        run: Inference function of images ``(N, 3, H, W)``, float32 in 0..1.
        path: Exported file or run folder, for the measurement of memory.
        file_bytes: Size of the weights or of the exported file.
    """

    name: str
    cam: bool
    run: Callable[[NDArray[np.float32]], Any]
    path: Path
    file_bytes: int


def benchmark_device(
    source: str, data: str | None, rounds: int, progress: Progress, bad_images: BadImages | None = None
) -> dict[str, Any]:
    """Measure a model in PyTorch and as ONNX files in fp32 and int8, each with and without maps, on one thread.

    Args:
        source: A run folder or the name of a shipped model.
        data: Images of the model's dataset. None: the images of its run.
        rounds: Number of rounds for the latency. Each variant is timed `TIMED_CALLS` times per round. The throughput
            has a tenth of these rounds.
        progress: Callback ``progress(done, total, description)``.
        bad_images: Treatment of unreadable images of a folder. None: as in the training.

    Returns:
        A dictionary with the keys ``rows`` (latency of one image, throughput in batches of `BATCH_SIZE`, peak memory
        and file size of each variant), ``cam_over_logits_percent`` (cost of the maps per program), ``rounds`` and
        ``environment``.

    Raises:
        InputError: If ``source`` or ``data`` is invalid, ``rounds`` is below 1, or a package is missing.
    """
    check_installed()
    if rounds < 1:
        raise InputError(f"rounds must be 1 or more, got {rounds}. Choose a larger number.")
    dataset = open_model_data(source, data, progress, bad_images=bad_images)
    with TemporaryDirectory() as folder, single_thread():
        variants = _make_variants(source, Path(folder), dataset)
        x = to_input(dataset.test.images[:BATCH_SIZE])
        latencies = time_round_robin(variants, x[:1], rounds, progress, "latency")
        batch_times = time_round_robin(variants, x, max(1, rounds // 10), progress, "throughput")
        rows = [
            {
                "program": variant.name,
                "cam": variant.cam,
                "median_ms": 1e3 * float(np.median(times)),
                "p95_ms": 1e3 * float(np.quantile(times, 0.95)),
                "images_per_second": len(x) / float(np.median(throughput_times)),
                "peak_bytes": peak_memory(variant),
                "file_bytes": variant.file_bytes,
            }
            for variant, times, throughput_times in zip(variants, latencies, batch_times, strict=True)
        ]
        environment = collect_environment()  # inside single_thread(): the recorded number of threads is 1
    cam_costs = {
        variant.name: relative_overhead(latencies[index], latencies[index + 1])
        for index, variant in enumerate(variants)
        if not variant.cam
    }
    return {"rows": rows, "cam_over_logits_percent": cam_costs, "rounds": rounds, "environment": environment}


def median_latencies(paths: Sequence[Path], images: NDArray[np.uint8]) -> list[float]:
    """Measure the latency of exported files on one thread, in turns.

    Args:
        paths: Exported files.
        images: Images of one call, RGB ``(N, H, W, 3)`` uint8.

    Returns:
        The median seconds per call of each file.
    """
    variants = [Variant(path.name, True, partial(run_session, open_session(path)), path, 0) for path in paths]
    return [float(np.median(times)) for times in time_round_robin(variants, to_input(images), rounds=20)]


def relative_overhead(baseline: NDArray[np.float64], other: NDArray[np.float64]) -> dict[str, float]:
    """Compute the additional time of ``other`` relative to ``baseline``.

    Args:
        baseline: Seconds ``(rounds, calls)``.
        other: Seconds ``(rounds, calls)``.

    Returns:
        The quartiles ``low``, ``median`` and ``high`` over the rounds of ``median(other) / median(baseline) - 1``, in
        percent.

    Example:
        >>> relative_overhead(np.ones((3, 2)), np.full((3, 2), 1.5))
        {'low': 50.0, 'median': 50.0, 'high': 50.0}
    """
    ratios = 100 * (np.median(other, 1) / np.median(baseline, 1) - 1)
    return dict(zip(("low", "median", "high"), np.quantile(ratios, (0.25, 0.5, 0.75)).tolist(), strict=True))


def peak_memory(variant: Variant) -> int | None:
    """Measure the peak resident memory of a new process that loads the variant and predicts.

    Args:
        variant: The exported file or the run, with its settings.

    Returns:
        Bytes, or None if the operating system does not report it.
    """
    command = [sys.executable, "-m", "camkd.export.memory", str(variant.path), *(["--cam"] if variant.cam else [])]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return int(output) if output else None


@contextmanager
def single_thread() -> Iterator[None]:
    """Limit PyTorch to one thread in the context."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _make_variants(source: str, folder: Path, dataset: Dataset) -> list[Variant]:
    """Export the model to ``folder`` and return all variants: each program without maps, then with maps."""
    info = read_model_info(source)
    model_folder = find_model_folder(source)
    weights_bytes = (model_folder / WEIGHTS_FILE).stat().st_size
    model = load(source)

    def torch_logits(x: NDArray[np.float32]) -> Any:
        with torch.inference_mode():
            return model(torch.from_numpy(x))

    def torch_cam(x: NDArray[np.float32]) -> Any:
        with torch.inference_mode():
            return predict(model, torch.from_numpy(x))

    variants = [
        Variant("PyTorch", False, torch_logits, model_folder, weights_bytes),
        Variant("PyTorch", True, torch_cam, model_folder, weights_bytes),
    ]
    fp32_paths = {cam: folder / f"fp32{'-cam' * cam}.onnx" for cam in (False, True)}
    for cam, path in fp32_paths.items():
        write_onnx(model, info, path, cam=cam)
    int8_paths = {cam: folder / f"int8{'-cam' * cam}.onnx" for cam in (False, True)}
    for cam, path in int8_paths.items():
        write_int8(fp32_paths[cam], path, dataset.train)
    for name, paths in (("ONNX fp32", fp32_paths), ("ONNX int8", int8_paths)):
        for cam, path in paths.items():
            variants.append(Variant(name, cam, partial(run_session, open_session(path)), path, path.stat().st_size))
    return variants


def time_round_robin(
    variants: Sequence[Variant],
    x: NDArray[np.float32],
    rounds: int,
    progress: Progress | None = None,
    description: str = "",
) -> NDArray[np.float64]:
    """Time variants in turns. The order of the variants is reversed in every second round.

    Args:
        variants: The variants.
        x: Input ``(N, 3, H, W)``, float32 in 0..1.
        rounds: Number of rounds.
        progress: Callback ``progress(done, total, description)``.
        description: Description for ``progress``.

    Returns:
        Seconds of each call, ``(variants, rounds, TIMED_CALLS)``.
    """
    times = np.zeros((len(variants), rounds, TIMED_CALLS))
    for round_index in range(rounds):
        for index in range(len(variants)) if round_index % 2 else reversed(range(len(variants))):
            run = variants[index].run
            for call in range(-WARMUP_CALLS, TIMED_CALLS):
                start = time.perf_counter()
                run(x)
                if call >= 0:
                    times[index, round_index, call] = time.perf_counter() - start
        if progress is not None:
            progress(round_index + 1, rounds, description)
    return times
