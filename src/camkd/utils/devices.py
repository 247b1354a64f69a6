"""Selection of the device and the precision."""

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

_M_TRIM_THRESHOLD = -1  # malloc.h
_M_MMAP_THRESHOLD = -3  # malloc.h
_MAX_MMAP_THRESHOLD = 1 << 25  # the largest value glibc accepts
_MAX_TRIM_THRESHOLD = (1 << 31) - 1

TIMING_REPEATS = 5
"""Number of timed steps per precision in `bf16_speedup`."""

MIN_BF16_SPEEDUP = 1.2
"""Speedup over fp32 above which ``auto`` selects bf16 on a CPU, in spite of its lower precision."""


def pick_device(name: str) -> str:
    """Resolve a device name.

    Args:
        name: Name of a PyTorch device, or ``auto`` for the first available of CUDA, MPS and the CPU.

    Returns:
        The name of a PyTorch device.

    Raises:
        InputError: If the device does not exist or is unavailable.

    Example:
        >>> pick_device("cpu")
        'cpu'
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()  # .item() also rejects "meta", whose tensors have no values
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device must be auto, cpu, or a device that PyTorch can use on this machine, got {name!r}. Choose auto or "
            "cpu."
        ) from error
    return name


def pick_precision(precision: Precision, device: torch.device) -> Literal["bf16", "fp32"]:
    """Resolve a precision.

    Args:
        precision: ``fp32``, ``bf16`` or ``auto``. On a CPU, ``auto`` selects bf16 if its measured speedup over fp32 is
            more than `MIN_BF16_SPEEDUP`. On CUDA, it selects bf16 if the GPU supports it. Otherwise it selects fp32.
        device: The device to compute on.

    Returns:
        The number format of the forward pass.

    Example:
        >>> pick_precision("fp32", torch.device("cpu"))
        'fp32'
    """
    if precision != "auto":
        return precision
    if device.type == "cpu":
        return "bf16" if bf16_speedup() > MIN_BF16_SPEEDUP else "fp32"
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


@cache
def bf16_speedup() -> float:
    """Measure the speedup of a training step of a small convolution in bf16 over fp32 on this CPU.

    The speedup is 1.5 or more on processors with bf16 instructions, and below 1 on others. The measurement takes about
    0.05 seconds. It counts the CPU time of one thread, so that other programs hardly affect it. The result is cached.

    Returns:
        Time in fp32 divided by time in bf16.
    """
    with torch.random.fork_rng(devices=[]):
        convolution = nn.Conv2d(64, 64, 3, padding=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.zeros(16, 64, 16, 16).to(memory_format=torch.channels_last)

    def time_step(bf16: bool) -> float:
        start = time.thread_time()
        with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            convolution(x).sum().backward()
        return time.thread_time() - start

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = [(time_step(False), time_step(True)) for _ in range(TIMING_REPEATS)]
    finally:
        torch.set_num_threads(threads)
    return min(fp32 for fp32, _ in times) / min(bf16 for _, bf16 in times)


def describe_device(precision: Precision, device: torch.device) -> str:
    """Describe a device and its precision for a message.

    Args:
        precision: The precision, see `pick_precision`.
        device: The device.

    Returns:
        The description.

    Example:
        >>> describe_device("fp32", torch.device("cpu"))
        'cpu in fp32'
        >>> describe_device("auto", torch.device("cpu"))                   # doctest: +SKIP
        'cpu in bf16, 2.1 times as fast as fp32'
    """
    text = f"{device} in {pick_precision(precision, device)}"
    if precision == "auto" and device.type == "cpu":
        speedup = bf16_speedup()
        ratio, alternative = (speedup, "fp32") if speedup > MIN_BF16_SPEEDUP else (1 / speedup, "bf16")
        text += f", {ratio:.1f} times as fast as {alternative}"
    return text


def keep_freed_memory() -> None:
    """Make glibc's allocator keep freed memory for later allocations.

    By default glibc returns the memory of large tensors to the operating system after each training step, and maps it
    again in the next step. The function has no effect on other C libraries.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MAX_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _MAX_TRIM_THRESHOLD)
