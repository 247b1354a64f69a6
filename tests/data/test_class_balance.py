"""Epochs with equally many samples of each class, and views of samples of several epochs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from camkd.config import TrainConfig
from camkd.data.augment import POLICIES
from camkd.data.batches import epoch_order
from camkd.data.class_balance import balanced_batches, describe_imbalance
from camkd.data.dataset import Split
from camkd.data.training_batches import training_batches
from camkd.data.views import Views

label_lists = st.lists(st.integers(0, 4), min_size=1, max_size=60)


def draw_epochs(labels: np.ndarray, epochs: int, augment_epochs: int = 10**6) -> list[list[tuple[int, int]]]:
    """Return the (sample, augmented epoch) pairs of several epochs."""
    pairs = []
    for epoch in range(epochs):
        batches = balanced_batches(labels, 3, epoch, 8, augment_epochs)
        indices, views = (torch.cat(parts).tolist() for parts in zip(*batches, strict=True))
        pairs.append(list(zip(indices, views, strict=True)))
    return pairs


@settings(max_examples=60, deadline=None)
@given(label_lists, st.integers(1, 5))
def test_classes_have_equally_many_samples_and_images_of_a_class_too(values: list[int], epochs: int) -> None:
    labels = np.array(values)
    drawn = draw_epochs(labels, epochs)
    for pairs in drawn:
        assert len(pairs) == len(labels)
        counts = Counter(labels[sample] for sample, _ in pairs)
        assert max(counts.values()) - min(counts[k] for k in set(values)) <= 1
    images = Counter(sample for pairs in drawn for sample, _ in pairs)
    for k in set(values):
        counts_of_class = [images[sample] for sample in np.flatnonzero(labels == k).tolist()]
        assert max(counts_of_class) - min(counts_of_class) <= 1
    per_class = Counter(labels[sample] for pairs in drawn for sample, _ in pairs)
    assert max(per_class.values()) - min(per_class[k] for k in set(values)) <= 1


@settings(max_examples=30, deadline=None)
@given(label_lists)
def test_no_view_repeats_before_all_views_are_used(values: list[int]) -> None:
    """The view of the n-th draw of an image is that of epoch n."""
    pairs = [pair for pairs in draw_epochs(np.array(values), 3) for pair in pairs]
    assert len(set(pairs)) == len(pairs)
    draws: dict[int, set[int]] = {}
    for sample, view in pairs:
        draws.setdefault(sample, set()).add(view)
    assert all(views == set(range(len(views))) for views in draws.values())
    limited = [view for pairs in draw_epochs(np.array(values), 3, augment_epochs=2) for _, view in pairs]
    assert set(limited) <= {0, 1}


def test_an_epoch_is_a_pure_function_of_seed_and_epoch() -> None:
    labels = np.array([0] * 30 + [1] * 6 + [2])
    first, again, other_seed, other_epoch = (
        balanced_batches(labels, seed, epoch, 8, 4) for seed, epoch in ((0, 2), (0, 2), (1, 2), (0, 3))
    )
    assert [len(batch.indices) for batch in first] == [len(batch) for batch in epoch_order(37, 0, 2, 8)]
    assert all(torch.equal(a.indices, b.indices) for a, b in zip(first, again, strict=True))
    for other in (other_seed, other_epoch):
        assert not all(torch.equal(a.indices, b.indices) for a, b in zip(first, other, strict=True))


def test_batches_without_balancing_are_those_of_the_order() -> None:
    labels = np.array([0] * 30 + [1] * 6)
    config = TrainConfig(epochs=9, augment_epochs=2, batch_size=8)
    for balance in ("none", "logits"):
        batches = training_batches(labels, replace(config, balance=balance), epoch=5)
        order = epoch_order(36, config.augment_seed, 5, 8)
        assert all(torch.equal(batch.indices, indices) for batch, indices in zip(batches, order, strict=True))
        assert [batch.epochs for batch in batches] == [1] * len(order)


@pytest.mark.parametrize("policy", POLICIES)
def test_views_of_several_epochs_equal_those_of_each_epoch(policy: str) -> None:
    generator = np.random.default_rng(0)
    split = Split(generator.integers(0, 256, (12, 16, 16, 3)).astype(np.uint8), np.arange(12) % 3)
    views = Views(split, 3, policy, 5, torch.device("cpu"))
    epochs = torch.tensor([0, 3, 1, 0, 7, 3, 1, 1, 0, 7])
    indices = torch.tensor([0, 0, 5, 11, 2, 3, 3, 4, 9, 9])
    x, labels, _ = views[epochs, indices]
    for row, (epoch, index) in enumerate(zip(epochs.tolist(), indices.tolist(), strict=True)):
        expected = views[epoch, torch.tensor([index])]
        torch.testing.assert_close(x[row], expected.x[0], rtol=0, atol=0)
        torch.testing.assert_close(labels[row], expected.labels[0], rtol=0, atol=0)


@pytest.mark.parametrize(("counts", "ratio"), [((100, 10), None), ((101, 10), "10:1"), ((84, 2), "42:1")])
def test_note_about_unbalanced_classes(counts: tuple[int, int], ratio: str | None) -> None:
    labels = np.repeat([0, 1], counts)
    note = describe_imbalance(labels, ("robin", "wren"))
    if ratio is None:
        assert note is None
        return
    assert note is not None
    assert f"{ratio}: 'robin' has {counts[0]} training images, 'wren' {counts[1]}" in note


def test_note_about_a_class_without_training_images() -> None:
    note = describe_imbalance(np.array([0, 0]), ("robin", "wren"))
    assert note is not None
    assert "'wren' 0" in note
