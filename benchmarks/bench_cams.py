"""Speed of class activation maps, compared with torchcam and pytorch-grad-cam on the same network and weights.

    python benchmarks/bench_cams.py --models resnet8 cam-net wrn-16-4 --json

The script measures heatmaps per second, of the predicted class and of all classes, and the cost of maps over logits
only. Two formats are measured:

like_for_like    fp32 in the default memory layout of torch, for every program
as_it_ships      camkd's format for frozen networks: channels-last, folded batch normalization, bf16 where it is faster

Freed memory stays with the process, for every program, unless --default-memory is given. The maps of all programs are
compared before they are timed. Programs alternate. A result is the median over the rounds with minimum and maximum. The
cost over logits has quartiles instead.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from optional_imports import import_optional
from torch import Tensor, nn

import camkd
from camkd.config import TrainConfig
from camkd.data.sources import open_data
from camkd.distill.cache.build import make_teacher_fn
from camkd.runs.folder import collect_environment
from camkd.types import Prediction
from camkd.utils.devices import keep_freed_memory, pick_precision

LAYERS = {"resnet8": ("layer3", "fc"), "cam-net": ("body", "head"), "wrn-16-4": ("relu", "fc")}
"""Layer before the global average pooling, and the head, by network."""

TASKS = {"predicted": 3.0, "all": 10.0}
"""Classes whose maps are computed, and the target of camkd's speed over the fastest other program."""

MAX_PERCENT_OVER_LOGITS = 3.0
"""Target: cost of maps over logits only, in percent."""

FORMATS = {"like_for_like": torch.contiguous_format, "as_it_ships": torch.channels_last}
CAMKD = "camkd"
CAMKD_SHIPPED = "camkd as it ships"
TORCHCAM_SHIPPED = "torchcam CAM in camkd's format"
FIELDS = ("maps_per_second", "ratios", "cams_over_logits_percent")
NUM_IMAGES = 10_000
SIZE = 32
CLASSES = 10
BATCHES = (256, 1)

MapFunction = Callable[[Tensor, bool], Sequence[Any]]
"""Function ``(x, all_classes)`` that returns maps ``(N, h, w)``: of each class, or of each image's predicted class."""


class Program(NamedTuple):
    """Program that computes maps.

    Args:
        compute: Function that computes the maps.
        expected: Function from the exact maps to the maps that the program should compute.
        format: A name in `FORMATS`.
    """

    compute: MapFunction
    expected: Callable[[Tensor], Tensor] = lambda maps: maps
    format: str = "like_for_like"


@contextmanager
def number_format(format_name: str, gradients: bool = False) -> Iterator[None]:
    """Compute in camkd's number format, or in fp32."""
    bf16 = format_name == "as_it_ships" and pick_precision("auto", torch.device("cpu")) == "bf16"
    with torch.inference_mode(not gradients), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        yield


def camkd_program(predict: Callable[[Tensor], Prediction], format_name: str) -> Program:
    """Make the program of camkd, which computes the maps of all classes at once."""

    def compute(x: Tensor, all_classes: bool) -> Sequence[Tensor]:
        with torch.inference_mode():
            logits, cams, *_ = predict(x)
            assert cams is not None
            return cams.unbind(1) if all_classes else [cams[torch.arange(len(x)), logits.argmax(1)]]

    return Program(compute, format=format_name)


def torchcam_program(extractor: Any, gradients: bool, format_name: str) -> Program:
    """Make a program of torchcam: a forward pass, and a weighted sum or, for Grad-CAM, a backward pass per class."""
    options = {"retain_graph": True} if gradients else {}

    def compute(x: Tensor, all_classes: bool) -> Sequence[Tensor]:
        with number_format(format_name, gradients):
            logits = extractor.model(x)
            class_ids = range(CLASSES) if all_classes else [logits.argmax(1).tolist()]
            return [extractor(class_id, logits, normalized=False, **options)[0] for class_id in class_ids]

    return Program(compute, grad_cam_scale if gradients else lambda maps: maps, format_name)


def grad_cam_program(extractor: Any, target: Any, scale: Any) -> Program:
    """Make a program of pytorch-grad-cam: a forward and a backward pass per class, maps in 0..1 of the size of x."""

    def compute(x: Tensor, all_classes: bool) -> Sequence[Any]:
        targets = [[target(class_id)] * len(x) for class_id in range(CLASSES)] if all_classes else [None]
        return [extractor(x, class_targets) for class_targets in targets]

    def expected(maps: Tensor) -> Tensor:
        return torch.from_numpy(scale(scale(grad_cam_scale(maps).numpy(), (SIZE, SIZE))))

    return Program(compute, expected)


def grad_cam_scale(maps: Tensor) -> Tensor:
    """Scale maps like Grad-CAM, which clips them at zero and averages gradients instead of adding them."""
    return maps.relu() / maps[0].numel()


