"""Data-parallel training in several processes: set-up, collectives, gradient sums.

The order of the samples and their augmented views are pure functions of the seed and the epoch, so every process
computes the same batches. Each process trains on its own shard of each batch. Gradients are summed over all processes,
so the weights stay equal. In a single process every collective returns its input.

``torchrun`` and SLURM pass rank and world size in environment variables. Ray Train initializes the process group
itself.
"""

from __future__ import annotations

import importlib
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from camkd.types import InputError

T = TypeVar("T")

RENDEZVOUS_TIMEOUT = timedelta(minutes=10)
"""Maximum time until all processes have started and connected."""

COLLECTIVE_TIMEOUT = timedelta(hours=6)
"""Timeout of a collective, longer than any work of rank 0 alone, such as decoding images.

If a process ends, the collectives of the other processes fail at once, without waiting for the timeout.
"""


class ProcessGroupInfo(NamedTuple):
    """Rank of this process and number of processes."""

    rank: int = 0
    world_size: int = 1

    def shard(self, batch: Tensor) -> Tensor:
        """Return this process's shard of a batch. All shards, concatenated in order of rank, are the batch."""
        return batch.tensor_split(self.world_size)[self.rank]

    def shard_sizes(self, count: int) -> list[int]:
        """Return the sizes of all shards of a batch of ``count`` samples, in order of rank."""
        size, larger_shards = divmod(count, self.world_size)
        return [size + (rank < larger_shards) for rank in range(self.world_size)]


def process_group() -> ProcessGroupInfo:
    """Return rank and world size; ``(0, 1)`` in a single process."""
    if dist.is_available() and dist.is_initialized():
        return ProcessGroupInfo(dist.get_rank(), dist.get_world_size())
    return ProcessGroupInfo()


@contextmanager
def init_distributed(device: str) -> Iterator[ProcessGroupInfo]:
    """Initialize the process group that the environment describes, and destroy it at the end of the block.

    In a single process nothing is initialized. A process group that exists already (Ray Train) is used, and not
    destroyed. With ``auto`` or ``cuda`` and CUDA available, each process gets its own GPU and the backend is NCCL.
    Otherwise the backend is Gloo.

    Args:
        device: Value of ``--device``.

    Yields:
        Rank and world size.

    Raises:
        InputError: If environment variables are missing or invalid, or if the other processes do not connect.
    """
    try:
        launch = _launch_settings(os.environ)
    except (KeyError, ValueError, OSError, subprocess.CalledProcessError) as error:
        raise InputError(
            f"The environment variables of the distributed launch must be complete, got {error}. "
            "Start the processes with torchrun or srun."
        ) from error
    if launch is None or dist.is_initialized():
        yield process_group()
        return
    rank, world_size, local_rank, address = launch
    # Optimizers import this module, whose default arguments hold the current process group. Imported after the
    # initialization, it would keep that group and its threads alive. A thread that outlives the interpreter aborts the
    # process at exit.
    importlib.import_module("torch.distributed.nn.functional")
    uses_gpu = device in ("auto", "cuda") and torch.cuda.is_available()
    if uses_gpu:
        torch.cuda.set_device(local_rank)
    backend = "nccl" if uses_gpu else "gloo"
    try:
        store, *_ = next(rendezvous(f"tcp://{address}", rank, world_size, timeout=RENDEZVOUS_TIMEOUT))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # addresses of an earlier attempt are stale
        store = dist.PrefixStore(f"attempt-{attempt}", store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=COLLECTIVE_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"All {world_size} processes must connect at {address}, got: {str(error).splitlines()[0]}. Check that all "
            "were started with the same MASTER_ADDR and MASTER_PORT."
        ) from error
    try:
        yield process_group()
    finally:
        dist.destroy_process_group()


