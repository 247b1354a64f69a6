"""Batch normalisation over the batch of all processes together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from camkd.utils.distributed import all_gather, process_group


@contextmanager
def sync_batchnorm(model: nn.Module) -> Iterator[None]:
    """In training, take mean and variance of each batch normalisation over all processes' shares of the batch.

    With processes ``r`` that hold ``n_r`` values of a channel (Chan et al. 1979),

        mean = sum_r n_r mean_r / N        variance = sum_r n_r (variance_r + (mean_r - mean)^2) / N

    so a step is that of one process with the whole batch, up to rounding. ``nn.SyncBatchNorm`` is for GPUs alone.
    """
    norms = (
        [module for module in model.modules() if isinstance(module, _BatchNorm)]
        if process_group().world_size > 1
        else []
    )
    for norm in norms:
        norm.forward = _over_all(norm, norm.forward)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _over_all(norm: _BatchNorm, alone: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        if not norm.training:
            return alone(x)
        with torch.autocast(x.device.type, enabled=False):
            return _normalised(norm, x.float()).to(x.dtype)

    return forward


def _normalised(norm: _BatchNorm, x: Tensor) -> Tensor:
    dims, shape = [0, *range(2, x.ndim)], (1, -1, *(1 for _ in x.shape[2:]))
    counts = all_gather(torch.tensor([x.numel() / x.shape[1]], device=x.device))
    parts = all_gather(torch.stack(torch.var_mean(x, dims, correction=0))[None])
    variances, means = parts[:, 0], parts[:, 1]
    weights = (counts / counts.sum())[:, None]
    mean = (weights * means).sum(0)
    variance = (weights * (variances + (means - mean).square())).sum(0)
    if norm.track_running_stats:
        _follow(norm, mean.detach(), variance.detach() * counts.sum() / (counts.sum() - 1))
    y = (x - mean.view(shape)) * torch.rsqrt(variance + norm.eps).view(shape)
    return y * norm.weight.view(shape) + norm.bias.view(shape) if norm.affine else y


@torch.no_grad()
def _follow(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    assert norm.num_batches_tracked is not None and norm.running_mean is not None and norm.running_var is not None
    norm.num_batches_tracked.add_(1)
    share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean, share)
    norm.running_var.lerp_(variance, share)
