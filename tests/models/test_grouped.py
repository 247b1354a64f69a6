"""A classifier whose classes are grouped: logits, maps, name and saving."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from camkd.cams import form, predict
from camkd.models import build, default_optimizer, is_model_name, model_factory
from camkd.models.grouped import GroupedClassifier, grouped_name, split_groups
from camkd.models.io import ModelInfo, save
from camkd.runs.loading import load
from camkd.types import InputError

GROUPS = [(0, 3), (4,), (1, 5)]


def images() -> torch.Tensor:
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def network() -> tuple[GroupedClassifier, torch.nn.Module]:
    """Return a grouped network and the network itself."""
    base = build("resnet8", 6, 16)
    base.set_normalization([0.4, 0.5, 0.6], [0.2, 0.3, 0.2])
    reference = build("resnet8", 6, 16)
    reference.load_state_dict(base.state_dict())
    return GroupedClassifier(base, GROUPS, 6).eval(), reference.eval()


def test_probabilities_are_the_sums_of_the_groups() -> None:
    model, base = network()
    with torch.no_grad():
        logits, base_logits = model(images()), base(images())
    used = [index for group in GROUPS for index in group]
    probabilities = base_logits[:, used].softmax(1)
    for label, group in enumerate(GROUPS):
        columns = [used.index(index) for index in group]
        torch.testing.assert_close(logits.softmax(1)[:, label], probabilities[:, columns].sum(1))
        torch.testing.assert_close(logits[:, label], base_logits[:, list(group)].exp().sum(1).log())


def test_maps_are_those_of_the_classes_weighted_by_their_softmax_in_the_group() -> None:
    model, base = network()
    prediction = predict(model, images())
    base_prediction = predict(base, images())
    assert prediction.cams is not None
    assert base_prediction.cams is not None
    for label, group in enumerate(GROUPS):
        weights = base_prediction.logits[:, list(group)].softmax(1)
        expected = (weights[:, :, None, None] * base_prediction.cams[:, list(group)]).sum(1)
        torch.testing.assert_close(prediction.cams[:, label], expected, atol=1e-5, rtol=1e-4)
    assert form(model, images()) == "gradient"


def test_name_restores_the_network(tmp_path: Path) -> None:
    model, _ = network()
    name = grouped_name("resnet8", 6)
    assert name == "resnet8+groups-6"
    save(model, tmp_path, ModelInfo(name, ("a", "b", "c"), 16, 0, 0, "teacher", "plain", "easy", "0" * 64, 0))
    loaded = load(tmp_path)
    assert torch.equal(loaded(images()), model(images()))
    assert is_model_name(name)
    assert default_optimizer("cam-net+groups-6") == "adamw"


def test_extreme_logits_stay_finite_with_finite_gradients() -> None:
    model, _ = network()
    with torch.no_grad():
        model.base.fc.weight.mul_(1e4)
    x = images().requires_grad_()
    logits = model(x)
    logits.sum().backward()
    assert logits.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", ["resnet8+groups-", "resnet8+groups-1", "resnet8+groups-x", "resnet8+groups--3"])
def test_number_of_classes_must_be_given(name: str) -> None:
    with pytest.raises(InputError, match="2 or more"):
        split_groups(name)


@pytest.mark.parametrize("name", ["resnet8+patch-mean", "resnet9+groups-5", "resnet8+x"])
def test_other_suffixes_and_networks_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="model must be one of"):
        model_factory(name)
