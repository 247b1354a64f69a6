"""Several processes that train one network: who they are, what they share, how they add up.

Every process sees the same epochs, batches and views (these are pure functions), learns from its own share of each
batch and adds its gradient to the others', so that the weights stay the same everywhere. Alone, nothing here does
anything. ``torchrun``, SLURM and Ray Train say by environment variables who is who.
"""

from __future__ import annotations

import importlib
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from camkd.types import InputError

T = TypeVar("T")

MEETING, PATIENCE = timedelta(minutes=10), timedelta(hours=6)
"""How long a process waits for the others to come, and later for what the first does alone, decoding pictures say.

One that ends is noticed at once.
"""


class ProcessGroupInfo(NamedTuple):
    """Which of how many processes this one is."""

    rank: int = 0
    world_size: int = 1

    def shard(self, samples: Tensor) -> Tensor:
        """This process's part of a batch; the parts in order of rank are the batch."""
        return samples.tensor_split(self.world_size)[self.rank]


def process_group() -> ProcessGroupInfo:
    """The processes that train together now; alone, a team of one."""
    return (
        ProcessGroupInfo(dist.get_rank(), dist.get_world_size())
        if dist.is_available() and dist.is_initialized()
        else ProcessGroupInfo()
    )


@contextmanager
def init_distributed(device: str) -> Iterator[ProcessGroupInfo]:
    """Meet the processes that the environment names while the block runs; ``cuda`` is then this one's own device.

    Does nothing where it names none, or where they have met already (Ray Train). Raises ``InputError`` where the
    environment is not whole or the others do not come.
    """
    try:
        named = _named(os.environ)
    except (KeyError, ValueError, OSError, subprocess.CalledProcessError) as error:
        raise InputError(
            f"what the environment says of several processes is not whole ({error}): start them with torchrun or srun."
        ) from error
    if named is None or dist.is_initialized():
        yield process_group()
        return
    rank, size, local, address = named
    # Optimisers import this, and its functions' defaults keep whatever group there is then: imported later, they would
    # keep this one and its threads alive, and a thread that outlives the interpreter aborts the process at its end.
    importlib.import_module("torch.distributed.nn.functional")
    on_gpu = device in ("auto", "cuda") and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(local)
    backend = "nccl" if on_gpu else "gloo"
    try:
        store, *_ = next(rendezvous(f"tcp://{address}", rank, size, timeout=MEETING))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # else one would find the addresses of the dead
        store = dist.PrefixStore(f"attempt-{attempt}", store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"the {size} processes could not meet at {address} ({str(error).splitlines()[0]}): look whether all were "
            "started, with the same MASTER_ADDR and MASTER_PORT."
        ) from error
    try:
        yield process_group()
    finally:
        dist.destroy_process_group()


def _named(environment: Any) -> tuple[int, int, int, str] | None:
    """Rank, size, rank on this machine and ``address:port`` from ``torchrun``'s variables or SLURM's."""
    if "WORLD_SIZE" in environment:
        names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        missing = [name for name in names if name not in environment]
        if missing:
            raise InputError(f"WORLD_SIZE is set, but {missing[0]} is not: start the processes with torchrun.")
        rank, size, address, port = (environment[name] for name in names)
        local = environment.get("LOCAL_RANK", "0")
    elif int(environment.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in environment:
        rank, size, local = (environment[f"SLURM_{name}"] for name in ("PROCID", "NTASKS", "LOCALID"))
        address = environment.get("MASTER_ADDR") or _first_host(environment["SLURM_JOB_NODELIST"])
        port = environment.get("MASTER_PORT") or str(10_000 + int(environment["SLURM_JOB_ID"]) % 50_000)
    else:
        return None
    return (int(rank), int(size), int(local), f"{address}:{port}") if int(size) > 1 else None


def _first_host(nodes: str) -> str:
    """The first of SLURM's ``node[01-04],other``."""
    listed = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    return listed.stdout.split()[0]


@contextmanager
def _meeting() -> Iterator[None]:
    """A place where all processes come together. Raises ``ChildProcessError`` where one does not."""
    try:
        yield
    except RuntimeError as error:
        raise ChildProcessError(
            f"another of the {process_group().world_size} processes ended: start them again with --resume."
        ) from error


def run_on_rank0(call: Callable[[], T]) -> T:
    """What ``call`` returns, made by the first process alone; where it raises there, it raises everywhere."""
    if process_group().world_size == 1:
        return call()
    said: list[Any] = [None, None]
    if process_group().rank == 0:
        try:
            said[0] = call()
        except Exception as error:
            said[1] = error
    with _meeting():
        dist.broadcast_object_list(said)
    if said[1] is not None:
        raise said[1]
    result: T = said[0]
    return result


def all_reduce_sum(x: Tensor) -> Tensor:
    """``x`` added up over all processes."""
    if process_group().world_size > 1:
        x = x.clone()
        with _meeting():
            dist.all_reduce(x)
    return x


def all_reduce_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by the sum of all processes' ones."""
    if process_group().world_size == 1:
        return
    found = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = all_reduce_sum(torch.cat([gradient.flatten() for gradient in found]))
    for gradient, total in zip(found, flat.split([gradient.numel() for gradient in found]), strict=True):
        gradient.copy_(total.view_as(gradient))


class _Gathered(torch.autograd.Function):
    """Parts of equal or unequal length, one a process, put together along the first dimension."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        own = torch.tensor([len(part)], device=part.device)
        sizes = [torch.zeros_like(own) for _ in range(process_group().world_size)]
        with _meeting():
            dist.all_gather(sizes, own)
        ctx.sizes = [int(size) for size in sizes]
        padded = part.new_zeros((max(ctx.sizes), *part.shape[1:]))
        padded[: len(part)] = part
        parts = [torch.empty_like(padded) for _ in sizes]
        with _meeting():
            dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, ctx.sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        own: Tensor = all_reduce_sum(gradients[0].contiguous()).split(ctx.sizes)[process_group().rank]
        return own


def all_gather(part: Tensor) -> Tensor:
    """All processes' parts along the first dimension, in order of rank: ``(n, ...)`` to ``(N, ...)``, differentiable.

    The gradient of a part is the sum of what all processes say of it.
    """
    if process_group().world_size == 1:
        return part
    whole: Tensor = _Gathered.apply(part)  # type: ignore[no-untyped-call]
    return whole
