"""Batches of labeled and unlabeled images."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from camkd.config import TrainConfig
from camkd.data.batches import SampleBatch, epoch_order
from camkd.data.dataset import UNLABELED
from camkd.data.training_batches import epoch_size, training_batches, unlabeled_samples


def labels_of(num_labeled: int, num_unlabeled: int) -> np.ndarray:
    return np.concatenate([np.arange(num_labeled) % 3, np.full(num_unlabeled, UNLABELED)]).astype(np.int64)


def epochs_of(batch: SampleBatch) -> list[int]:
    return torch.as_tensor(batch.epochs).expand(len(batch.indices)).tolist()


def test_without_unlabeled_images_nothing_changes() -> None:
    config = TrainConfig(epochs=4, batch_size=8, augment_epochs=2, augment_seed=3)
    batches = training_batches(labels_of(30, 0), config, 3)
    expected = epoch_order(30, 3, 3, 8)
    assert all(torch.equal(batch.indices, indices) for batch, indices in zip(batches, expected, strict=True))
    assert {batch.epochs for batch in batches} == {1}


def test_every_image_is_in_every_epoch_once() -> None:
    labels = labels_of(12, 50)
    config = TrainConfig(epochs=4, batch_size=16, augment_epochs=3)
    for epoch in range(4):
        batches = training_batches(labels, config, epoch)
        assert sorted(torch.cat([batch.indices for batch in batches]).tolist()) == list(range(62))
        assert {batch.epochs for batch in batches} == {epoch % 3}
        assert [int((batch.indices < 12).sum()) for batch in batches] == [3] * 4
        assert max(len(batch.indices) for batch in batches) - min(len(batch.indices) for batch in batches) <= 1


@given(
    st.integers(2, 40), st.integers(1, 60), st.floats(0.05, 4), st.integers(1, 5), st.sampled_from(["none", "sampler"])
)
def test_ratio_of_unlabeled_images(
    num_labeled: int, num_unlabeled: int, ratio: float, augment_epochs: int, balance: str
) -> None:
    labels = labels_of(num_labeled, num_unlabeled)
    config = TrainConfig(
        epochs=9,
        batch_size=10,
        augment_epochs=augment_epochs,
        unlabeled_ratio=ratio,
        balance=balance,  # type: ignore[arg-type]
    )
    drawn = max(1, round(ratio * num_labeled))
    uses: Counter[int] = Counter()
    views: set[tuple[int, int]] = set()
    for epoch in range(9):
        batches = training_batches(labels, config, epoch)
        assert sum(len(batch.indices) for batch in batches) == epoch_size(labels, config) == num_labeled + drawn
        counts = [int((batch.indices < num_labeled).sum()) for batch in batches]
        assert sum(counts) == num_labeled
        assert max(counts) - min(counts) <= 1
        for batch in batches:
            samples = list(zip(batch.indices.tolist(), epochs_of(batch), strict=True))
            uses.update(index for index, _ in samples if index >= num_labeled)
            views.update(samples)
    counts = [uses[index] for index in range(num_labeled, num_labeled + num_unlabeled)]
    assert max(counts) - min(counts) <= 1
    assert all(view < augment_epochs for _, view in views)


def test_samples_are_drawn_in_cycles_of_a_permutation() -> None:
    draws = [unlabeled_samples(7, 3, seed=1, epoch=epoch, augment_epochs=2) for epoch in range(14)]
    indices = torch.cat([batch.indices for batch in draws]).reshape(6, 7)
    epochs = torch.cat([torch.as_tensor(batch.epochs) for batch in draws]).reshape(6, 7)
    assert indices.sort(1).values.tolist() == [list(range(7))] * 6
    assert epochs.tolist() == [[cycle % 2] * 7 for cycle in range(6)]
    assert len({tuple(cycle) for cycle in indices.tolist()}) > 1


@pytest.mark.parametrize("ratio", [None, 0.7])
def test_batches_are_a_pure_function(ratio: float | None) -> None:
    config = TrainConfig(epochs=5, batch_size=8, unlabeled_ratio=ratio)
    first, again, other = (
        torch.cat([batch.indices for batch in training_batches(labels_of(20, 30), config, epoch)])
        for epoch in (2, 2, 3)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
