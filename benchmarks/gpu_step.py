"""What bounds a training step on a GPU: its arithmetic, or the processor that starts its kernels?

    python benchmarks/gpu_step.py [--json] [NETWORK:BATCH ...]

One step on a batch that lies on the GPU: forward in bf16, cross-entropy, backward, clipping, fused AdamW; no views, no
teacher, no averaging. Eager is what the loop does. Busy is the time that the kernels themselves take, by the profiler.
Graph is the same step captured as a CUDA graph and replayed, so that nobody starts its kernels one by one. Each is the
mean of 30 steps after 5, in one process.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from public_student import PublicStudent
from torch.nn import functional as F

from camkd.models import build
from camkd.runs.folder import collect_environment

CASES = ("cam-net:128", "cam-net:512", "resnet8:512", "resnet11:512", "resnet50:512", "public:512")
PROFILED = 5


def step_of(name: str, batch: int) -> Callable[[], None]:
    """A training step of the network ``name``; ``public`` is that of benchmarks/public_student.py."""
    model = PublicStudent(10) if name == "public" else build(name, 10, 32)
    model.to("cuda", memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    x = torch.rand(batch, 3, 32, 32, device="cuda").to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,), device="cuda")
    rate = torch.tensor(1e-3, device="cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, fused=True, capturable=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(x)
        F.cross_entropy(logits.float(), labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()

    return step


def seconds(call: Callable[[], None], times: int = 30) -> float:
    """The mean time of a call, after five to warm up."""
    for _ in range(5):
        call()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(times):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / times


def kernels(step: Callable[[], None]) -> tuple[float, float]:
    """How many kernels a step starts, and how many seconds they take in sum."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(PROFILED):
            step()
        torch.cuda.synchronize()
    events = [event for event in profile.key_averages() if event.self_device_time_total > 0]
    count = sum(event.count for event in events) / PROFILED
    return count, sum(event.self_device_time_total for event in events) / PROFILED / 1e6


def replayed(step: Callable[[], None]) -> Callable[[], None]:
    """The step as a CUDA graph."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def measure(name: str, batch: int) -> dict[str, Any]:
    """Milliseconds a step, and pictures a second."""
    step = step_of(name, batch)
    eager = seconds(step)
    count, busy = kernels(step)
    graph = seconds(replayed(step))
    found = {"eager": eager, "busy": busy, "graph": graph}
    return {
        "kernels": round(count),
        "milliseconds": {name: 1000 * value for name, value in found.items()},
        "images_per_second": {name: batch / value for name, value in found.items()},
    }


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=CASES, metavar="NETWORK:BATCH")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this measures a GPU, and there is none here.")
    found = {case: measure(case.split(":")[0], int(case.split(":")[1])) for case in options.cases}
    if options.json:
        print(json.dumps({"cases": found, "environment": collect_environment()}))
        return
    print("| network:batch | kernels | eager, ms | busy, ms | graph, ms | eager, pictures/s | graph, pictures/s |")
    print("|---|---|---|---|---|---|---|")
    for case, row in found.items():
        times = " | ".join(f"{value:.2f}" for value in row["milliseconds"].values())
        speeds = row["images_per_second"]
        print(f"| {case} | {row['kernels']} | {times} | {speeds['eager']:,.0f} | {speeds['graph']:,.0f} |")


if __name__ == "__main__":
    main()
