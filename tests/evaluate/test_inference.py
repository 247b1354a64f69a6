"""Inference over a split against prediction of one image at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from camkd.cams import predict
from camkd.cams.gather import gather_classes
from camkd.data import batches
from camkd.data.dataset import Dataset
from camkd.evaluate import predict_split
from camkd.models import build
from camkd.train.validation import Validator


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build("resnet8", 3, 16, seed=1).eval()


def predict_one_by_one(model: nn.Module, data: Dataset) -> tuple[Tensor, Tensor]:
    """Return logits ``(N, K)`` and maps ``(N, K, h, w)`` of the test images."""
    logits = []
    cams = []
    for image in data.test.images:
        x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            prediction = predict(model, x)
        assert prediction.cams is not None
        logits.append(prediction.logits[0])
        cams.append(prediction.cams[0])
    return torch.stack(logits), torch.stack(cams)


def test_predict_split_matches_single_image_predictions(
    model: nn.Module, easy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "DEFAULT_MAX_IMAGES", 7)  # 24 = 7 + 7 + 7 + 3
    predictions = predict_split(model, easy.test)
    logits, cams = predict_one_by_one(model, easy)
    predicted = logits.argmax(1)
    torch.testing.assert_close(predictions.logits, logits, rtol=1e-4, atol=1e-5)
    assert torch.equal(predictions.class_ids, predicted)
    expected_maps = gather_classes(cams, predicted[:, None])[:, 0]
    torch.testing.assert_close(predictions.maps, expected_maps, rtol=1e-4, atol=1e-4)
    assert predictions.form == "exact"


def test_batches_of_large_images_are_limited_by_bytes(
    model: nn.Module, easy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "MAX_BATCH_BYTES", 5 * 16 * 16 * 3)
    batch_sizes: list[int] = []
    with model.register_forward_pre_hook(lambda _, inputs: batch_sizes.append(len(inputs[0]))):
        predict_split(model, easy.test)
        assert max(batch_sizes) == 5
        batch_sizes.clear()
        Validator(easy, torch.device("cpu"), False, None)(model)
        assert max(batch_sizes) == 5


def test_maps_are_of_the_given_classes(model: nn.Module, easy: Dataset) -> None:
    class_ids = torch.arange(24) * 2 % 3
    predictions = predict_split(model, easy.test, class_ids)
    _, cams = predict_one_by_one(model, easy)
    assert torch.equal(predictions.class_ids, class_ids)
    expected_maps = gather_classes(cams, class_ids[:, None])[:, 0]
    torch.testing.assert_close(predictions.maps, expected_maps, rtol=1e-4, atol=1e-4)


def test_predict_split_leaves_the_model_unchanged(easy: Dataset) -> None:
    model = build("resnet8", 3, 16)
    model.train()
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = predict_split(model, easy.test)
    second = predict_split(model, easy.test)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(first.logits, second.logits)
    assert not first.logits.requires_grad


def test_form_of_a_nonlinear_head_is_gradient(easy: Dataset) -> None:
    layers = [nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    three_images = replace(easy.test, images=easy.test.images[:3], labels=easy.test.labels[:3])
    predictions = predict_split(model, three_images)
    assert predictions.form == "gradient"
    assert predictions.maps.shape == (3, 8, 8)
    assert not predictions.maps.requires_grad
