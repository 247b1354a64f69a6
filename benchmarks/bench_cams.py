"""How fast are class activation maps, beside torchcam and pytorch-grad-cam on the same network with the same weights?

    python benchmarks/bench_cams.py --models resnet8 cam-net wrn-16-4 --json

Heatmaps per second, of the predicted class and of all classes, and what maps cost over logits alone. Like for like is
fp32 in torch's usual memory layout, for everyone. As it ships is how camkd asks a frozen network: channels-last, batch
normalisation folded, bf16 where the processor is good at it. Freed memory stays with the process, for everyone, unless
--default-memory is given. First it is asserted that all draw the same maps. Programs take turns; figures are medians
over the rounds with the lowest and the highest, of the cost over logits with its quartiles.
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

# By network: the layer whose average the head sees, and the head.
LAYERS = {"resnet8": ("layer3", "fc"), "cam-net": ("body", "head"), "wrn-16-4": ("relu", "fc")}
TASKS = {"predicted": 3.0, "all": 10.0}  # whose maps, and how many times the faster of the others is aimed at
OVER_LOGITS = 3.0  # per cent that maps may cost over logits alone
FORMATS = {"like_for_like": torch.contiguous_format, "as_it_ships": torch.channels_last}
OURS, SHIPPED, THEIRS_SHIPPED = "camkd", "camkd as it ships", "torchcam CAM in camkd's format"
FIELDS = ("maps_per_second", "ratios", "cams_over_logits_percent")
PICTURES, SIZE, CLASSES, BATCHES = 10_000, 32, 10, (256, 1)

Draw = Callable[[Tensor, bool], Sequence[Any]]
"""``draw(x, every)``: the maps ``(N, h, w)`` of every class in turn, or those of each picture's predicted class."""


class Program(NamedTuple):
    """A way to draw maps; what it makes of the plain sums that ours are; its format."""

    draw: Draw
    after: Callable[[Tensor], Tensor] = lambda maps: maps
    how: str = "like_for_like"


@contextmanager
def number_format(how: str, gradients: bool = False) -> Iterator[None]:
    """Compute in camkd's number format or in fp32."""
    bf16 = how == "as_it_ships" and pick_precision("auto", torch.device("cpu")) == "bf16"
    with torch.inference_mode(not gradients), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        yield


def ours(answer: Callable[[Tensor], Prediction], how: str) -> Program:
    """All classes' maps are there at once."""

    def draw(x: Tensor, every: bool) -> Sequence[Tensor]:
        with torch.inference_mode():
            logits, cams, *_ = answer(x)
            assert cams is not None
            return cams.unbind(1) if every else [cams[torch.arange(len(x)), logits.argmax(1)]]

    return Program(draw, how=how)


def torchcam(extract: Any, gradients: bool, how: str) -> Program:
    """One forward pass, then a weighted sum a class; for Grad-CAM also a backward pass to the layer."""
    options = {"retain_graph": True} if gradients else {}

    def draw(x: Tensor, every: bool) -> Sequence[Tensor]:
        with number_format(how, gradients):
            scores = extract.model(x)
            asked = range(CLASSES) if every else [scores.argmax(1).tolist()]
            return [extract(classes, scores, normalized=False, **options)[0] for classes in asked]

    return Program(draw, positive if gradients else lambda maps: maps, how)


def grad_cam(extract: Any, target: Any, scale: Any) -> Program:
    """A forward and a backward pass a class: there is no other way to ask it. Its maps are in 0..1, as large as x."""

    def draw(x: Tensor, every: bool) -> Sequence[Any]:
        asked = [[target(k)] * len(x) for k in range(CLASSES)] if every else [None]
        return [extract(x, targets) for targets in asked]

    return Program(draw, lambda maps: torch.from_numpy(scale(scale(positive(maps).numpy(), (SIZE, SIZE)))))


def positive(maps: Tensor) -> Tensor:
    """Grad-CAM keeps what speaks for the class, and averages gradients instead of adding them."""
    return maps.relu() / maps[0].numel()


