"""The learning-rate schedule."""

from __future__ import annotations

import math

import pytest

from camkd.config import TrainConfig
from camkd.train.schedule import Schedule


def test_schedule_equals_its_formula() -> None:
    """Linear to the peak over the first quarter of 200 steps, then half a cosine to zero."""
    schedule = Schedule(TrainConfig(epochs=10, lr=0.3, batch_size=64, warmup_fraction=0.25), 20)
    assert schedule.total_steps == 200
    peak_lr = 0.3 * 64 / 128
    warmup = [peak_lr * (step + 1) / 50 for step in range(50)]
    decay = [peak_lr * (1 + math.cos(math.pi * (step - 50) / 150)) / 2 for step in range(50, 200)]
    assert [schedule(step) for step in range(200)] == pytest.approx(warmup + decay, rel=1e-12)


def test_schedule_values_by_hand() -> None:
    schedule = Schedule(TrainConfig(epochs=2, lr=1.0, batch_size=128, warmup_fraction=0.25), 4)
    assert [schedule(step) for step in range(8)] == pytest.approx(
        [0.5, 1.0, 1.0, 0.9330127, 0.75, 0.5, 0.25, 0.0669873]
    )


def test_peak_is_proportional_to_the_batch_size() -> None:
    large = Schedule(TrainConfig(epochs=2, lr=0.3, batch_size=128), 5)
    small = Schedule(TrainConfig(epochs=2, lr=0.3, batch_size=32), 5)
    assert [large(step) for step in range(10)] == pytest.approx([4 * small(step) for step in range(10)])


@pytest.mark.parametrize("warmup_fraction", [0.0, 1.0])
def test_schedule_without_warmup_or_decay(warmup_fraction: float) -> None:
    schedule = Schedule(TrainConfig(epochs=1, warmup_fraction=warmup_fraction, batch_size=128, lr=1.0), 10)
    rates = [schedule(step) for step in range(10)]
    assert max(rates) == pytest.approx(1.0)
    assert all(0 < rate <= 1 for rate in rates)
    assert rates == sorted(rates, reverse=warmup_fraction == 0.0)


@pytest.mark.parametrize("warmup_fraction", [0.0, 0.2, 1.0])
def test_schedule_of_a_single_step(warmup_fraction: float) -> None:
    schedule = Schedule(TrainConfig(epochs=1, warmup_fraction=warmup_fraction, batch_size=128, lr=0.1), 1)
    assert schedule(0) == pytest.approx(0.1)


@pytest.mark.parametrize(("optimizer", "peak_lr"), [("sgd", 0.2), ("adamw", 0.01)])
def test_default_peak_is_that_of_the_optimizer(optimizer: str, peak_lr: float) -> None:
    schedule = Schedule(TrainConfig(epochs=1, optimizer=optimizer, warmup_fraction=0.0, batch_size=128), 10)
    assert schedule(0) == pytest.approx(peak_lr)
