"""A model's numbers on the test pictures against a loop that asks about one picture at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from camkd.cams import centre_prior, predict
from camkd.data import augment as views
from camkd.data.dataset import Dataset
from camkd.evaluate import SplitPredictions, evaluate, predict_split
from camkd.evaluate.metrics import map_likeness, means
from camkd.models import build
from camkd.train import validation as referee


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build("resnet8", 3, 16, seed=1).eval()


def one_by_one(model: nn.Module, data: Dataset) -> tuple[Tensor, Tensor]:
    """Logits ``(N, K)`` and maps ``(N, K, h, w)`` of the test pictures."""
    logits, cams = [], []
    for image in data.test.images:
        x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            answer = predict(model, x)
        assert answer.cams is not None
        logits.append(answer.logits[0])
        cams.append(answer.cams[0])
    return torch.stack(logits), torch.stack(cams)


def test_examine_is_the_literal_loop(model: nn.Module, easy: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "IN_ORDER", 7)  # 24 = 7 + 7 + 7 + 3
    found = predict_split(model, easy.test)
    logits, cams = one_by_one(model, easy)
    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-5)
    assert torch.equal(found.class_ids, logits.argmax(1))
    torch.testing.assert_close(found.maps, cams[torch.arange(24), logits.argmax(1)], rtol=1e-4, atol=1e-4)
    assert found.form == "exact"


def test_of_large_pictures_a_few_are_asked_about_at_a_time(
    model: nn.Module, easy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "IN_ORDER_BYTES", 5 * 16 * 16 * 3)
    seen: list[int] = []
    with model.register_forward_pre_hook(lambda _, given: seen.append(len(given[0]))):
        predict_split(model, easy.test)
        assert max(seen) == 5
        seen.clear()
        referee.Validator(easy, torch.device("cpu"), False, None)(model)
        assert max(seen) == 5


def test_maps_are_of_the_classes_shown(model: nn.Module, easy: Dataset) -> None:
    shown = torch.arange(24) * 2 % 3
    found = predict_split(model, easy.test, shown)
    _, cams = one_by_one(model, easy)
    assert torch.equal(found.class_ids, shown)
    torch.testing.assert_close(found.maps, cams[torch.arange(24), shown], rtol=1e-4, atol=1e-4)


def test_examine_leaves_the_model_as_it_was(easy: Dataset) -> None:
    model = build("resnet8", 3, 16)
    model.train()
    model.layer1.eval()
    modes = [m.training for m in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, second = predict_split(model, easy.test), predict_split(model, easy.test)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(first.logits, second.logits)
    assert not first.logits.requires_grad


def test_figures_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 4.0]])
    labels = torch.tensor([0, 0, 1, 1])
    own = SplitPredictions(logits, torch.rand(4, 4, 4), torch.tensor([0, 1, 0, 1]), "exact")
    figures = evaluate(own, labels, ("cat", "dog"), None)
    chances = logits.softmax(1)
    assert figures["accuracy"] == 0.5
    assert figures["confusion"] == [[1, 1], [1, 1]]
    assert figures["per_class"] == {"cat": 0.5, "dog": 0.5}
    assert figures["nll"] == pytest.approx(-float(chances[range(4), labels].log().mean()))
    assert figures["cam_form"] == "exact"
    assert not any(name.startswith(("teacher", "cam_cosine")) for name in figures)


def test_maps_on_objects_stand_beside_their_chance_levels() -> None:
    maps = torch.zeros(2, 4, 4)
    maps[0, 0, 0] = maps[1, 2, 1] = 1
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, :2, :2] = masks[1, 2:4, 2:4] = True  # on the first map, and beside the second in the middle
    own = SplitPredictions(torch.eye(2), maps, torch.tensor([0, 1]), "exact")
    figures = evaluate(own, torch.tensor([0, 1]), ("cat", "dog"), None, masks)
    assert figures["cam_inside"] == figures["cam_pointing_game"] == 0.5
    assert figures["cam_inside_chance"] == figures["cam_pointing_game_chance"] == 4 / 64
    assert figures["cam_pointing_game_centre"] == 0.5  # of four equal cells in the middle the first, with pixel 3, 3
    weights = centre_prior(4, 4) / centre_prior(4, 4).sum()
    assert figures["cam_inside_centre"] == pytest.approx(float(weights[0, 0] + weights[1, 1]) / 2)


def test_what_was_not_measured_is_absent() -> None:
    """The accuracy on a class without test pictures, and the confusion matrix of more than 1,000 classes."""
    own = SplitPredictions(torch.eye(3)[[0, 1]], torch.rand(2, 4, 4), torch.tensor([0, 1]), "gradient")
    figures = evaluate(own, torch.tensor([0, 0]), ("a", "b", "c"), None)
    assert figures["per_class"] == {"a": 0.5}
    assert figures["confusion"] == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]
    own = SplitPredictions(torch.eye(1001)[:1], torch.rand(1, 4, 4), torch.tensor([0]), "gradient")
    assert "confusion" not in evaluate(own, torch.tensor([0]), tuple(map(str, range(1001))), None)


def test_figures_with_a_teacher() -> None:
    labels, shown = torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0])
    own = SplitPredictions(torch.eye(2)[[0, 0, 0]], torch.rand(3, 4, 4), shown, "exact")
    theirs = SplitPredictions(torch.eye(2)[shown], torch.rand(3, 8, 8), shown, "exact")
    figures = evaluate(own, labels, ("a", "b"), theirs)
    assert figures["accuracy"] == pytest.approx(1 / 3)
    assert figures["teacher_accuracy"] == pytest.approx(2 / 3)
    assert figures["teacher_agreement"] == pytest.approx(2 / 3)
    expected = means(map_likeness(own.maps, theirs.maps))
    assert {name: figures[name] for name in expected} == expected
    assert len(expected) == 15


def test_model_that_is_its_own_teacher(model: nn.Module, easy: Dataset) -> None:
    own = predict_split(model, easy.test)
    figures = evaluate(own, torch.from_numpy(easy.test.labels), easy.classes, own)
    assert figures["teacher_agreement"] == 1.0
    assert figures["cam_cosine"] == pytest.approx(1.0, abs=1e-5)
    assert figures["cam_iou"] == pytest.approx(1.0)
    assert figures["teacher_accuracy"] == figures["accuracy"]


def test_maps_of_different_classes_are_not_compared(model: nn.Module, easy: Dataset) -> None:
    own = predict_split(model, easy.test)
    other = own._replace(class_ids=(own.class_ids + 1) % 3)
    with pytest.raises(AssertionError, match="different classes"):
        evaluate(own, torch.from_numpy(easy.test.labels), easy.classes, other)


def test_gradient_form_is_said(easy: Dataset) -> None:
    layers = [nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    few = replace(easy.test, images=easy.test.images[:3], labels=easy.test.labels[:3])
    found = predict_split(model, few)
    assert found.form == "gradient"
    assert found.maps.shape == (3, 8, 8)
    assert not found.maps.requires_grad
