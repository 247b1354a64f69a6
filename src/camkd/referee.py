"""Judging a model on the validation pictures while it trains."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from camkd.cams import predict
from camkd.data.store import Dataset, rows_within
from camkd.data.views import Batch, Views
from camkd.metrics import cosine, on_one_grid
from camkd.models.modes import evaluating
from camkd.types import Prediction

EVALUATION_BATCH = 500
EVALUATION_BYTES = 1 << 22
"""The most pictures judged at once, and the most bytes of them: 27 pictures of 224 pixels."""


class Referee:
    """Judges a model on the validation pictures; the teacher's answers to them are asked once."""

    def __init__(self, data: Dataset, device: torch.device, bf16: bool, teacher: nn.Module | None) -> None:
        self.views = Views(data.val.images, data.val.labels, len(data.classes), "none", 0, device)
        self.bf16, self.teacher = bf16, teacher
        self.batch = min(EVALUATION_BATCH, rows_within(EVALUATION_BYTES, data.val.images))
        self.known = [] if teacher is None else [_said(self._ask(teacher, batch)) for batch in self._batches()]

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """``val_accuracy``, ``val_loss``, and with a teacher ``val_teacher_agreement`` and ``val_cam_cosine``."""
        sums: dict[str, float] = {}
        for index, batch in enumerate(self._batches()):
            answer = self._ask(model, batch)
            values = {
                "val_accuracy": (answer.logits.argmax(1) == batch.labels).float(),
                "val_loss": nn.functional.cross_entropy(answer.logits, batch.labels, reduction="none"),
            }
            if self.teacher is not None:
                values |= _alike(answer, *self.known[index])
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + float(value.sum())
        return {name: value / len(self.views) for name, value in sums.items()}

    def _batches(self) -> Iterator[Batch]:
        for samples in torch.arange(len(self.views)).split(self.batch):
            yield self.views[0, samples]

    def _ask(self, model: nn.Module, batch: Batch) -> Prediction:
        with (
            evaluating(model),
            torch.no_grad(),
            torch.autocast(batch.x.device.type, torch.bfloat16, enabled=self.bf16),
        ):
            return (predict(model, batch.x) if self.teacher else Prediction(model(batch.x))).float()


def _said(answer: Prediction, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A label for each picture (None: the predicted one), and the map of that class alone."""
    assert answer.cams is not None
    label = answer.logits.argmax(1) if label is None else label
    return label, answer.cams[torch.arange(len(label), device=label.device), label]


def _alike(answer: Prediction, label: Tensor, theirs: Tensor) -> dict[str, Tensor]:
    """Same label as the teacher's, and the cosine between both maps of that class."""
    _, ours = _said(answer, label)
    return {
        "val_teacher_agreement": (answer.logits.argmax(1) == label).float(),
        "val_cam_cosine": cosine(*on_one_grid(ours, theirs)),
    }
