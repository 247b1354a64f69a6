"""Base class of the networks: image classifiers that normalize their input."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from camkd.models.hub import PREFIX, upload_folder
from camkd.models.io import ModelInfo, save_portable
from camkd.types import InputError


class ImageClassifier(nn.Module):
    """Base class of a classifier that takes RGB images in 0..1 and normalizes them itself.

    A subclass implements ``forward(x)`` from images ``(N, 3, H, W)`` to logits ``(N, K)``, and calls `normalize` first.
    The buffers ``mean`` and ``std`` are saved with the weights, so saved and exported models keep their normalization.

    Attributes:
        mean: Mean of the training images per channel, ``(1, 3, 1, 1)``.
        std: Standard deviation of the training images per channel, ``(1, 3, 1, 1)``.
        info: Name of the network, classes, image size and training; set by `camkd.load`, else None.
        metrics: Content of the run's ``metrics.json``, set by `camkd.load`. Empty if there is none.
        default_optimizer: Optimizer that ``--optimizer auto`` stands for.
        has_pretrained_normalization: Whether ``mean`` and ``std`` belong to pretrained weights. If so, training keeps
            them; otherwise it replaces them by the statistics of its own images.
    """

    mean: Tensor
    std: Tensor
    info: ModelInfo | None = None
    metrics: Mapping[str, Any] = {}
    default_optimizer: Literal["sgd", "adamw"] = "sgd"
    has_pretrained_normalization: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.5))
        self.register_buffer("std", torch.full((1, 3, 1, 1), 0.25))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Keep ``mean`` and ``std`` if the state dict has none, for example a state dict of torchvision."""
        for name in ("mean", "std"):
            state_dict.setdefault(prefix + name, getattr(self, name))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def set_normalization(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the statistics of the training images.

        Args:
            mean: Mean of each of the 3 channels, in units of 0..1.
            std: Standard deviation of each of the 3 channels, in units of 0..1.

        Example:
            >>> model = ImageClassifier()
            >>> model.set_normalization([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        """
        self.mean.copy_(torch.as_tensor(mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.std.copy_(torch.as_tensor(std, dtype=torch.float32).view(1, 3, 1, 1))

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize images: ``(x - mean) / std``.

        Args:
            x: Images ``(N, 3, H, W)``, RGB in 0..1.

        Returns:
            Images ``(N, 3, H, W)`` with zero mean and unit standard deviation per channel over the training images.
        """
        return (x - self.mean) / self.std

    def save_pretrained(self, folder: str | Path) -> None:
        """Save weights, info, metrics and a model card, for ``camkd.load(folder)`` on any machine.

        Args:
            folder: The folder to write to; it is created if needed.

        Raises:
            InputError: If ``info`` is None, because the model does not come from `camkd.load`.

        Example:
            >>> camkd.load("runs/mine").save_pretrained("to-share")  # doctest: +SKIP
        """
        save_portable(self, Path(folder), self._require_info(), self.metrics)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
    ) -> str:
        """Upload the files of `save_pretrained` to the Hugging Face Hub.

        The signature follows ``huggingface_hub.PyTorchModelHubMixin``. The method needs the extra ``camkd[hub]``. Load
        the model on another machine with ``camkd.load("hf:user/name")``.

        Args:
            repo_id: Repository on the Hub, ``user/name``; it is created if needed.
            commit_message: Message of the commit (default: "Upload model").
            private: Whether a new repository is private (default: the default of the user or organization).
            token: Access token (default: the token that ``hf auth login`` stored).

        Returns:
            The URL of the repository.

        Raises:
            InputError: If ``info`` is None, if ``huggingface_hub`` is not installed, or if the Hub rejects the upload
                or cannot be reached.

        Example:
            >>> camkd.load("runs/mine").push_to_hub("someone/my-birds")  # doctest: +SKIP
            'https://huggingface.co/someone/my-birds'
        """
        info = self._require_info()
        with tempfile.TemporaryDirectory() as folder:
            save_portable(self, Path(folder), info, self.metrics, PREFIX + repo_id)
            return upload_folder(
                Path(folder), repo_id, private=private, token=token, commit_message=commit_message or "Upload model"
            )

    def _require_info(self) -> ModelInfo:
        if self.info is None:
            raise InputError(
                f"info of the {type(self).__name__} must name its classes and its training, got None. "
                "Save a model from camkd.load."
            )
        return self.info
