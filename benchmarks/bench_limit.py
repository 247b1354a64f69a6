"""Share of the machine's peak arithmetic speed that a training step reaches, and the kinds of work that limit it.

    python benchmarks/bench_limit.py --models cam-net resnet8 wrn-16-4 --json

A step is forward pass, backward pass and update as in camkd's training loop: channels-last, bf16 where it is faster,
fused SGD. Its floating-point operations are 3 x 2 x multiply-accumulates per image. The operations per second are
compared with the best of ``torch.matmul`` in the same number format, on the CPU and, if there is one, on a GPU. A
profile of further steps has the time of each kind of work.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
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

CLASSES = 10
SIZE = 32
PROFILED_STEPS = 5
WARM_UP_STEPS = 5
MATRIX_SIDES = {"cpu": (256, 512, 1024, 2048, 4096), "cuda": (2048, 4096, 8192, 16384)}
ELEMENTWISE = {"relu", "threshold_backward", "clamp_min", "add", "sub", "mul", "div", "copy", "to_copy"}
"""Names of elementwise operators."""

NAME_PARTS = {"normalization": ("batch_norm",), "optimizer": ("sgd", "foreach", "vector_norm", "Optimizer.")}
"""Parts of operator names, by kind of work."""


def time_call(function: Callable[[], Any], device: str) -> float:
    """Return the seconds of a call, until the device has finished."""
    started = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure_peak(device: str, dtype: torch.dtype) -> dict[int, float]:
    """Return the best FLOP/s of a matrix multiplication, by the side of the square matrices."""
    peaks = {}
    for side in MATRIX_SIDES[device]:
        a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
        multiply = partial(torch.matmul, a, b, out=torch.empty_like(a))
        times = [time_call(multiply, device)]
        while len(times) < 5 or sum(times) < 0.5:
            times.append(time_call(multiply, device))
        peaks[side] = 2 * side**3 / min(times)
    return peaks


def make_step(model: nn.Module, batch_size: int, device: str, bf16: bool) -> Callable[[], None]:
    """Make a training step on random images that are on the device."""
    parameters = list(model.parameters())
    grad_clip = TrainConfig().grad_clip
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)
    x = torch.rand(batch_size, 3, SIZE, SIZE, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch_size, device=device) % CLASSES

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            logits = model(x)
        loss = nn.functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, grad_clip)
        optimizer.step()

    return step


def convolution_kind(weight_shape: Sequence[int]) -> str:
    """Return the kind of a convolution with weights ``(out_channels, in_channels / groups, height, width)``."""
    if weight_shape[1] == 1 and weight_shape[0] > 1:
        return "depthwise convolutions"
    return f"{weight_shape[2]}x{weight_shape[3]} convolutions"


def convolution_macs(model: nn.Module) -> Counter[str]:
    """Count the multiply-accumulates of the convolutions for one image, by kind."""
    macs: Counter[str] = Counter()

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        macs[convolution_kind(module.weight.shape)] += output[0].numel() * module.weight[0].numel()

    hooks = [layer.register_forward_hook(count) for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    with eval_mode(model), torch.no_grad():
        model(torch.zeros(1, 3, SIZE, SIZE, device=next(model.parameters()).device))
    for hook in hooks:
        hook.remove()
    return macs


def operator_kind(name: str, shapes: list[list[int]]) -> str:
    """Return the kind of work of an operator with these input shapes."""
    if name.startswith("aten::") and "conv" in name:
        weight = shapes[2 if name.endswith("backward") else 1 :][:1]
        return convolution_kind(weight[0]) if weight and len(weight[0]) == 4 else "other"
    if name.removeprefix("aten::").strip("_") in ELEMENTWISE:
        return "elementwise"
    return next((kind for kind, parts in NAME_PARTS.items() if any(part in name for part in parts)), "other")


def time_shares(step: Callable[[], None], device: str, step_seconds: float) -> dict[str, float]:
    """Return the share of each kind of work in a step. On a GPU, ``idle`` is the time without a kernel."""
    is_gpu = device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_gpu else [])]
    with profiler(activities=activities, record_shapes=True) as recording:
        for _ in range(PROFILED_STEPS):
            step()
    times: Counter[str] = Counter()
    for event in recording.key_averages(group_by_input_shape=True):
        if event.device_type == torch.autograd.DeviceType.CPU:  # the time of a kernel also counts for its operator
            event_time = event.self_device_time_total if is_gpu else event.self_cpu_time_total
            times[operator_kind(event.key, event.input_shapes)] += event_time
    if is_gpu:
        times["idle"] = max(0, PROFILED_STEPS * step_seconds * 1e6 - sum(times.values()))
    return {kind: kind_time / sum(times.values()) for kind, kind_time in times.most_common()}


def measure(name: str, device: str, bf16: bool, peak: float, options: argparse.Namespace) -> dict[str, Any]:
    """Measure the training step of a network on a device.

    Args:
        name: Name of the network.
        device: ``cpu`` or ``cuda``.
        bf16: Compute the forward pass in bf16.
        peak: FLOP/s of matrix multiplication.
        options: ``batch`` and ``steps``.
    """
    print(f"{name} on {device}", file=sys.stderr, flush=True)
    model = camkd.build(name, CLASSES, SIZE).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    macs = profile(model, SIZE).macs
    macs_by_kind = convolution_macs(model)
    step = make_step(model.train(), options.batch, device, bf16)
    times = [time_call(step, device) for _ in range(options.steps + WARM_UP_STEPS)][WARM_UP_STEPS:]
    seconds = median(times)
    step_flops_per_mac = 3 * 2 * options.batch  # forward and twice that for backward; 2 FLOPs per MAC
    shares = time_shares(step, device, seconds)
    share_of_peak_by_kind = {
        kind: step_flops_per_mac * kind_macs / (shares[kind] * seconds) / peak
        for kind, kind_macs in macs_by_kind.items()
        if kind in shares
    }
    results = {
        "macs": macs,
        "step_seconds": {"median": seconds, "low": min(times), "high": max(times)},
        "images_per_second": options.batch / seconds,
        "flops": step_flops_per_mac * macs / seconds,
        "share_of_peak": step_flops_per_mac * macs / seconds / peak,
        "share_of_step": shares,
        "share_of_peak_while_it_runs": share_of_peak_by_kind,
    }
    return {**results, "bound": describe_bound(name, results)}


def describe_bound(name: str, results: dict[str, Any]) -> str:
    """Describe in two sentences what limits a step."""
    shares = results["share_of_step"]
    peak_shares = results["share_of_peak_while_it_runs"]
    other_shares = {kind: share for kind, share in shares.items() if kind not in peak_shares}
    convolutions = 1 - sum(other_shares.values())
    kinds = ", ".join(f"{kind} {shares[kind]:.0%} at {peak_shares[kind]:.0%}" for kind in shares if kind in peak_shares)
    lost = {
        **other_shares,
        **{kind: shares[kind] * max(0.0, 1 - peak_share) for kind, peak_share in peak_shares.items()},
    }
    limit = max(lost, key=lambda kind: lost[kind])
    others = ", ".join(f"{kind} {share:.1%}" for kind, share in other_shares.items())
    return (
        f"{name} reaches {results['share_of_peak']:.0%} of the peak: convolutions take {convolutions:.0%} of the step, "
        f"at {results['share_of_peak'] / convolutions:.0%} of the peak ({kinds}). Most time below the peak is "
        f"lost in {limit}: {lost[limit]:.0%} of the step; all work other than convolutions takes "
        f"{1 - convolutions:.0%} ({others})."
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["cam-net", "resnet8", "wrn-16-4"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        precision = pick_precision("auto", torch.device(device))
        is_bf16 = precision == "bf16"
        peaks = measure_peak(device, torch.bfloat16 if is_bf16 else torch.float32)
        peak = max(peaks.values())
        models = {name: measure(name, device, is_bf16, peak, options) for name in options.models}
        results[device] = {"format": precision, "peak_flops": peak, "peak_by_side": peaks, "models": models}
    if options.json:
        print(json.dumps({**vars(options), "environment": collect_environment(), "devices": results}))
        return
    for device, device_results in results.items():
        peak = device_results["peak_flops"] / 1e9
        print(f"\n{device}: at most {peak:,.0f} GFLOP/s in {device_results['format']} (torch.matmul)\n")
        print("| network | images/s | GFLOP/s | of the peak |\n|---|---|---|---|")
        for name, row in device_results["models"].items():
            numbers = f"{row['images_per_second']:,.0f} | {row['flops'] / 1e9:,.0f} | {row['share_of_peak']:.0%}"
            print(f"| {name} | {numbers} |")
        for row in device_results["models"].values():
            print(f"\n{row['bound']}")


if __name__ == "__main__":
    main()
