"""Learning-rate schedule."""

from __future__ import annotations

import math

from camkd.config import TrainConfig, resolve_optimizer


class Schedule:
    """Linear warm-up to the peak learning rate, then cosine decay towards zero.

    The peak is ``lr * batch_size / 128``. The warm-up takes ``max(1, round(warmup_fraction * total_steps))`` steps.
    Calling the schedule with a step, from 0, returns the learning rate of the step.

    Args:
        config: The training settings.
        batches_per_epoch: Number of training steps per epoch.
    """

    def __init__(self, config: TrainConfig, batches_per_epoch: int) -> None:
        self.total_steps = config.epochs * batches_per_epoch
        self.peak_lr = resolve_optimizer(config).lr * config.batch_size / 128
        self.warmup_steps = max(1, round(config.warmup_fraction * self.total_steps))

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.peak_lr * (step + 1) / self.warmup_steps
        decay_steps = max(1, self.total_steps - self.warmup_steps)
        return self.peak_lr * 0.5 * (1 + math.cos(math.pi * (step - self.warmup_steps) / decay_steps))
