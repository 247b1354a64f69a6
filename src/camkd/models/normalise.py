"""The normalisation every built-in network carries inside itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Normalised(nn.Module):
    """A network that takes RGB in 0..1 and normalises it with its own buffers ``mean`` and ``std``.

    The two buffers travel with the weights, so teacher, student and export cannot disagree about them.
    """

    mean: Tensor
    std: Tensor
    statistics_given = False
    """Whether they came with weights that were trained with them, so that other pictures shall not change them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.5))
        self.register_buffer("std", torch.full((1, 3, 1, 1), 0.25))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Weights from elsewhere, torchvision's say, know no statistics: then those of this network stay."""
        for name in ("mean", "std"):
            state_dict.setdefault(prefix + name, getattr(self, name))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def normalise_with(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the statistics of the training pictures, per channel, in units of 0..1."""
        self.mean.copy_(torch.as_tensor(mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.std.copy_(torch.as_tensor(std, dtype=torch.float32).view(1, 3, 1, 1))

    def normalise(self, x: Tensor) -> Tensor:
        """Map ``(N, 3, H, W)`` RGB in 0..1 to zero mean and unit deviation."""
        return (x - self.mean) / self.std
