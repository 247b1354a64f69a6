"""Functions that `support.processes.run_in_processes` calls in every process of a process group."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from camkd.types import InputError
from camkd.utils.distributed import (
    StopFlag,
    all_gather,
    all_reduce_gradients,
    all_reduce_sum,
    process_group,
    run_on_rank0,
)


def gather_shards(sizes: Sequence[int]) -> tuple[list[float], list[float]]:
    """Gather the shards of ``0, 1, ..., N - 1``, and differentiate ``(rank + 1) sum x^3`` of the gathered values.

    Returns:
        The gathered values, and the gradient of this process's shard.
    """
    rank = process_group().rank
    shard = torch.arange(sum(sizes), dtype=torch.float64).split(list(sizes))[rank].clone().requires_grad_()
    whole = all_gather(shard, sizes)
    ((rank + 1) * whole.pow(3).sum()).backward()
    assert shard.grad is not None
    return whole.tolist(), shard.grad.tolist()


def sum_ranks() -> tuple[float, float]:
    """Sum ``rank + 1`` over all processes; return the summand after the call, and the sum."""
    x = torch.tensor(float(process_group().rank + 1))
    total = all_reduce_sum(x)
    return float(x), float(total)


def sum_gradients() -> list[list[float] | None]:
    """Sum gradients ``rank + 1`` of two shapes; a third parameter has no gradient."""
    parameters = [torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True), torch.zeros(2, 1)]
    for parameter in parameters[:2]:
        parameter.grad = torch.full_like(parameter, process_group().rank + 1)
    all_reduce_gradients(parameters)
    return [None if parameter.grad is None else parameter.grad.flatten().tolist() for parameter in parameters]


def rank_of_rank0_call() -> int:
    """Return the rank in which `run_on_rank0` calls its function."""
    return run_on_rank0(lambda: process_group().rank)


def error_of_rank0_call() -> str:
    """Return the message of an error that `run_on_rank0` raises in every process."""

    def fail() -> None:
        raise InputError(f"failed in rank {process_group().rank}")

    try:
        run_on_rank0(fail)
    except InputError as error:
        return str(error)
    return ""


def steps_until_stop(rank: int, step: int) -> int:
    """Make up to 20 steps, and request a stop in process ``rank`` at step ``step``. Return the number of steps made."""
    completed_steps = 0
    stop = StopFlag(lambda: process_group().rank == rank and completed_steps >= step)
    while completed_steps < 20:
        completed_steps += 1
        if stop.poll():
            break
    return completed_steps


def results_of_wait(rank: int) -> list[bool]:
    """Return the results of two flags, with a request in process ``rank``.

    The first flag waits before and after the request. The second flag polls before the request and waits after it.
    """
    requested = False
    stop = StopFlag(lambda: requested)
    results = [stop.wait()]
    requested = process_group().rank == rank
    results.append(stop.wait())
    requested = False
    stop = StopFlag(lambda: requested)
    results.append(stop.poll())
    requested = process_group().rank == rank
    results.append(stop.wait())
    return results
