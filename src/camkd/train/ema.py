"""Exponential moving average (EMA) of a model's weights, as a callback."""

from __future__ import annotations

import torch
from torch import nn

from camkd.train.callbacks import Callback


class EMA(Callback):
    """Average weights and floating-point buffers after every optimizer step.

    The update is ``average += (1 - d) * (model - average)``. The decay ``d = min(decay, (1 + step) / (10 + step))``
    rises with the step, so that the average follows the model closely at first. Integer buffers are copied.

    Args:
        average: The averaged model, updated in place.
        model: The model in training, of the same architecture.
        decay: The largest decay per step.
    """

    def __init__(self, average: nn.Module, model: nn.Module, decay: float) -> None:
        pairs = list(zip(average.state_dict().values(), model.state_dict().values(), strict=True))
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        self.averaged, self.source = map(list, zip(*floating, strict=True))
        self.counters = [pair for pair in pairs if not pair[0].is_floating_point()]
        self.decay = decay

    @torch.no_grad()
    def on_optimizer_step(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.averaged, self.source, 1 - decay)
        for average, current in self.counters:
            average.copy_(current)