def make_programs(model: nn.Module, layer: str, head: str) -> dict[str, Program]:
    """Make every installed program. Each gets a copy of the model, because some programs leave hooks in the model."""

    def copy_model(format_name: str = "like_for_like") -> nn.Module:
        return copy.deepcopy(model).to(memory_format=FORMATS[format_name])  # type: ignore[call-overload,no-any-return]

    programs = {CAMKD: camkd_program(partial(camkd.predict, copy_model()), "like_for_like")}
    teacher_fn = make_teacher_fn(copy_model("as_it_ships"), SIZE, TrainConfig(device="cpu"))
    programs[CAMKD_SHIPPED] = camkd_program(teacher_fn, "as_it_ships")
    if methods := import_optional("torchcam.methods"):
        for name, format_name in zip(("torchcam CAM", TORCHCAM_SHIPPED), FORMATS, strict=True):
            extractor = methods.CAM(copy_model(format_name), layer, head)
            programs[name] = torchcam_program(extractor, False, format_name)
        grad_cam = methods.GradCAM(copy_model(), layer)
        programs["torchcam Grad-CAM"] = torchcam_program(grad_cam, True, "like_for_like")
    if package := import_optional("pytorch_grad_cam"):
        target = import_optional("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
        scale = import_optional("pytorch_grad_cam.utils.image").scale_cam_image
        for method in (package.GradCAM, package.HiResCAM):
            model_copy = copy_model()
            extractor = method(model_copy, [model_copy.get_submodule(layer)])
            programs[f"pytorch-grad-cam {method.__name__}"] = grad_cam_program(extractor, target, scale)
    return programs


def check_maps(programs: dict[str, Program], x: Tensor) -> None:
    """Assert that all programs compute the same maps, up to their scale; with a wide tolerance in bf16."""
    for all_classes, (name, program) in product((True, False), programs.items()):
        exact = programs[CAMKD].compute(x, all_classes)
        for maps, program_maps in zip(exact, program.compute(x, all_classes), strict=True):
            expected = program.expected(maps)
            error = (torch.as_tensor(program_maps).detach().float() - expected).abs()
            largest = error.max() / expected.abs().max()
            average = error.mean() / expected.abs().mean()
            is_equal = largest <= 1e-3 or (program.format == "as_it_ships" and average <= 0.1)
            assert is_equal, f"the maps of {name} must equal those of camkd, got a deviation of {largest:.3g}"


def summarize(values: Sequence[float]) -> dict[str, float]:
    """Return median, minimum and maximum."""
    return {"median": median(values), "low": min(values), "high": max(values)}


def maps_per_second(compute: MapFunction, batches: Sequence[Tensor], all_classes: bool, max_seconds: float) -> float:
    """Return maps per second over all batches, or over the first batches until ``max_seconds`` have passed."""
    num_maps = 0
    started = time.perf_counter()
    for x in batches:
        compute(x, all_classes)
        num_maps += len(x) * (CLASSES if all_classes else 1)
        if time.perf_counter() - started > max_seconds:
            break
    return num_maps / (time.perf_counter() - started)


def cost_over_logits(
    model: nn.Module, batches: Sequence[Tensor], format_name: str, min_seconds: float
) -> dict[str, float]:
    """Return the cost of maps over logits only in percent, batch by batch, in alternating order."""
    times: tuple[list[float], list[float]] = ([], [])
    with number_format(format_name):
        camkd.predict(model, batches[0])
        while (step := len(times[0])) < 8 or sum(times[0]) < min_seconds:
            for with_maps in (0, 1) if step % 2 else (1, 0):
                x = batches[step % len(batches)]
                started = time.perf_counter()
                camkd.predict(model, x) if with_maps else model(x)
                times[with_maps].append(time.perf_counter() - started)
    percents = sorted(100 * (maps / logits - 1) for logits, maps in zip(*times, strict=True))
    tail = len(percents) // 4
    quartiles = summarize(percents[tail : len(percents) - tail])
    return {**quartiles, "logits_per_second": len(batches[0]) / median(times[0])}


def compute_ratios(rates: dict[str, list[float]], logits_per_second: float) -> dict[str, Any]:
    """Return speed ratios of camkd over other programs, round by round.

    Args:
        rates: Maps per second by program, in each round.
        logits_per_second: Speed of logits only, times the number of maps per image.

    Returns:
        The ratio over the fastest other program, in both formats; over torchcam in camkd's format; and the limit of the
        ratio if maps cost no time.
    """
    others = [name for name in rates if name not in (CAMKD, CAMKD_SHIPPED, TORCHCAM_SHIPPED)]
    if not others:
        return {}
    fastest = max(others, key=lambda name: median(rates[name]))
    pairs = {"like_for_like": (CAMKD, fastest), "as_it_ships": (CAMKD_SHIPPED, fastest)}
    if TORCHCAM_SHIPPED in rates:
        pairs["both_in_our_format"] = (CAMKD_SHIPPED, TORCHCAM_SHIPPED)
    ratios = {
        format_name: summarize([a / b for a, b in zip(rates[program], rates[reference], strict=True)])
        for format_name, (program, reference) in pairs.items()
    }
    return {"over": fastest, **ratios, "at_most_like_for_like": round(logits_per_second / median(rates[fastest]), 2)}


def measure(name: str, images: Tensor, batch_size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measure a network at a batch size."""
    print(f"{name}, batch {batch_size}", file=sys.stderr, flush=True)
    model = camkd.build(name, CLASSES, SIZE).eval()
    programs = make_programs(model, *LAYERS[name])
    check_maps(programs, images[:64])
    batches = {
        format_name: images.contiguous(memory_format=layout).split(batch_size)
        for format_name, layout in FORMATS.items()
    }
    rates: dict[str, dict[str, list[float]]] = {task: {program: [] for program in programs} for task in TASKS}
    for _, task, (program_name, program) in product(range(options.rounds), TASKS, programs.items()):
        rate = maps_per_second(program.compute, batches[program.format], task == "all", options.seconds)
        rates[task][program_name].append(rate)
    costs = {}
    for format_name, layout in FORMATS.items():
        model.to(memory_format=layout)  # type: ignore[call-overload]
        costs[format_name] = cost_over_logits(
            model, batches[format_name], format_name, options.seconds * options.rounds
        )
    logits = costs["like_for_like"]["logits_per_second"]
    speeds = {
        task: {program: summarize(values) for program, values in by_program.items()}
        for task, by_program in rates.items()
    }
    ratios = {
        task: compute_ratios(by_program, logits * (CLASSES if task == "all" else 1))
        for task, by_program in rates.items()
    }
    return dict(zip(FIELDS, (speeds, ratios, costs), strict=True))


def compare_with_targets(name: str, batch_size: int, results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield each target with its measured values."""
    targets = [("percent over logits only", "<=", MAX_PERCENT_OVER_LOGITS, results["cams_over_logits_percent"])]
    targets += [
        (f"{task}: times {ratios['over']}", ">=", TASKS[task], ratios)
        for task, ratios in results["ratios"].items()
        if ratios
    ]
    for title, sign, target, by_format in targets:
        measured = {format_name: by_format[format_name]["median"] for format_name in FORMATS}
        reached = {
            format_name: value <= target if sign == "<=" else value >= target for format_name, value in measured.items()
        }
        yield {
            "model": name,
            "batch": batch_size,
            "what": title,
            "wanted": f"{sign} {target:g}",
            **measured,
            "reached": reached,
        }


def show(results: dict[tuple[str, int], dict[str, Any]], targets: list[dict[str, Any]]) -> None:
    """Print tables."""

    def format_range(values: dict[str, float], digits: int = 0) -> str:
        return f"{values['median']:,.{digits}f} ({values['low']:,.{digits}f} to {values['high']:,.{digits}f})"

    for (name, batch_size), measured in results.items():
        print(f"\n| {name}, batch {batch_size}: maps/s | of the predicted class | of all classes |\n|---|---|---|")
        for program, speed in measured["maps_per_second"]["predicted"].items():
            print(
                f"| {program} | {format_range(speed)} | {format_range(measured['maps_per_second']['all'][program])} |"
            )
        for format_name, cost in measured["cams_over_logits_percent"].items():
            title = f"logits only, {format_name} (maps cost {format_range(cost, 1)} % more)"
            print(f"| {title} | {cost['logits_per_second']:,.0f} | |")
        for task, ratios in measured["ratios"].items():
            parts = [
                f"{name} {format_range(ratio, 2) if isinstance(ratio, dict) else ratio}"
                for name, ratio in ratios.items()
            ]
            print(f"\n{task} class: {', '.join(parts) or 'no other program is installed'}")
    print("\n| target | wanted | like for like | as it ships |\n|---|---|---|---|")
    for row in targets:
        cells = [f"{row[name]:.2f}, {'reached' if row['reached'][name] else 'not reached'}" for name in FORMATS]
        print(f"| {row['model']}, batch {row['batch']}, {row['what']} | {row['wanted']} | {' | '.join(cells)} |")


def main() -> None:
    """Check, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="shapes", help="dataset of the images; the training images are used")
    parser.add_argument("--models", nargs="+", choices=LAYERS, default=["resnet8", "cam-net"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="time limit for a program, task, batch size and round"
    )
    parser.add_argument("--default-memory", action="store_true", help="keep the memory settings of the C library")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    if not options.default_memory:
        keep_freed_memory()
    pixels = torch.from_numpy(np.array(open_data(options.data, size=SIZE).train.images[:NUM_IMAGES]))
    images = (pixels.permute(0, 3, 1, 2) / 255).contiguous()
    results = {
        (model, batch_size): measure(model, images, batch_size, options)
        for model, batch_size in product(options.models, BATCHES)
    }
    targets = [row for case, measured in results.items() for row in compare_with_targets(*case, measured)]
    if options.json:
        by_field = {
            field: {
                model: {batch_size: results[model, batch_size][field] for batch_size in BATCHES}
                for model in options.models
            }
            for field in FIELDS
        }
        print(json.dumps({**vars(options), **by_field, "targets": targets, "environment": collect_environment()}))
    else:
        show(results, targets)


if __name__ == "__main__":
    main()
