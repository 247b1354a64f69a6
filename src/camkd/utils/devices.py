"""Where to compute, and in which number format."""

from __future__ import annotations

import ctypes
import sys
import time
from functools import cache
from typing import Literal

import torch
from torch import nn

from camkd.types import InputError

Precision = Literal["auto", "fp32", "bf16"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h

TRIALS = 5
WORTHWHILE = 1.2
"""The gain from which on bf16's coarser numbers are worth it."""


def pick_device(name: str) -> str:
    """Resolve ``auto`` to the best device there is. Raises ``InputError`` for one that is not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()  # "meta" makes tensors too, but they hold no numbers
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used here: take auto, cpu, or one this machine has.") from error
    return name


def pick_precision(name: Precision, device: torch.device) -> Literal["bf16", "fp32"]:
    """Resolve ``auto`` to bf16 where the device computes in it faster than in fp32: on a processor that is measured."""
    if name != "auto":
        return name
    if device.type == "cpu":
        return "bf16" if bf16_speedup() > WORTHWHILE else "fp32"
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


@cache
def bf16_speedup() -> float:
    """How many times faster this processor is at a training step of a small convolution in bf16 than in fp32.

    1.5 and more where it has instructions for it, below 1 where it has not: a twentieth of a second tells. Measured in
    processor time of one thread, so that whatever else the machine does makes no difference.
    """
    with torch.random.fork_rng(devices=[]):
        convolution = nn.Conv2d(64, 64, 3, padding=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.zeros(16, 64, 16, 16).to(memory_format=torch.channels_last)

    def seconds(bf16: bool) -> float:
        started = time.thread_time()
        with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            convolution(x).sum().backward()
        return time.thread_time() - started

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trials = [(seconds(False), seconds(True)) for _ in range(TRIALS)]
    finally:
        torch.set_num_threads(threads)
    return min(fp32 for fp32, _ in trials) / min(bf16 for _, bf16 in trials)


def describe_device(name: Precision, device: torch.device) -> str:
    """Where a run computes and in which format, for a person: ``cpu in bf16, 2.1 times as fast as fp32 here``."""
    said = f"{device} in {pick_precision(name, device)}"
    if name == "auto" and device.type == "cpu":
        gain = bf16_speedup()
        faster, slower = (gain, "fp32") if gain > WORTHWHILE else (1 / gain, "bf16")
        said += f", {faster:.1f} times as fast as {slower} here"
    return said


def keep_freed_memory() -> None:
    """Let this process keep the memory it frees, where its C library is glibc: the next step needs it again.

    Without this the large tensors of each step are handed back to the system and asked for anew, page by page.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 25)  # the largest there is
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