def _launch_settings(environment: Mapping[str, str]) -> tuple[int, int, int, str] | None:
    """Read rank, world size, local rank and ``address:port`` from the variables of ``torchrun`` or SLURM."""
    if "WORLD_SIZE" in environment:
        names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        missing = [name for name in names if name not in environment]
        if missing:
            raise InputError(
                f"{missing[0]} must be set where WORLD_SIZE is, got none. Start the processes with torchrun."
            )
        rank, world_size, address, port = (environment[name] for name in names)
        local_rank = environment.get("LOCAL_RANK", "0")
    elif int(environment.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in environment:
        rank, world_size, local_rank = (environment[f"SLURM_{name}"] for name in ("PROCID", "NTASKS", "LOCALID"))
        address = environment.get("MASTER_ADDR") or _first_host(environment["SLURM_JOB_NODELIST"])
        port = environment.get("MASTER_PORT") or str(10_000 + int(environment["SLURM_JOB_ID"]) % 50_000)
    else:
        return None
    return (int(rank), int(world_size), int(local_rank), f"{address}:{port}") if int(world_size) > 1 else None


def _first_host(nodes: str) -> str:
    """Return the first host of a SLURM node list such as ``node[01-04],other``."""
    hosts = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    return hosts.stdout.split()[0]


@contextmanager
def _collective() -> Iterator[None]:
    """Raise ``ChildProcessError`` if a collective fails, because another process has ended."""
    try:
        yield
    except RuntimeError as error:
        raise ChildProcessError(
            f"Another of the {process_group().world_size} processes ended. Start all again with --resume."
        ) from error


def run_on_rank0(call: Callable[[], T]) -> T:
    """Call a function on rank 0 and return its result, or raise its exception, on every rank."""
    if process_group().world_size == 1:
        return call()
    outcome: list[Any] = [None, None]
    if process_group().rank == 0:
        try:
            outcome[0] = call()
        except Exception as error:
            outcome[1] = error
    with _collective():
        dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


def all_reduce_sum(x: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes."""
    if process_group().world_size > 1:
        x = x.clone()
        with _collective():
            dist.all_reduce(x)
    return x


def all_reduce_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its sum over all processes."""
    if process_group().world_size == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = all_reduce_sum(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, total in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))


class _AllGather(torch.autograd.Function):
    """Concatenate the shards of all processes along the first dimension."""

    @staticmethod
    def forward(ctx: Any, shard: Tensor, sizes: Sequence[int]) -> Tensor:
        ctx.sizes = list(sizes)
        padded = shard.new_zeros((max(sizes), *shard.shape[1:]))
        padded[: len(shard)] = shard
        shards = [torch.empty_like(padded) for _ in sizes]
        with _collective():
            dist.all_gather(shards, padded)
        return torch.cat([gathered[:size] for gathered, size in zip(shards, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        shards = all_reduce_sum(gradients[0].contiguous()).split(ctx.sizes)
        return shards[process_group().rank], None


def all_gather(shard: Tensor, sizes: Sequence[int]) -> Tensor:
    """Concatenate the shards of all processes along the first dimension, in order of rank.

    Differentiable: the gradient of a shard is the sum of its gradients in all processes. The host does not wait for the
    device.

    Args:
        shard: This process's shard ``(n, ...)``.
        sizes: The lengths ``n`` of all shards, see `ProcessGroupInfo.shard_sizes`.

    Returns:
        The whole tensor ``(N, ...)``.
    """
    if process_group().world_size == 1:
        return shard
    whole: Tensor = _AllGather.apply(shard, sizes)  # type: ignore[no-untyped-call]
    return whole


class StopFlag:
    """Share a stop request of one process with all processes, without a wait for the other processes in each step.

    `poll` starts a reduction of the requests of all processes, and returns the result of the reduction that the
    previous call started. All processes therefore stop after the same step, one step after the request. The reduction
    runs on the CPU during the step, so no device is synchronized.

    Args:
        is_requested: Function that returns True once this process should stop, for example after SIGTERM.
    """

    def __init__(self, is_requested: Callable[[], bool]) -> None:
        self.is_requested = is_requested
        self._is_distributed = process_group().world_size > 1
        self._group = dist.new_group(backend="gloo") if self._is_distributed and _device_backend() else None
        self._pending: tuple[Any, Tensor] | None = None

    def poll(self) -> bool:
        """Return True if a stop was requested in any process before the previous call.

        In a single process, return True if a stop has been requested by now. Call this method once per step in all
        processes.
        """
        if not self._is_distributed:
            return self.is_requested()
        stop = self._result()
        if not stop:
            count = torch.tensor([int(self.is_requested())])
            with _collective():
                self._pending = dist.all_reduce(count, group=self._group, async_op=True), count
        return stop

    def wait(self) -> bool:
        """Return True if a stop has been requested in any process by now. Block until all processes call it."""
        return self.poll() or (self._is_distributed and self._result())

    def _result(self) -> bool:
        """Return the result of the pending reduction."""
        if self._pending is None:
            return False
        work, count = self._pending
        self._pending = None
        with _collective():
            work.wait()
        return bool(count)


def _device_backend() -> bool:
    """Return True if the default process group communicates device memory only."""
    return dist.get_backend() != "gloo"