def programs(model: nn.Module, layer: str, head: str) -> dict[str, Program]:
    """Every program there is, each with a network of its own, as some leave hooks in it."""

    def own(how: str = "like_for_like") -> nn.Module:
        return copy.deepcopy(model).to(memory_format=FORMATS[how])  # type: ignore[call-overload,no-any-return]

    found = {OURS: ours(partial(camkd.predict, own()), "like_for_like")}
    frozen = make_teacher_fn(own("as_it_ships"), SIZE, TrainConfig(device="cpu"))
    found[SHIPPED] = ours(frozen, "as_it_ships")
    if methods := peer("torchcam.methods"):
        for name, how in zip(("torchcam CAM", THEIRS_SHIPPED), FORMATS, strict=True):
            found[name] = torchcam(methods.CAM(own(how), layer, head), False, how)
        found["torchcam Grad-CAM"] = torchcam(methods.GradCAM(own(), layer), True, "like_for_like")
    if package := peer("pytorch_grad_cam"):
        target = peer("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
        scale = peer("pytorch_grad_cam.utils.image").scale_cam_image
        for method in (package.GradCAM, package.HiResCAM):
            network = own()
            extract = method(network, [network.get_submodule(layer)])
            found[f"pytorch-grad-cam {method.__name__}"] = grad_cam(extract, target, scale)
    return found


def check(found: dict[str, Program], x: Tensor) -> None:
    """Assert that every program draws our maps, up to what it makes of them; in bf16, coarsely."""
    for every, (name, program) in product((True, False), found.items()):
        for maps, theirs in zip(found[OURS].draw(x, every), program.draw(x, every), strict=True):
            expected = program.after(maps)
            error = (torch.as_tensor(theirs).detach().float() - expected).abs()
            fine, coarse = error.max() / expected.abs().max(), error.mean() / expected.abs().mean()
            assert fine <= 1e-3 or (program.how == "as_it_ships" and coarse <= 0.1), f"{name} draws other maps"


def figure(values: Sequence[float]) -> dict[str, float]:
    """Their median, lowest and highest."""
    return {"median": median(values), "low": min(values), "high": max(values)}


def rate(draw: Draw, parts: Sequence[Tensor], every: bool, seconds: float) -> float:
    """Maps a second over all ``parts``, or as many of them as ``seconds`` are enough for."""
    done, started = 0, time.perf_counter()
    for part in parts:
        draw(part, every)
        done += len(part) * (CLASSES if every else 1)
        if time.perf_counter() - started > seconds:
            break
    return done / (time.perf_counter() - started)


def over_logits(model: nn.Module, parts: Sequence[Tensor], how: str, seconds: float) -> dict[str, float]:
    """What maps cost over logits alone, in per cent: batch by batch, one right after the other, in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    with number_format(how):
        camkd.predict(model, parts[0])
        while (step := len(times[0])) < 8 or sum(times[0]) < seconds:
            for which in (0, 1) if step % 2 else (1, 0):
                x, started = parts[step % len(parts)], time.perf_counter()
                camkd.predict(model, x) if which else model(x)
                times[which].append(time.perf_counter() - started)
    shares = sorted(100 * (maps / logits - 1) for logits, maps in zip(*times, strict=True))
    tail = len(shares) // 4
    return {**figure(shares[tail : len(shares) - tail]), "logits_per_second": len(parts[0]) / median(times[0])}


def ratios(rates: dict[str, list[float]], logits: float) -> dict[str, Any]:
    """Ours over the faster of the others, round by round; in our format both; and if our maps cost no time at all."""
    others = [name for name in rates if name not in (OURS, SHIPPED, THEIRS_SHIPPED)]
    if not others:
        return {}
    fastest = max(others, key=lambda name: median(rates[name]))
    pairs = {"like_for_like": (OURS, fastest), "as_it_ships": (SHIPPED, fastest)}
    if THEIRS_SHIPPED in rates:
        pairs["both_in_our_format"] = (SHIPPED, THEIRS_SHIPPED)
    found = {how: figure([a / b for a, b in zip(rates[x], rates[y], strict=True)]) for how, (x, y) in pairs.items()}
    return {"over": fastest, **found, "at_most_like_for_like": round(logits / median(rates[fastest]), 2)}


def measure(name: str, pictures: Tensor, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """One network's figures at one batch size."""
    print(f"{name}, batch {batch}", file=sys.stderr, flush=True)
    model = camkd.build(name, CLASSES, SIZE).eval()
    found = programs(model, *LAYERS[name])
    check(found, pictures[:64])
    parts = {how: pictures.contiguous(memory_format=layout).split(batch) for how, layout in FORMATS.items()}
    rates: dict[str, dict[str, list[float]]] = {task: {which: [] for which in found} for task in TASKS}
    for _, task, (which, program) in product(range(options.rounds), TASKS, found.items()):
        rates[task][which].append(rate(program.draw, parts[program.how], task == "all", options.seconds))
    costs = {}
    for how, layout in FORMATS.items():
        model.to(memory_format=layout)  # type: ignore[call-overload]
        costs[how] = over_logits(model, parts[how], how, options.seconds * options.rounds)
    logits = costs["like_for_like"]["logits_per_second"]
    rated = {task: {which: figure(values) for which, values in by.items()} for task, by in rates.items()}
    over = {task: ratios(by, logits * (CLASSES if task == "all" else 1)) for task, by in rates.items()}
    return dict(zip(FIELDS, (rated, over, costs), strict=True))


def targets(name: str, batch: int, found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What was aimed at, what came out, and whether that is enough."""
    aims = [("per cent over logits alone", "<=", OVER_LOGITS, found["cams_over_logits_percent"])]
    aims += [(f"{task}: times {by['over']}", ">=", TASKS[task], by) for task, by in found["ratios"].items() if by]
    for what, sign, aim, by in aims:
        measured = {how: by[how]["median"] for how in FORMATS}
        reached = {how: value <= aim if sign == "<=" else value >= aim for how, value in measured.items()}
        yield {"model": name, "batch": batch, "what": what, "wanted": f"{sign} {aim:g}", **measured, "reached": reached}


def show(figures: dict[tuple[str, int], dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """Print tables."""

    def text(by: dict[str, float], digits: int = 0) -> str:
        return f"{by['median']:,.{digits}f} ({by['low']:,.{digits}f} to {by['high']:,.{digits}f})"

    for (name, batch), found in figures.items():
        print(f"\n| {name}, batch {batch}: maps/s | of the predicted class | of all classes |\n|---|---|---|")
        for program, by in found["maps_per_second"]["predicted"].items():
            print(f"| {program} | {text(by)} | {text(found['maps_per_second']['all'][program])} |")
        for how, by in found["cams_over_logits_percent"].items():
            print(f"| logits alone, {how} (maps cost {text(by, 1)} % more) | {by['logits_per_second']:,.0f} | |")
        for task, by in found["ratios"].items():
            parts = [f"{how} {text(part, 2) if isinstance(part, dict) else part}" for how, part in by.items()]
            print(f"\n{task} class: {', '.join(parts) or 'nothing to compare with'}")
    print("\n| target | wanted | like for like | as it ships |\n|---|---|---|---|")
    for row in rows:
        cells = [f"{row[how]:.2f}, {'reached' if row['reached'][how] else 'not reached'}" for how in FORMATS]
        print(f"| {row['model']}, batch {row['batch']}, {row['what']} | {row['wanted']} | {' | '.join(cells)} |")


def main() -> None:
    """Parse, check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="shapes", help="whose training pictures")
    parser.add_argument("--models", nargs="+", choices=LAYERS, default=["resnet8", "cam-net"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="at most, for a program, task, batch size and round")
    parser.add_argument("--default-memory", action="store_true", help="leave the C library's memory settings alone")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not options.default_memory:
        keep_freed_memory()
    images = torch.from_numpy(np.array(open_data(options.data, size=SIZE).train.images[:PICTURES]))
    pictures = (images.permute(0, 3, 1, 2) / 255).contiguous()
    figures = {(m, batch): measure(m, pictures, batch, options) for m, batch in product(options.models, BATCHES)}
    rows = [row for case, found in figures.items() for row in targets(*case, found)]
    if options.json:
        by = {field: {m: {b: figures[m, b][field] for b in BATCHES} for m in options.models} for field in FIELDS}
        print(json.dumps({**vars(options), **by, "targets": rows, "environment": collect_environment()}))
    else:
        show(figures, rows)


if __name__ == "__main__":
    main()
