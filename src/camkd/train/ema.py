"""Exponential moving average of a model's weights."""

from __future__ import annotations

import torch
from torch import nn


class EMA:
    """Follows a model's weights and statistics: ``average += (1 - decay) (model - average)``."""

    def __init__(self, average: nn.Module, model: nn.Module) -> None:
        pairs = list(zip(average.state_dict().values(), model.state_dict().values(), strict=True))
        self.averaged = tuple(zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True))
        self.counted = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def __call__(self, decay: float) -> None:
        ours, theirs = self.averaged
        torch._foreach_lerp_(ours, theirs, 1 - decay)
        for our, their in self.counted:
            our.copy_(their)
