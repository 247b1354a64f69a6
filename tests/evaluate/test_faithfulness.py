"""Faithfulness metrics over a sample of a split."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from camkd.data import batches
from camkd.data.dataset import Dataset, Split
from camkd.evaluate import faithfulness
from camkd.evaluate.metrics import derangement
from camkd.evaluate.perturbation import average_drop, deletion, insertion
from camkd.evaluate.road import road
from camkd.models import build
from support.evaluation_inputs import explain_predicted, sensitive_network

METRICS = ("insertion", "deletion", "road", "average_drop", "confidence_increase")


@pytest.fixture(scope="module")
def model() -> nn.Sequential:
    return sensitive_network()


@pytest.mark.slow
def test_faithfulness_is_the_mean_over_the_sample(
    model: nn.Sequential, easy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "DEFAULT_MAX_IMAGES", 7)
    values = faithfulness(model, easy.test)
    assert list(values) == [
        *METRICS,
        *(f"{name}_shuffled" for name in METRICS),
        "randomized_spearman",
        "faithfulness_images",
    ]
    x = torch.from_numpy(easy.test.images.copy()).permute(0, 3, 1, 2) / 255
    score, maps, _ = explain_predicted(model, x)
    with torch.no_grad():
        for suffix, suffix_maps in (("", maps), ("_shuffled", maps[derangement(24)])):
            drop, increase = average_drop(score, x, suffix_maps)
            expected = {
                "insertion": insertion(score, x, suffix_maps),
                "deletion": deletion(score, x, suffix_maps),
                "road": road(score, x, suffix_maps),
                "average_drop": drop,
                "confidence_increase": increase,
            }
            for name, value in expected.items():
                assert values[name + suffix] == pytest.approx(value.mean().item(), abs=1e-5)


def test_sample_is_balanced_over_the_classes(model: nn.Sequential, easy: Dataset) -> None:
    order = np.argsort(easy.test.labels, kind="stable")  # sorted by class, as in a folder
    split = Split(easy.test.images[order], easy.test.labels[order])
    expected = faithfulness(model, split.take(np.array([0, 1, 8, 9, 16])))
    assert faithfulness(model, split, count=5) == expected
    assert expected["faithfulness_images"] == 5


def test_single_image_has_no_shuffled_chance_level(model: nn.Sequential, easy: Dataset) -> None:
    single = replace(easy.test, images=easy.test.images[:1], labels=easy.test.labels[:1])
    values = faithfulness(model, single)
    assert values["faithfulness_images"] == 1
    assert set(METRICS) < set(values)
    assert not any(name.endswith("_shuffled") for name in values)


@pytest.mark.slow
def test_faithfulness_leaves_the_model_unchanged(easy: Dataset) -> None:
    model = build("resnet8", 3, 16).train()
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert faithfulness(model, easy.test) == faithfulness(model, easy.test)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
