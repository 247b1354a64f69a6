"""What the student costs on a device, and its heatmap beside Grad-CAM by hooks on the same student in PyTorch.

    python benchmarks/bench_device.py [RUN] [--data FOLDER] [--json]

First what `camkd export --int8` and `camkd bench-device` measure. Then the latency of one heatmap of the predicted
class, batch 1, one thread: the exported file, in fp32 and int8, against camkd in PyTorch, torchcam and
pytorch-grad-cam, who take turns, ten calls each. First it is asserted that all draw the same map. To reach: int8 loses
at most 0.5 points and its maps are 0.98 like those in fp32; the map costs at most 3 % of latency; the exported heatmap
is 15 times as fast.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peers import peer
from torch import nn

import camkd
from camkd.cli.progress import ProgressReporter
from camkd.experiments.finished_runs import open_model_data
from camkd.export.benchmark import Variant, bench, one_thread, take_turns
from camkd.export.export import FP32, INT8, ExportOptions, export
from camkd.export.sessions import as_input, open_session, run
from camkd.runs.folder import collect_environment

PICTURES = Path("data/cifar10-jpeg")
LAYERS = {"CamNet": "body", "ResNet": "layer3"}  # whose average the head sees
AIMS = {"drop_points": 0.5, "cam_cosine": 0.98, "cam_over_logits_percent": 3.0, "times_faster": 15.0}

Draw = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def exported(path: Path) -> Draw:
    """The map of the predicted class out of an exported file."""
    session = open_session(path)

    def draw(x: NDArray[np.float32]) -> NDArray[np.float32]:
        logits, cam = run(session, x)
        return cam[0, logits[0].argmax()]

    return draw


def in_pytorch(model: nn.Module) -> Draw:
    """The same out of camkd in PyTorch."""

    def draw(x: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits, cams, *_ = camkd.predict(model, torch.from_numpy(x))
        assert cams is not None
        return np.asarray(cams[0, logits[0].argmax()])

    return draw


def by_torchcam(model: nn.Module, layer: str) -> Draw | None:
    """Grad-CAM: a forward and a backward pass to the layer."""
    methods = peer("torchcam.methods")
    extract = methods.GradCAM(model, layer) if methods else None

    def draw(x: NDArray[np.float32]) -> NDArray[np.float32]:
        scores = model(torch.from_numpy(x))
        return np.asarray(extract(int(scores[0].argmax()), scores, normalized=False)[0][0].detach())

    return draw if methods else None


def by_pytorch_grad_cam(model: nn.Module, layer: str) -> Draw | None:
    """The same by pytorch-grad-cam, enlarged to the picture and scaled to 0..1, as it does not draw otherwise."""
    package = peer("pytorch_grad_cam")
    extract = package.GradCAM(model, [model.get_submodule(layer)]) if package else None

    def draw(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(extract(torch.from_numpy(x), None)[0])

    return draw if package else None


def check(draws: dict[str, Draw], x: NDArray[np.float32]) -> None:
    """Assert that all look at the same place: their maps, cut at zero, at the size of the smallest."""
    maps = {name: np.maximum(draw(x), 0) for name, draw in draws.items()}
    side = min(len(found) for found in maps.values())
    small = {n: m.reshape(side, len(m) // side, side, -1).mean((1, 3)).ravel() for n, m in maps.items()}
    first = next(iter(small.values()))
    for name, found in small.items():
        alike = first @ found / (np.linalg.norm(first) * np.linalg.norm(found))
        assert alike > 0.95, f"{name} draws another map ({alike:.3f})"


def heatmaps(
    model: nn.Module, folder: Path, images: NDArray[np.uint8], rounds: int, screen: ProgressReporter
) -> dict[str, Any]:
    """The latency of a heatmap by every program, in milliseconds."""
    layer, x = LAYERS[type(model).__name__], as_input(images[:1])
    found = {
        "exported, fp32": exported(folder / FP32),
        "exported, int8": exported(folder / INT8),
        "camkd in PyTorch": in_pytorch(copy.deepcopy(model)),
        "torchcam Grad-CAM": by_torchcam(copy.deepcopy(model), layer),
        "pytorch-grad-cam GradCAM": by_pytorch_grad_cam(copy.deepcopy(model), layer),
    }
    draws = {name: draw for name, draw in found.items() if draw is not None}
    check(draws, x)
    variants = [Variant(name, True, draw, folder, 0) for name, draw in draws.items()]
    with one_thread():
        times = 1e3 * take_turns(variants, x, rounds, screen.progress, "heatmaps")
    quickest = np.quantile(times[0], 0.1)  # where other programs keep both cores busy, a median is mostly theirs
    return {
        name: {
            "median_ms": float(np.median(own)),
            "p10_ms": float(np.quantile(own, 0.1)),
            "p95_ms": float(np.quantile(own, 0.95)),
            "times_exported_fp32": float(np.quantile(own, 0.1) / quickest),
        }
        for name, own in zip(draws, times, strict=True)
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", default="cam-net-cifar10", help="a run folder or a shipped model")
    parser.add_argument("--data", default=str(PICTURES) if PICTURES.is_dir() else "cifar10")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    with TemporaryDirectory() as place, ProgressReporter() as screen:
        folder = Path(place, "export")
        files = export(options.run, folder, None, ExportOptions(options.data, int8=True, force=True), None, screen)
        device = bench(options.run, options.data, options.rounds, screen.progress)
        images = open_model_data(options.run, options.data, screen.progress).test.images
        maps = heatmaps(camkd.load(options.run), folder, images, options.rounds, screen)
    cost = files["int8"]
    slowest_map = max(cost["median"] for name, cost in device["cam_over_logits_percent"].items() if "ONNX" in name)
    peers = [own["times_exported_fp32"] for name, own in maps.items() if "Grad" in name]
    reached = {
        "drop_points": (100 * (cost["before"] - cost["after"]), AIMS["drop_points"]),
        "cam_cosine": (cost["cam_cosine"], AIMS["cam_cosine"]),
        "cam_over_logits_percent": (slowest_map, AIMS["cam_over_logits_percent"]),
        "times_faster": (min(peers) if peers else None, AIMS["times_faster"]),
    }
    found = {"run": options.run, "files": files, "device": device, "heatmaps": maps, "aims": reached}
    if options.json:
        print(json.dumps({**found, "environment": collect_environment()}))
        return
    for row in device["rows"]:
        print(json.dumps(row), file=sys.stdout)
    for name, own in maps.items():
        print(name, *(f"{key} {value:.3f}" for key, value in own.items()))
    print(json.dumps(reached))


if __name__ == "__main__":
    main()
