"""Validation of a model during training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from camkd.cams import predict
from camkd.data.batches import sequential_batches
from camkd.data.dataset import Dataset
from camkd.data.views import Batch, Views
from camkd.evaluate import SplitPredictions
from camkd.evaluate.metrics import cosine, mean_recall, to_common_grid
from camkd.models.eval_mode import eval_mode
from camkd.types import Prediction
from camkd.utils.distributed import all_reduce_sum, process_group

BATCH_SIZE = 500
"""Largest number of images in a validation batch. Batches of large images are smaller."""


class _Targets(NamedTuple):
    """Classes ``(N,)`` that the teacher predicts, and its maps of these classes ``(N, h, w)``."""

    class_ids: Tensor
    maps: Tensor


class Validator:
    """Compute validation metrics of a model, and its agreement with the teacher if there is one.

    In distributed training, each process evaluates a shard of the images, and all processes return the same metrics.

    Args:
        data: The dataset. Only the validation images are used.
        device: Device of the model.
        bf16: Whether the forward pass runs in bf16.
        teacher: The teacher's predictions on the validation images, or None if the run has no teacher.
    """

    def __init__(self, data: Dataset, device: torch.device, bf16: bool, teacher: SplitPredictions | None) -> None:
        self.views = Views(data.val, len(data.classes), "none", 0, device)
        self.bf16 = bf16
        self.teacher = teacher
        self.batches = sequential_batches(data.val, BATCH_SIZE)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Return the validation metrics of a model, averaged over the validation images.

        Args:
            model: The model, on the device of the validator.

        Returns:
            ``val_accuracy``, ``val_loss`` and ``val_balanced_accuracy``; with a teacher also ``val_teacher_agreement``
            and ``val_cam_cosine``.
        """
        sums: dict[str, float] = {}
        num_classes = self.views.classes
        correct = torch.zeros(num_classes, dtype=torch.float64, device=self.views.device)
        for indices, batch in self._shards():
            targets = self._targets(indices, batch.x.device)
            prediction = self._predict(model, batch, targets)
            is_correct = prediction.logits.argmax(1) == batch.labels
            correct += torch.bincount(batch.labels, is_correct.double(), num_classes)
            values = {
                "val_accuracy": is_correct.float(),
                "val_loss": nn.functional.cross_entropy(prediction.logits, batch.labels, reduction="none"),
            }
            if targets is not None:
                values |= _agreement(prediction, targets)
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + float(value.sum())
        values_and_correct = torch.cat([torch.tensor(list(sums.values()), dtype=torch.float64).to(correct), correct])
        totals, correct = all_reduce_sum(values_and_correct).split([len(sums), num_classes])
        metrics = {name: float(total) / len(self.views) for name, total in zip(sums, totals, strict=True)}
        metrics["val_balanced_accuracy"] = mean_recall(correct, self.views.labels.bincount(minlength=num_classes))
        return metrics

    def _shards(self) -> Iterator[tuple[Tensor, Batch]]:
        """Yield this process's shard of each batch: the sample indices, and the images with labels."""
        for indices in self.batches:
            shard = process_group().shard(indices)
            yield shard, self.views[0, shard]

    def _targets(self, indices: Tensor, device: torch.device) -> _Targets | None:
        if self.teacher is None:
            return None
        return _Targets(self.teacher.class_ids[indices].to(device), self.teacher.maps[indices].to(device))

    def _predict(self, model: nn.Module, batch: Batch, targets: _Targets | None) -> Prediction:
        autocast = torch.autocast(batch.x.device.type, torch.bfloat16, enabled=self.bf16)
        with eval_mode(model), torch.no_grad(), autocast:
            if targets is None:
                return Prediction(model(batch.x)).float()
            return predict(model, batch.x, classes=targets.class_ids[:, None]).float()


def _agreement(prediction: Prediction, targets: _Targets) -> dict[str, Tensor]:
    """Return the match with the teacher's predicted class and the cosine of both maps of the class, each ``(N,)``."""
    assert prediction.cams is not None
    return {
        "val_teacher_agreement": (prediction.logits.argmax(1) == targets.class_ids).float(),
        "val_cam_cosine": cosine(*to_common_grid(prediction.cams[:, 0], targets.maps)),
    }
