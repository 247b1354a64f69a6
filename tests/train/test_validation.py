"""Validation during training."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import sklearn.metrics
import torch
from torch import nn

from camkd.cams import predict, resize
from camkd.data.dataset import Dataset
from camkd.evaluate.metrics import cosine
from camkd.train import validation
from camkd.train.validation import Validator
from support.training import build_network, compute_targets, copy_weights, equal_weights

CPU = torch.device("cpu")


@pytest.fixture
def student() -> nn.Module:
    return build_network(3, "cam-net").eval()


@pytest.mark.parametrize("batch_size", [500, 7])  # 24 = 7 + 7 + 7 + 3
def test_metrics_equal_a_literal_loop(
    easy: Dataset, student: nn.Module, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    """Image by image, with the maps of both networks on the larger grid."""
    monkeypatch.setattr(validation, "BATCH_SIZE", batch_size)
    teacher = build_network(4).eval()
    metrics = Validator(easy, CPU, False, compute_targets(teacher, easy))(student)
    correct = []
    losses = []
    agreements = []
    cosines = []
    for image, label in zip(easy.val.images, easy.val.labels, strict=True):
        x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            student_prediction = predict(student, x)
            teacher_prediction = predict(teacher, x)
        predicted = int(student_prediction.logits.argmax())
        target = int(teacher_prediction.logits.argmax())
        correct.append(predicted == label)
        losses.append(-float(student_prediction.logits.log_softmax(1)[0, label]))
        agreements.append(predicted == target)
        assert student_prediction.cams is not None
        assert teacher_prediction.cams is not None
        grid = max(student_prediction.cams.shape[2:], teacher_prediction.cams.shape[2:])
        student_map, teacher_map = (
            resize(cams[:, target], grid) for cams in (student_prediction.cams, teacher_prediction.cams)
        )
        cosines.append(float(cosine(student_map, teacher_map)))
    expected = {
        "val_accuracy": sum(correct) / 24,
        "val_loss": sum(losses) / 24,
        "val_balanced_accuracy": np.mean([np.mean(np.array(correct)[easy.val.labels == k]) for k in range(3)]),
        "val_teacher_agreement": sum(agreements) / 24,
        "val_cam_cosine": sum(cosines) / 24,
    }
    assert metrics == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_classes_count_equally_in_the_balanced_accuracy(easy: Dataset, student: nn.Module) -> None:
    """Images of one class are removed, and those of another class repeated: only the accuracy changes."""
    rows = np.concatenate([np.flatnonzero(easy.val.labels == 0).repeat(5), np.flatnonzero(easy.val.labels == 1)])
    data = replace(easy, val=easy.val.take(rows))
    metrics = Validator(data, CPU, False, None)(student)
    logits = torch.cat([student(batch.x) for _, batch in Validator(data, CPU, False, None)._shards()])
    expected = sklearn.metrics.balanced_accuracy_score(data.val.labels, logits.argmax(1).numpy(), adjusted=False)
    assert metrics["val_balanced_accuracy"] == pytest.approx(expected)


def test_metrics_without_a_teacher(easy: Dataset, student: nn.Module) -> None:
    metrics = Validator(easy, CPU, False, None)(student)
    with_teacher = Validator(easy, CPU, False, compute_targets(build_network(4), easy))(student)
    assert metrics.keys() == {"val_accuracy", "val_loss", "val_balanced_accuracy"}
    assert metrics == pytest.approx({name: with_teacher[name] for name in metrics}, rel=1e-5)


def test_agreement_with_itself_is_complete(easy: Dataset, student: nn.Module) -> None:
    metrics = Validator(easy, CPU, False, compute_targets(student, easy))(student)
    assert metrics["val_teacher_agreement"] == 1.0
    assert metrics["val_cam_cosine"] == pytest.approx(1.0, abs=1e-4)


def test_validation_leaves_the_model_unchanged(easy: Dataset, student: nn.Module) -> None:
    """Validation runs the model in evaluation mode and without gradients."""
    student.train()
    before = copy_weights(student)
    training = []
    hook = student.register_forward_hook(lambda module, inputs, output: training.append(module.training))
    Validator(easy, CPU, False, None)(student)
    hook.remove()
    assert training == [False]
    assert all(module.training for module in student.modules())
    assert equal_weights(copy_weights(student), before)
    assert all(parameter.grad is None for parameter in student.parameters())


def test_bf16_validation(easy: Dataset) -> None:
    model = build_network().eval()
    dtypes = set()
    hook = model.conv1.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    metrics = Validator(easy, CPU, True, None)(model)
    hook.remove()
    assert dtypes == {torch.bfloat16}
    assert metrics["val_loss"] == pytest.approx(Validator(easy, CPU, False, None)(model)["val_loss"], rel=0.02)
    assert math.isfinite(metrics["val_loss"])
