"""How much of the machine does a training step use, and what bounds it?

    python benchmarks/bench_limit.py --models cam-net resnet8 wrn-16-4 --json

A step is forward, backward and update as in camkd's training loop: channels-last, bf16 where the processor is good at
it, fused SGD. Its floating-point operations, 3 x 2 x multiply-accumulates a picture, over the time it takes, are
compared with the best that ``torch.matmul`` reaches in the same number format, on the CPU and on a GPU where there is
one. A profile of some further steps says where the time goes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

import camkd
from camkd.config import TrainConfig
from camkd.models import profile
from camkd.models.eval_mode import eval_mode
from camkd.runs.folder import collect_environment
from camkd.utils.devices import pick_precision

CLASSES, SIZE, PROFILED = 10, 32, 5
SIDES = {"cpu": (256, 512, 1024, 2048, 4096), "cuda": (2048, 4096, 8192, 16384)}
ELEMENTWISE = {"relu", "threshold_backward", "clamp_min", "add", "sub", "mul", "div", "copy", "to_copy"}
PARTS = {"normalisation": ("batch_norm",), "optimiser": ("sgd", "foreach", "vector_norm", "Optimizer.")}


def seconds_of(call: Callable[[], Any], device: str) -> float:
    """How long ``call`` takes, until the device has done it."""
    started = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def peak(device: str, dtype: torch.dtype) -> dict[int, float]:
    """The best FLOP/s of a matrix multiplication, by the side of the square matrices."""
    best = {}
    for side in SIDES[device]:
        a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
        multiply = partial(torch.matmul, a, b, out=torch.empty_like(a))
        times = [seconds_of(multiply, device)]
        while len(times) < 5 or sum(times) < 0.5:
            times.append(seconds_of(multiply, device))
        best[side] = 2 * side**3 / min(times)
    return best


def step_of(model: nn.Module, batch: int, device: str, bf16: bool) -> Callable[[], None]:
    """A training step of ``model`` on pictures that are there already."""
    parameters, clip = list(model.parameters()), TrainConfig().grad_clip
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)
    x = torch.rand(batch, 3, SIZE, SIZE, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % CLASSES

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            logits = model(x)
        loss = nn.functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()

    return step


def kernel(weight: list[int] | torch.Size) -> str:
    """What kind of convolution has this weight ``(outputs, inputs of a group, height, width)``."""
    if weight[1] == 1 and weight[0] > 1:
        return "depthwise convolutions"
    return f"{weight[2]}x{weight[3]} convolutions"


def macs_of(model: nn.Module) -> Counter[str]:
    """Multiply-accumulates of one picture by kind of convolution; linear layers go uncounted here."""
    counts: Counter[str] = Counter()

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        counts[kernel(module.weight.shape)] += output[0].numel() * module.weight[0].numel()

    hooks = [layer.register_forward_hook(count) for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    with eval_mode(model), torch.no_grad():
        model(torch.zeros(1, 3, SIZE, SIZE, device=next(model.parameters()).device))
    for hook in hooks:
        hook.remove()
    return counts


def output_format(name: str, shapes: list[list[int]]) -> str:
    """Which kind of work an operator does."""
    if name.startswith("aten::") and "conv" in name:
        weight = shapes[2 if name.endswith("backward") else 1 :][:1]
        return kernel(weight[0]) if weight and len(weight[0]) == 4 else "other"
    if name.removeprefix("aten::").strip("_") in ELEMENTWISE:
        return "elementwise"
    return next((kind for kind, parts in PARTS.items() if any(part in name for part in parts)), "other")


def where_time_goes(step: Callable[[], None], device: str, seconds: float) -> dict[str, float]:
    """Shares of a step of ``seconds`` by kind of work; on a GPU, ``idle`` is when none of its kernels runs."""
    gpu = device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profiler(activities=activities, record_shapes=True) as recorded:
        for _ in range(PROFILED):
            step()
    times: Counter[str] = Counter()
    for event in recorded.key_averages(group_by_input_shape=True):
        if event.device_type == torch.autograd.DeviceType.CPU:  # a kernel's time also stands at its operator
            taken = event.self_device_time_total if gpu else event.self_cpu_time_total
            times[output_format(event.key, event.input_shapes)] += taken
    if gpu:
        times["idle"] = max(0, PROFILED * seconds * 1e6 - sum(times.values()))
    return {kind: taken / sum(times.values()) for kind, taken in times.most_common()}


def measure(name: str, device: str, bf16: bool, top: float, options: argparse.Namespace) -> dict[str, Any]:
    """What one network's training step reaches on one device, and why not more."""
    print(f"{name} on {device}", file=sys.stderr, flush=True)
    model = camkd.build(name, CLASSES, SIZE).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    macs, by_kind = profile(model, SIZE).macs, macs_of(model)
    step = step_of(model.train(), options.batch, device, bf16)
    times = [seconds_of(step, device) for _ in range(options.steps + 5)][5:]
    seconds = median(times)
    operations = 3 * 2 * options.batch
    shares = where_time_goes(step, device, seconds)
    reached = {
        kind: operations * count / (shares[kind] * seconds) / top for kind, count in by_kind.items() if kind in shares
    }
    found = {
        "macs": macs,
        "step_seconds": {"median": seconds, "low": min(times), "high": max(times)},
        "images_per_second": options.batch / seconds,
        "flops": operations * macs / seconds,
        "share_of_peak": operations * macs / seconds / top,
        "share_of_step": shares,
        "share_of_peak_while_it_runs": reached,
    }
    return {**found, "bound": bound(name, found)}


