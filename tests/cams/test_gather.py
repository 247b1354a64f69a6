"""Selection of maps by class."""

from __future__ import annotations

import torch

from camkd.cams.gather import gather_classes


def test_gather_classes_selects_each_images_own_classes_in_order() -> None:
    maps = torch.randn(3, 5, 2, 4)
    class_ids = torch.tensor([[4, 0], [1, 1], [2, 3]])
    selected = gather_classes(maps, class_ids)
    assert selected.shape == (3, 2, 2, 4)
    for image in range(3):
        for position in range(2):
            assert torch.equal(selected[image, position], maps[image, class_ids[image, position]])


def test_gather_classes_is_differentiable() -> None:
    maps = torch.randn(1, 3, 2, 2, requires_grad=True)
    gather_classes(maps, torch.tensor([[1, 1]])).sum().backward()
    assert maps.grad is not None
    assert maps.grad[0, :, 0, 0].tolist() == [0, 2, 0]


def test_gather_classes_keeps_empty_batches() -> None:
    assert gather_classes(torch.zeros(0, 3, 4, 4), torch.zeros(0, 2, dtype=torch.int64)).shape == (0, 2, 4, 4)
