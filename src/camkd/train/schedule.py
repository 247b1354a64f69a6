"""Learning-rate schedule."""

from __future__ import annotations

import math

from camkd.config import TrainConfig, resolve_optimizer


class Schedule:
    """Linear warm-up, then a cosine to zero: the learning rate at each step."""

    def __init__(self, config: TrainConfig, batches: int) -> None:
        self.steps = config.epochs * batches
        self.peak = resolve_optimizer(config).lr * config.batch_size / 128
        self.rise = max(1, round(config.warmup_fraction * self.steps))

    def __call__(self, step: int) -> float:
        if step < self.rise:
            return self.peak * (step + 1) / self.rise
        return self.peak * 0.5 * (1 + math.cos(math.pi * (step - self.rise) / max(1, self.steps - self.rise)))
