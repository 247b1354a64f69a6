"""Judging a model on the validation pictures while it trains."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from camkd.cams import predict
from camkd.data.augment import Batch, Views, sequential_batches
from camkd.data.dataset import Dataset
from camkd.distill.teacher import TeacherTargets
from camkd.evaluate.metrics import cosine, to_common_grid
from camkd.models.eval_mode import eval_mode
from camkd.types import Prediction
from camkd.utils.distributed import all_reduce_sum, process_group

EVALUATION_BATCH = 500
"""The most pictures judged at once, fewer where they are large."""


class Validator:
    """Judges a model on the validation pictures, beside what its teacher said of them."""

    def __init__(self, data: Dataset, device: torch.device, bf16: bool, teacher: TeacherTargets | None) -> None:
        self.views = Views(data.val, len(data.classes), "none", 0, device)
        self.bf16, self.teacher = bf16, teacher
        self.batches = sequential_batches(data.val, EVALUATION_BATCH)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """``val_accuracy``, ``val_loss``, and with a teacher ``val_teacher_agreement`` and ``val_cam_cosine``."""
        sums: dict[str, float] = {}
        for samples, batch in self._batches():  # of several processes each judges its share
            shown = (
                None
                if self.teacher is None
                else TeacherTargets(*(part[samples].to(batch.x.device) for part in self.teacher))
            )
            answer = self._ask(model, batch, shown)
            values = {
                "val_accuracy": (answer.logits.argmax(1) == batch.labels).float(),
                "val_loss": nn.functional.cross_entropy(answer.logits, batch.labels, reduction="none"),
            }
            if shown is not None:
                values |= _alike(answer, shown)
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + float(value.sum())
        totals = all_reduce_sum(torch.tensor(list(sums.values()), dtype=torch.float64, device=self.views.device))
        return {name: float(total) / len(self.views) for name, total in zip(sums, totals, strict=True)}

    def _batches(self) -> Iterator[tuple[Tensor, Batch]]:
        for samples in self.batches:
            share = process_group().shard(samples)
            yield share, self.views[0, share]

    def _ask(self, model: nn.Module, batch: Batch, shown: TeacherTargets | None) -> Prediction:
        with (
            eval_mode(model),
            torch.no_grad(),
            torch.autocast(batch.x.device.type, torch.bfloat16, enabled=self.bf16),
        ):
            if shown is None:
                return Prediction(model(batch.x)).float()
            return predict(model, batch.x, classes=shown.labels[:, None]).float()


def _alike(answer: Prediction, shown: TeacherTargets) -> dict[str, Tensor]:
    """Same label as the teacher's, and the cosine between both maps of that class."""
    assert answer.cams is not None
    return {
        "val_teacher_agreement": (answer.logits.argmax(1) == shown.labels).float(),
        "val_cam_cosine": cosine(*to_common_grid(answer.cams[:, 0], shown.maps)),
    }
