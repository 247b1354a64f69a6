"""Speed of class activation maps compared with torchcam and pytorch-grad-cam, for equal networks and weights.

    python benchmarks/bench_cams.py --models resnet8 cam-net wrn-16-4 --json

The script measures maps per second of the predicted class and of all classes, and the cost of maps over logits only.

- "like for like": fp32 in the contiguous memory format, for every library.
- "as it ships": camkd's inference of a frozen network, in channels-last memory format, with folded batch
  normalization, in bf16 where the processor is faster in it.

First the script asserts that all libraries compute the same maps. The libraries then run in turns. Results are medians
over the rounds with the lowest and the highest value; the cost over logits has quartiles. For every library the process
keeps freed memory, unless --default-memory is given.
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
from peers import peer
from torch import Tensor, nn

import camkd
from camkd.config import TrainConfig
from camkd.data.sources import open_data
from camkd.distill.cache.build import make_teacher_fn
from camkd.runs.folder import collect_environment
from camkd.types import Prediction
from camkd.utils.devices import keep_freed_memory, pick_precision

LAYERS = {"resnet8": ("layer3", "fc"), "cam-net": ("body", "head"), "wrn-16-4": ("relu", "fc")}
"""By network: the layer whose mean the head receives, and the head."""
TASKS = {"predicted": 3.0, "all": 10.0}
"""By classes of the maps: the target for the speed of camkd, relative to the fastest other library."""
OVER_LOGITS = 3.0
"""Target for the cost of maps over logits only, in per cent."""
MEMORY_FORMATS = {"like_for_like": torch.contiguous_format, "as_it_ships": torch.channels_last}
CAMKD = "camkd"
CAMKD_SHIPPED = "camkd as it ships"
TORCHCAM_SHIPPED = "torchcam CAM in camkd's format"
FIELDS = ("maps_per_second", "ratios", "cams_over_logits_percent")
MAX_IMAGES = 10_000
SIZE = 32
CLASSES = 10
BATCH_SIZES = (256, 1)

ComputeMaps = Callable[[Tensor, bool], Sequence[Any]]
"""``compute(x, all_classes)``: maps ``(N, h, w)`` of each class, or a single entry for each image's predicted class."""


class Contender(NamedTuple):
    """A way to compute maps.

    Attributes:
        compute: the function to measure.
        transform: conversion of camkd's maps to the form that this library returns.
        setting: ``like_for_like`` or ``as_it_ships``.
    """

    compute: ComputeMaps
    transform: Callable[[Tensor], Tensor] = lambda maps: maps
    setting: str = "like_for_like"


@contextmanager
def number_format(setting: str, gradients: bool = False) -> Iterator[None]:
    """Compute in the number format of a setting, in inference mode unless gradients are needed."""
    bf16 = setting == "as_it_ships" and pick_precision("auto", torch.device("cpu")) == "bf16"
    with torch.inference_mode(not gradients), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        yield


def camkd_contender(predict: Callable[[Tensor], Prediction], setting: str) -> Contender:
    """Measure camkd, which computes the maps of all classes at once."""

    def compute(x: Tensor, all_classes: bool) -> Sequence[Tensor]:
        with torch.inference_mode():
            logits, cams, *_ = predict(x)
            assert cams is not None
            return cams.unbind(1) if all_classes else [cams[torch.arange(len(x)), logits.argmax(1)]]

    return Contender(compute, setting=setting)


def torchcam_contender(extractor: Any, gradients: bool, setting: str) -> Contender:
    """Measure torchcam: one forward pass, and a weighted sum per class; Grad-CAM also takes a backward pass."""
    options = {"retain_graph": True} if gradients else {}

    def compute(x: Tensor, all_classes: bool) -> Sequence[Tensor]:
        with number_format(setting, gradients):
            scores = extractor.model(x)
            class_ids = range(CLASSES) if all_classes else [scores.argmax(1).tolist()]
            return [extractor(classes, scores, normalized=False, **options)[0] for classes in class_ids]

    return Contender(compute, gradcam_maps if gradients else lambda maps: maps, setting)