def bound(name: str, found: dict[str, Any]) -> str:
    """What bounds a step, in two sentences, from the measured shares."""
    shares, reached = found["share_of_step"], found["share_of_peak_while_it_runs"]
    rest = {kind: share for kind, share in shares.items() if kind not in reached}
    convolving = 1 - sum(rest.values())
    kinds = ", ".join(f"{kind} {shares[kind]:.0%} at {reached[kind]:.0%}" for kind in shares if kind in reached)
    lost = {**rest, **{kind: shares[kind] * max(0.0, 1 - part) for kind, part in reached.items()}}
    most = max(lost, key=lambda kind: lost[kind])
    what = f"{most}, for as far as they stay below the peak" if most in reached else most
    return (
        f"{name} reaches {found['share_of_peak']:.0%} of the peak: convolutions take {convolving:.0%} of the step and "
        f"run at {found['share_of_peak'] / convolving:.0%} of the peak meanwhile ({kinds}). What bounds it most is "
        f"{what} ({lost[most]:.0%} of the step lost); all that is no convolution takes {1 - convolving:.0%} "
        f"({', '.join(f'{kind} {share:.1%}' for kind, share in rest.items())})."
    )


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["cam-net", "resnet8", "wrn-16-4"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        form = pick_precision("auto", torch.device(device))
        sides = peak(device, torch.bfloat16 if form == "bf16" else torch.float32)
        top = max(sides.values())
        rows = {name: measure(name, device, form == "bf16", top, options) for name in options.models}
        results[device] = {"format": form, "peak_flops": top, "peak_by_side": sides, "models": rows}
    if options.json:
        print(json.dumps({**vars(options), "environment": collect_environment(), "devices": results}))
        return
    for device, found in results.items():
        print(f"\n{device}: {found['peak_flops'] / 1e9:,.0f} GFLOP/s at most in {found['format']} (torch.matmul)\n")
        print("| network | pictures/s | GFLOP/s | of the peak |\n|---|---|---|---|")
        for name, row in found["models"].items():
            numbers = f"{row['images_per_second']:,.0f} | {row['flops'] / 1e9:,.0f} | {row['share_of_peak']:.0%}"
            print(f"| {name} | {numbers} |")
        for row in found["models"].values():
            print(f"\n{row['bound']}")


if __name__ == "__main__":
    main()
