"""Batch normalization with statistics over the batch of all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from camkd.utils.distributed import all_gather, process_group


@contextmanager
def sync_batchnorm(model: nn.Module) -> Iterator[None]:
    """Compute mean and variance of every batch normalization over all processes inside the context.

    If process ``r`` holds ``n_r`` of the ``N`` values of a channel, then (Chan et al. 1979)

        mean = sum_r(n_r * mean_r) / N
        variance = sum_r(n_r * (variance_r + (mean_r - mean)^2)) / N

    A training step therefore equals, up to rounding, the step of a single process with the whole batch. PyTorch's
    ``nn.SyncBatchNorm`` supports GPUs only.

    Args:
        model: The model. In evaluation mode and in a single process, its computation is unchanged.
    """
    is_distributed = process_group().world_size > 1
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)] if is_distributed else []
    for norm in norms:
        norm.forward = _synced_forward(norm, norm.forward)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _synced_forward(norm: _BatchNorm, local_forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        if not norm.training:
            return local_forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return _normalize(norm, x.float()).to(x.dtype)

    return forward


def _normalize(norm: _BatchNorm, x: Tensor) -> Tensor:
    dims = [0, *range(2, x.ndim)]
    shape = (1, -1, *(1 for _ in x.shape[2:]))
    one_row_each = [1] * process_group().world_size
    counts = all_gather(torch.tensor([x.numel() / x.shape[1]], device=x.device), one_row_each)
    statistics = all_gather(torch.stack(torch.var_mean(x, dims, correction=0))[None], one_row_each)
    variances = statistics[:, 0]
    means = statistics[:, 1]
    weights = (counts / counts.sum())[:, None]
    mean = (weights * means).sum(0)
    variance = (weights * (variances + (means - mean).square())).sum(0)
    if norm.track_running_stats:
        _update_running_statistics(norm, mean.detach(), variance.detach() * counts.sum() / (counts.sum() - 1))
    y = (x - mean.view(shape)) * torch.rsqrt(variance + norm.eps).view(shape)
    return y * norm.weight.view(shape) + norm.bias.view(shape) if norm.affine else y


@torch.no_grad()
def _update_running_statistics(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    assert norm.num_batches_tracked is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.num_batches_tracked.add_(1)
    momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean, momentum)
    norm.running_var.lerp_(variance, momentum)
