"""Find what limits a training step on a GPU: arithmetic, or the launch of kernels.

    python benchmarks/gpu_step.py [--json] [NETWORK:BATCH ...]

A step consists of a forward pass in bf16, cross-entropy, backward pass, gradient clipping and fused AdamW, on a batch
that is on the GPU already. Augmentation, teacher and EMA are left out. The script measures

eager    the step as in the training loop
busy     the time of the kernels, by the profiler
graph    the step captured as a CUDA graph and replayed, without separate kernel launches

in one process. A time is the mean of 30 steps after 5 warm-up steps; ``busy`` is the mean of 5 profiled steps.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from cifar10_tiniest import Cifar10Tiniest
from torch.nn import functional as F

from camkd.models import build
from camkd.runs.folder import collect_environment

CASES = ("cam-net:128", "cam-net:512", "resnet8:512", "resnet11:512", "resnet50:512", "cifar10-tiniest:512")
STEPS = 30
WARM_UP_STEPS = 5
PROFILED_STEPS = 5


def make_step(name: str, batch_size: int) -> Callable[[], None]:
    """Make a training step of ``cifar10-tiniest``, or of a network of `camkd.models`."""
    model = Cifar10Tiniest(10) if name == "cifar10-tiniest" else build(name, 10, 32)
    model.to("cuda", memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    x = torch.rand(batch_size, 3, 32, 32, device="cuda").to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch_size,), device="cuda")
    lr = torch.tensor(1e-3, device="cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, fused=True, capturable=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(x)
        F.cross_entropy(logits.float(), labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()

    return step


def mean_seconds(step: Callable[[], None]) -> float:
    """Return the mean time of `STEPS` steps, after `WARM_UP_STEPS` steps."""
    for _ in range(WARM_UP_STEPS):
        step()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(STEPS):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / STEPS


def profile_kernels(step: Callable[[], None]) -> tuple[float, float]:
    """Return the number of kernels of a step, and the sum of their times in seconds."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(PROFILED_STEPS):
            step()
        torch.cuda.synchronize()
    events = [event for event in profile.key_averages() if event.self_device_time_total > 0]
    num_kernels = sum(event.count for event in events) / PROFILED_STEPS
    return num_kernels, sum(event.self_device_time_total for event in events) / PROFILED_STEPS / 1e6


def capture_graph(step: Callable[[], None]) -> Callable[[], None]:
    """Capture a step as a CUDA graph, and return the function that replays it."""
    side_stream = torch.cuda.Stream()
    side_stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side_stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side_stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def measure(name: str, batch_size: int) -> dict[str, Any]:
    """Return the number of kernels, milliseconds per step, and images per second."""
    step = make_step(name, batch_size)
    eager = mean_seconds(step)
    num_kernels, busy = profile_kernels(step)
    graph = mean_seconds(capture_graph(step))
    seconds = {"eager": eager, "busy": busy, "graph": graph}
    return {
        "kernels": round(num_kernels),
        "milliseconds": {case: 1000 * value for case, value in seconds.items()},
        "images_per_second": {case: batch_size / value for case, value in seconds.items()},
    }


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=CASES, metavar="NETWORK:BATCH")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("gpu_step.py needs a GPU. Run it on a machine with CUDA.")
    results = {}
    for case in options.cases:
        name, _, batch_size = case.partition(":")
        results[case] = measure(name, int(batch_size))
    if options.json:
        print(json.dumps({"cases": results, "environment": collect_environment()}))
        return
    print("| network:batch | kernels | eager, ms | busy, ms | graph, ms | eager, images/s | graph, images/s |")
    print("|---|---|---|---|---|---|---|")
    for case, row in results.items():
        times = " | ".join(f"{value:.2f}" for value in row["milliseconds"].values())
        speeds = row["images_per_second"]
        print(f"| {case} | {row['kernels']} | {times} | {speeds['eager']:,.0f} | {speeds['graph']:,.0f} |")


if __name__ == "__main__":
    main()
