"""What every built-in network has: its normalisation inside itself, and what it was trained as."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from camkd.models.io import ModelInfo, save_portable, upload
from camkd.types import InputError


class ImageClassifier(nn.Module):
    """A network that takes RGB in 0..1 and normalises it with its own buffers ``mean`` and ``std``.

    The two buffers travel with the weights, so teacher, student and export cannot disagree about them. A network from
    ``camkd.load`` knows its ``info`` (classes, picture size, where it comes from) and what was measured of it.
    """

    mean: Tensor
    std: Tensor
    info: ModelInfo | None = None
    figures: Mapping[str, Any] = {}
    default_optimizer: Literal["sgd", "adamw"] = "sgd"
    """What it is trained with where nobody names an optimiser."""
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

    def set_normalization(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the statistics of the training pictures, per channel, in units of 0..1."""
        self.mean.copy_(torch.as_tensor(mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.std.copy_(torch.as_tensor(std, dtype=torch.float32).view(1, 3, 1, 1))

    def normalize(self, x: Tensor) -> Tensor:
        """Map ``(N, 3, H, W)`` RGB in 0..1 to zero mean and unit deviation."""
        return (x - self.mean) / self.std

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights (safetensors), description (JSON) and a model card, for ``camkd.load(folder)`` anywhere.

        Raises ``InputError`` for a network that is not a trained one from ``camkd.load``.

        >>> camkd.load("runs/mine").save_pretrained("to-share")      # doctest: +SKIP
        """
        save_portable(self, Path(folder), self._said(), self.figures)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
    ) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face Hub; returns the address.

        As in ``huggingface_hub.PyTorchModelHubMixin``; the extra ``camkd[hub]`` brings that package. Whoever has it
        loads the model with ``camkd.load(huggingface_hub.snapshot_download(repo_id))``. Raises ``InputError`` where the
        package is not installed.

        >>> camkd.load("runs/mine").push_to_hub("someone/my-birds")  # doctest: +SKIP
        """
        how = {"commit_message": commit_message, "private": private, "token": token}
        return upload(self, repo_id, self._said(), self.figures, **how)

    def _said(self) -> ModelInfo:
        if self.info is None:
            raise InputError(
                f"this {type(self).__name__} knows nothing of its classes and its training: "
                "save one that was loaded with camkd.load."
            )
        return self.info
