"""Cost of a student on a device, and latency of its heatmap in comparison with Grad-CAM libraries.

    python benchmarks/bench_device.py [RUN] [--data FOLDER] [--json]

The script first measures what `camkd export --int8` and `camkd bench-device` report. It then measures the latency of
one heatmap of the predicted class, batch size 1, on one thread: the exported files in fp32 and int8, camkd in PyTorch,
torchcam and pytorch-grad-cam. The libraries run in turns of ten calls. Their maps are compared before they are timed.

Targets: int8 loses at most 0.5 points of accuracy, and the cosine similarity of its maps to those in fp32 is 0.98 or
more. The maps cost at most 3 % of latency. The exported file computes a heatmap 15 times as fast as the libraries.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from optional_imports import import_optional
from torch import nn

import camkd
from camkd.cli.progress import ProgressReporter
from camkd.experiments.finished_runs import open_model_data
from camkd.export.benchmark import Variant, benchmark_device, single_thread, time_round_robin
from camkd.export.export import FP32, INT8, ExportOptions, export
from camkd.export.sessions import open_session, run_session, to_input
from camkd.runs.folder import collect_environment

DATA = Path("data/cifar10-jpeg")

TARGET_LAYERS = {"CamNet": "body", "ResNet": "layer3"}
"""Layer before the global average pooling, by class of the network."""

TARGETS = {"drop_points": 0.5, "cam_cosine": 0.98, "cam_over_logits_percent": 3.0, "times_faster": 15.0}
MIN_MAP_COSINE = 0.95

HeatmapFunction = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Function of an image ``(1, 3, H, W)`` that returns the map ``(h, w)`` of the predicted class."""


def exported_heatmap(path: Path) -> HeatmapFunction:
    """Return a function that computes the map with an exported file."""
    session = open_session(path)

    def compute(x: NDArray[np.float32]) -> NDArray[np.float32]:
        logits, cam = run_session(session, x)
        return cam[0, logits[0].argmax()]

    return compute


def pytorch_heatmap(model: nn.Module) -> HeatmapFunction:
    """Return a function that computes the map with camkd in PyTorch."""

    def compute(x: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits, cams, *_ = camkd.predict(model, torch.from_numpy(x))
        assert cams is not None
        return np.asarray(cams[0, logits[0].argmax()])

    return compute


def torchcam_heatmap(model: nn.Module, layer: str) -> HeatmapFunction | None:
    """Return a function that computes Grad-CAM with torchcam: a forward pass, and a backward pass to ``layer``."""
    methods = import_optional("torchcam.methods")
    extractor = methods.GradCAM(model, layer) if methods else None

    def compute(x: NDArray[np.float32]) -> NDArray[np.float32]:
        logits = model(torch.from_numpy(x))
        return np.asarray(extractor(int(logits[0].argmax()), logits, normalized=False)[0][0].detach())

    return compute if methods else None


def pytorch_grad_cam_heatmap(model: nn.Module, layer: str) -> HeatmapFunction | None:
    """Return a function that computes Grad-CAM with pytorch-grad-cam.

    The library always resizes the map to the image and scales it to 0..1.
    """
    package = import_optional("pytorch_grad_cam")
    extractor = package.GradCAM(model, [model.get_submodule(layer)]) if package else None

    def compute(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(extractor(torch.from_numpy(x), None)[0])

    return compute if package else None


def check_maps(functions: dict[str, HeatmapFunction], x: NDArray[np.float32]) -> None:
    """Assert that all maps are similar: clipped at zero and averaged to the size of the smallest map."""
    maps = {name: np.maximum(compute(x), 0) for name, compute in functions.items()}
    side = min(len(map_) for map_ in maps.values())
    vectors = {
        name: map_.reshape(side, len(map_) // side, side, -1).mean((1, 3)).ravel() for name, map_ in maps.items()
    }
    reference = next(iter(vectors.values()))
    for name, vector in vectors.items():
        cosine = reference @ vector / (np.linalg.norm(reference) * np.linalg.norm(vector))
        assert cosine > MIN_MAP_COSINE, f"the map of {name} must have a cosine above {MIN_MAP_COSINE}, got {cosine:.3f}"


def measure_heatmaps(
    model: nn.Module, folder: Path, images: NDArray[np.uint8], rounds: int, reporter: ProgressReporter
) -> dict[str, Any]:
    """Measure the latency of a heatmap with every library, in milliseconds."""
    layer = TARGET_LAYERS[type(model).__name__]
    x = to_input(images[:1])
    candidates = {
        "exported, fp32": exported_heatmap(folder / FP32),
        "exported, int8": exported_heatmap(folder / INT8),
        "camkd in PyTorch": pytorch_heatmap(copy.deepcopy(model)),
        "torchcam Grad-CAM": torchcam_heatmap(copy.deepcopy(model), layer),
        "pytorch-grad-cam GradCAM": pytorch_grad_cam_heatmap(copy.deepcopy(model), layer),
    }
    functions = {name: function for name, function in candidates.items() if function is not None}
    check_maps(functions, x)
    variants = [Variant(name, True, function, folder, 0) for name, function in functions.items()]
    with single_thread():
        times = 1e3 * time_round_robin(variants, x, rounds, reporter.progress, "heatmaps")
    fastest = np.quantile(times[0], 0.1)  # the 10 % quantile is robust to other programs on all cores; a median is not
    return {
        name: {
            "median_ms": float(np.median(own_times)),
            "p10_ms": float(np.quantile(own_times, 0.1)),
            "p95_ms": float(np.quantile(own_times, 0.95)),
            "times_exported_fp32": float(np.quantile(own_times, 0.1) / fastest),
        }
        for name, own_times in zip(functions, times, strict=True)
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", default="cam-net-cifar10", help="a run folder or a shipped model")
    parser.add_argument("--data", default=str(DATA) if DATA.is_dir() else "cifar10")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    with TemporaryDirectory() as temporary, ProgressReporter() as reporter:
        folder = Path(temporary, "export")
        export_options = ExportOptions(options.data, int8=True, force=True)
        files = export(options.run, folder, None, export_options, None, reporter)
        device = benchmark_device(options.run, options.data, options.rounds, reporter.progress)
        images = open_model_data(options.run, options.data, reporter.progress).test.images
        heatmaps = measure_heatmaps(camkd.load(options.run), folder, images, options.rounds, reporter)
    int8 = files["int8"]
    cam_cost = max(cost["median"] for name, cost in device["cam_over_logits_percent"].items() if "ONNX" in name)
    grad_cam_ratios = [row["times_exported_fp32"] for name, row in heatmaps.items() if "Grad" in name]
    measured = {
        "drop_points": 100 * (int8["before"] - int8["after"]),
        "cam_cosine": int8["cam_cosine"],
        "cam_over_logits_percent": cam_cost,
        "times_faster": min(grad_cam_ratios) if grad_cam_ratios else None,
    }
    aims = {name: (value, TARGETS[name]) for name, value in measured.items()}
    results = {"run": options.run, "files": files, "device": device, "heatmaps": heatmaps, "aims": aims}
    if options.json:
        print(json.dumps({**results, "environment": collect_environment()}))
        return
    for row in device["rows"]:
        print(json.dumps(row))
    for name, row in heatmaps.items():
        print(name, *(f"{key} {value:.3f}" for key, value in row.items()))
    print(json.dumps(aims))


if __name__ == "__main__":
    main()
