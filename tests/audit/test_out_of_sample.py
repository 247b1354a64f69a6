"""Out-of-sample predictions for label errors: no image is predicted by a head or by layers that saw its label."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from camkd.audit.findings import find_faults
from camkd.audit.inventory import Inventory, open_inventory
from camkd.audit.label_errors import FOLDS, find_label_errors, predict_out_of_sample, trains_all_layers
from camkd.config import DataConfig
from camkd.data.dataset import no_progress
from camkd.data.near_duplicates import DuplicateGroup
from camkd.data.sources import open_data
from camkd.types import InputError
from support.cli import camkd
from support.untrained import save_untrained


def make_inventory(labels: NDArray[np.int64], groups: tuple[str | None, ...] = ()) -> Inventory:
    count = len(labels)
    return Inventory(
        name="numbers",
        classes=tuple(f"class {label}" for label in range(int(labels.max()) + 1)),
        size=8,
        parts=(np.zeros((count, 8, 8, 3), np.uint8),),
        splits=np.repeat("train", count),
        labels=labels,
        names=tuple(map(str, range(count))),
        paths=None,
        errors={},
        sizes={},
        notes=(),
        groups=groups,
    )


def accuracy(inventory: Inventory, features: torch.Tensor, duplicates: list[DuplicateGroup]) -> float:
    prediction = predict_out_of_sample(inventory, duplicates, np.ones(len(inventory), np.bool_), features)
    assert np.allclose(prediction.probabilities.sum(1), 1)
    return float((prediction.probabilities.argmax(1) == prediction.labels).mean())


def test_features_without_information_are_predicted_by_chance() -> None:
    """A head that was trained on an image would predict it: there are more features than images."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    features = torch.from_numpy(rng.standard_normal((200, 300)).astype(np.float32))
    assert accuracy(make_inventory(labels), features, []) == pytest.approx(0.5, abs=0.12)


def test_duplicates_and_groups_stay_in_one_fold() -> None:
    rng = np.random.default_rng(0)
    labels = np.tile(rng.integers(0, 2, 100), 2)
    features = torch.from_numpy(rng.standard_normal((100, 300)).astype(np.float32)).repeat(2, 1)
    pairs = [DuplicateGroup((row, row + 100), True, 1.0) for row in range(100)]
    assert accuracy(make_inventory(labels), features, []) > 0.75, "copies give away the labels"
    assert accuracy(make_inventory(labels), features, pairs) == pytest.approx(0.5, abs=0.15)
    groups = tuple(f"patient {row % 100}" for row in range(200))
    assert accuracy(make_inventory(labels, groups), features, []) == pytest.approx(0.5, abs=0.15)


def test_features_with_information_are_predicted() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    features = torch.from_numpy((np.eye(3)[labels] * 4 + rng.standard_normal((120, 3))).astype(np.float32))
    assert accuracy(make_inventory(labels), features, []) > 0.9


def test_classes_with_few_images_are_left_out() -> None:
    labels = np.array([0] * 20 + [1] * (FOLDS - 1) + [2] * FOLDS)
    features = torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(0))
    everything = np.ones(len(labels), np.bool_)
    prediction = predict_out_of_sample(make_inventory(labels), [], everything, features)
    assert prediction.classes.tolist() == [0, 2]
    assert prediction.rows.tolist() == [*range(20), *range(24, 29)]
    with pytest.raises(InputError, match="two classes with 5 images or more, got 1"):
        predict_out_of_sample(make_inventory(labels[:24]), [], everything[:24], features[:24])


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("train: head\n", False),
        ("train: head,all\n", True),
        ("train: all\nepochs: 5\n", True),
        ("train: all\nepochs: 5\nweights: net.pt\n", True),
        ("train: all\nepochs: 0\nweights: net.pt\n", False),
        ("student: cam-net\n", True),
        (None, True),
    ],
)
def test_layers_that_a_run_trained(easy_folder: Path, tmp_path: Path, config: str | None, expected: bool) -> None:
    run = save_untrained(tmp_path, "resnet8", open_data(easy_folder))
    if config is not None:
        (run / "config.yaml").write_text(config, encoding="utf-8")
    assert trains_all_layers(str(run)) is expected


def test_pretrained_network_saw_no_label() -> None:
    assert trains_all_layers("timm:resnet18.a1_in1k") is False


def test_run_that_was_trained_on_other_images_is_refused(easy_folder: Path, tmp_path: Path) -> None:
    run = save_untrained(tmp_path, "resnet8", open_data(easy_folder))
    config = DataConfig(str(easy_folder))
    with open_inventory(config, no_progress) as inventory:
        _, duplicates = find_faults(inventory, no_progress)
        with pytest.raises(InputError, match="whose layers were trained on other images or splits"):
            find_label_errors(
                inventory, duplicates, config, str(run), device="cpu", with_maps=False, progress=no_progress
            )


def test_cleanlab_is_missing(easy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    error = camkd("audit", str(easy_folder), "--teacher", "timm:resnet18.a1_in1k").error
    assert "--teacher needs cleanlab, which is not installed. Run pip install 'camkd[audit]'" in error