def grad_cam_contender(extractor: Any, target_class: Any, rescale: Any) -> Contender:
    """Measure pytorch-grad-cam: its API takes a forward and a backward pass per class.

    Its maps are in 0..1 and as large as the images.
    """

    def compute(x: Tensor, all_classes: bool) -> Sequence[Any]:
        targets = [[target_class(k)] * len(x) for k in range(CLASSES)] if all_classes else [None]
        return [extractor(x, targets_of_batch) for targets_of_batch in targets]

    def transform(maps: Tensor) -> Tensor:
        return torch.from_numpy(rescale(rescale(gradcam_maps(maps).numpy(), (SIZE, SIZE))))

    return Contender(compute, transform)


def gradcam_maps(maps: Tensor) -> Tensor:
    """Convert exact maps to Grad-CAM: the positive part, with the mean of the gradients instead of their sum."""
    return maps.relu() / maps[0].numel()


def build_contenders(model: nn.Module, layer: str, head: str) -> dict[str, Contender]:
    """Return all contenders by name, each with its own copy of the network, as some leave hooks in it.

    Args:
        model: the network.
        layer: name of the layer whose mean the head receives.
        head: name of the head.
    """

    def copy_of(setting: str = "like_for_like") -> nn.Module:
        return copy.deepcopy(model).to(memory_format=MEMORY_FORMATS[setting])  # type: ignore[call-overload,no-any-return]

    contenders = {CAMKD: camkd_contender(partial(camkd.predict, copy_of()), "like_for_like")}
    frozen = make_teacher_fn(copy_of("as_it_ships"), SIZE, TrainConfig(device="cpu"))
    contenders[CAMKD_SHIPPED] = camkd_contender(frozen, "as_it_ships")
    if methods := peer("torchcam.methods"):
        for name, setting in zip(("torchcam CAM", TORCHCAM_SHIPPED), MEMORY_FORMATS, strict=True):
            contenders[name] = torchcam_contender(methods.CAM(copy_of(setting), layer, head), False, setting)
        contenders["torchcam Grad-CAM"] = torchcam_contender(methods.GradCAM(copy_of(), layer), True, "like_for_like")
    if package := peer("pytorch_grad_cam"):
        target_class = peer("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
        rescale = peer("pytorch_grad_cam.utils.image").scale_cam_image
        for method in (package.GradCAM, package.HiResCAM):
            network = copy_of()
            extractor = method(network, [network.get_submodule(layer)])
            contenders[f"pytorch-grad-cam {method.__name__}"] = grad_cam_contender(extractor, target_class, rescale)
    return contenders


def check_maps(contenders: dict[str, Contender], x: Tensor) -> None:
    """Assert that every contender computes the maps of camkd, up to its transform. The tolerance in bf16 is larger.

    Args:
        contenders: all contenders by name.
        x: images ``(N, 3, H, W)``.
    """
    for all_classes, (name, contender) in product((True, False), contenders.items()):
        reference = contenders[CAMKD].compute(x, all_classes)
        for reference_maps, maps in zip(reference, contender.compute(x, all_classes), strict=True):
            expected = contender.transform(reference_maps)
            error = (torch.as_tensor(maps).detach().float() - expected).abs()
            max_error = error.max() / expected.abs().max()
            mean_error = error.mean() / expected.abs().mean()
            is_close = max_error <= 1e-3 or (contender.setting == "as_it_ships" and mean_error <= 0.1)
            assert is_close, f"{name} must compute the maps of camkd, got a relative error of {float(max_error):.1e}"


def summarize(values: Sequence[float]) -> dict[str, float]:
    """Return median, lowest and highest value."""
    return {"median": median(values), "low": min(values), "high": max(values)}


def measure_rate(compute: ComputeMaps, batches: Sequence[Tensor], all_classes: bool, seconds: float) -> float:
    """Measure maps per second over all batches, or as many as fit into the time limit.

    Args:
        compute: the function to measure.
        batches: images ``(N, 3, H, W)``.
        all_classes: compute the maps of all classes, not only of the predicted class.
        seconds: time limit.
    """
    num_maps = 0
    started = time.perf_counter()
    for batch in batches:
        compute(batch, all_classes)
        num_maps += len(batch) * (CLASSES if all_classes else 1)
        if time.perf_counter() - started > seconds:
            break
    return num_maps / (time.perf_counter() - started)


def measure_cost_over_logits(
    model: nn.Module, batches: Sequence[Tensor], setting: str, seconds: float
) -> dict[str, float]:
    """Measure the cost of maps over logits only, batch by batch, both directly after each other in alternating order.

    Args:
        model: the network, in the memory format of the setting.
        batches: images ``(N, 3, H, W)``.
        setting: ``like_for_like`` or ``as_it_ships``.
        seconds: shortest duration of the measurement.

    Returns:
        Median and quartiles of the cost in per cent, and ``logits_per_second``.
    """
    logits_times: list[float] = []
    maps_times: list[float] = []
    with number_format(setting):
        camkd.predict(model, batches[0])
        while (step := len(logits_times)) < 8 or sum(logits_times) < seconds:
            x = batches[step % len(batches)]
            for with_maps in (False, True) if step % 2 else (True, False):
                started = time.perf_counter()
                camkd.predict(model, x) if with_maps else model(x)
                (maps_times if with_maps else logits_times).append(time.perf_counter() - started)
    costs = sorted(100 * (maps / logits - 1) for logits, maps in zip(logits_times, maps_times, strict=True))
    tail = len(costs) // 4
    return {
        **summarize(costs[tail : len(costs) - tail]),
        "logits_per_second": len(batches[0]) / median(logits_times),
    }


def speed_ratios(rates: dict[str, list[float]], logits_rate: float) -> dict[str, Any]:
    """Return the speed of camkd relative to the fastest other library, round by round.

    Args:
        rates: maps per second of each round, by contender.
        logits_rate: maps per second if maps cost no time over logits.

    Returns:
        The ratio in each setting, the ratio to torchcam in camkd's format, and the upper bound of the first ratio.
    """
    others = [name for name in rates if name not in (CAMKD, CAMKD_SHIPPED, TORCHCAM_SHIPPED)]
    if not others:
        return {}
    fastest = max(others, key=lambda name: median(rates[name]))
    pairs = {"like_for_like": (CAMKD, fastest), "as_it_ships": (CAMKD_SHIPPED, fastest)}
    if TORCHCAM_SHIPPED in rates:
        pairs["both_in_our_format"] = (CAMKD_SHIPPED, TORCHCAM_SHIPPED)
    ratios = {
        setting: summarize([a / b for a, b in zip(rates[numerator], rates[denominator], strict=True)])
        for setting, (numerator, denominator) in pairs.items()
    }
    return {"over": fastest, **ratios, "at_most_like_for_like": round(logits_rate / median(rates[fastest]), 2)}


def measure(name: str, images: Tensor, batch_size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measure a network at one batch size.

    Args:
        name: name of the network.
        images: ``(N, 3, H, W)``.
        batch_size: images per batch.
        options: command-line options.

    Returns:
        Maps per second, ratios, and the cost over logits, by the names in `FIELDS`.
    """
    print(f"{name}, batch {batch_size}", file=sys.stderr, flush=True)
    model = camkd.build(name, CLASSES, SIZE).eval()
    contenders = build_contenders(model, *LAYERS[name])
    check_maps(contenders, images[:64])
    batches = {
        setting: images.contiguous(memory_format=memory_format).split(batch_size)
        for setting, memory_format in MEMORY_FORMATS.items()
    }
    rates: dict[str, dict[str, list[float]]] = {task: {contender: [] for contender in contenders} for task in TASKS}
    for _, task, (contender_name, contender) in product(range(options.rounds), TASKS, contenders.items()):
        rate = measure_rate(contender.compute, batches[contender.setting], task == "all", options.seconds)
        rates[task][contender_name].append(rate)
    costs = {}
    for setting, memory_format in MEMORY_FORMATS.items():
        model.to(memory_format=memory_format)  # type: ignore[call-overload]
        costs[setting] = measure_cost_over_logits(model, batches[setting], setting, options.seconds * options.rounds)
    logits_rate = costs["like_for_like"]["logits_per_second"]
    maps_per_second = {task: {key: summarize(values) for key, values in by.items()} for task, by in rates.items()}
    ratios = {task: speed_ratios(by, logits_rate * (CLASSES if task == "all" else 1)) for task, by in rates.items()}
    return dict(zip(FIELDS, (maps_per_second, ratios, costs), strict=True))


def compare_with_targets(name: str, batch_size: int, results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield each target with the measured value and whether it is reached.

    Args:
        name: name of the network.
        batch_size: images per batch.
        results: result of `measure`.
    """
    targets = [("per cent over logits alone", "<=", OVER_LOGITS, results["cams_over_logits_percent"])]
    targets += [
        (f"{task}: times {ratios['over']}", ">=", TASKS[task], ratios)
        for task, ratios in results["ratios"].items()
        if ratios
    ]
    for label, sign, target, values in targets:
        measured = {setting: values[setting]["median"] for setting in MEMORY_FORMATS}
        reached = {setting: v <= target if sign == "<=" else v >= target for setting, v in measured.items()}
        row = {"model": name, "batch": batch_size, "what": label, "wanted": f"{sign} {target:g}"}
        yield {**row, **measured, "reached": reached}


def print_tables(results: dict[tuple[str, int], dict[str, Any]], targets: list[dict[str, Any]]) -> None:
    """Print the results and the targets as Markdown tables.

    Args:
        results: results of `measure`, by network and batch size.
        targets: rows of `compare_with_targets`.
    """

    def text(values: dict[str, float], digits: int = 0) -> str:
        return f"{values['median']:,.{digits}f} ({values['low']:,.{digits}f} to {values['high']:,.{digits}f})"

    for (name, batch_size), result in results.items():
        print(f"\n| {name}, batch {batch_size}: maps/s | of the predicted class | of all classes |\n|---|---|---|")
        for contender, values in result["maps_per_second"]["predicted"].items():
            print(f"| {contender} | {text(values)} | {text(result['maps_per_second']['all'][contender])} |")
        for setting, values in result["cams_over_logits_percent"].items():
            cost = f"maps cost {text(values, 1)} % more"
            print(f"| logits only, {setting} ({cost}) | {values['logits_per_second']:,.0f} | |")
        for task, ratios in result["ratios"].items():
            parts = [f"{key} {text(value, 2) if isinstance(value, dict) else value}" for key, value in ratios.items()]
            label = "all classes" if task == "all" else "predicted class"
            print(f"\n{label}: {', '.join(parts) or 'no other library to compare with'}")
    print("\n| target | required | like for like | as it ships |\n|---|---|---|---|")
    for row in targets:
        cells = [f"{row[key]:.2f}, {'reached' if row['reached'][key] else 'not reached'}" for key in MEMORY_FORMATS]
        print(f"| {row['model']}, batch {row['batch']}, {row['what']} | {row['wanted']} | {' | '.join(cells)} |")


def main() -> None:
    """Measure all networks and batch sizes, and print tables or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="shapes", help="dataset; its training images are used")
    parser.add_argument("--models", nargs="+", choices=LAYERS, default=["resnet8", "cam-net"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="time limit per library, task, batch size and round")
    parser.add_argument("--default-memory", action="store_true", help="keep the memory settings of the C library")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not options.default_memory:
        keep_freed_memory()
    pixels = torch.from_numpy(np.array(open_data(options.data, size=SIZE).train.images[:MAX_IMAGES]))
    images = (pixels.permute(0, 3, 1, 2) / 255).contiguous()
    results = {
        (model, batch_size): measure(model, images, batch_size, options)
        for model, batch_size in product(options.models, BATCH_SIZES)
    }
    targets = [row for case, result in results.items() for row in compare_with_targets(*case, result)]
    if options.json:
        by_field = {
            field: {m: {b: results[m, b][field] for b in BATCH_SIZES} for m in options.models} for field in FIELDS
        }
        print(json.dumps({**vars(options), **by_field, "targets": targets, "environment": collect_environment()}))
    else:
        print_tables(results, targets)


if __name__ == "__main__":
    main()
