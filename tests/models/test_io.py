"""Saving and sharing of models: files, portable model info, model cards and uploads."""

from __future__ import annotations

import inspect
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import camkd
from camkd.models import build
from camkd.models.io import CARD_FILE, INFO_FILE, MAX_IMAGE_SIZE, METRICS_FILE, WEIGHTS_FILE, save
from camkd.types import InputError
from support.hub import LocalHub
from support.model_info import INFO

METRICS = {
    "epochs": 30,
    "augment_epochs": 15,
    "seconds": 600.0,
    "accuracy": 0.8125,
    "cam_cosine": 0.97,
    "teacher_agreement": 0.9,
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a model and its metrics."""
    folder = tmp_path / "run"
    save(build("resnet8", 3, 8, seed=5), folder, INFO)
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    return folder


def card_text(run: Path, folder: Path, **metrics: Any) -> str:
    """Return the model card of a run, with additional metrics."""
    (run / "metrics.json").write_text(json.dumps(METRICS | metrics))
    camkd.load(run).save_pretrained(folder)
    return (folder / CARD_FILE).read_text(encoding="utf-8")


def results(text: str) -> dict[str, str]:
    """Return the rows of the card's results: the value by its label."""
    rows = [row.strip("| ").split(" | ") for row in text.splitlines() if row.startswith("| ") and row.endswith("% |")]
    return dict(rows)


def test_saved_model_has_equal_predictions_after_loading(run: Path, tmp_path: Path) -> None:
    model = camkd.load(run)
    folder = tmp_path / "shared"
    model.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted([CARD_FILE, INFO_FILE, METRICS_FILE, WEIGHTS_FILE])
    loaded = camkd.load(str(folder))
    assert loaded.metrics == METRICS
    x = torch.rand(2, 3, 8, 8)
    for expected, actual in zip(camkd.predict(model, x)[:2], camkd.predict(loaded, x)[:2], strict=True):
        assert torch.equal(actual, expected)
    assert loaded.info is not None
    assert loaded.info.classes == INFO.classes


def test_saved_files_contain_no_paths_of_this_machine(run: Path, tmp_path: Path) -> None:
    camkd.load(run).save_pretrained(tmp_path / "shared")
    for path in (tmp_path / "shared").iterdir():
        assert b"someone" not in path.read_bytes()
    assert json.loads((tmp_path / "shared" / INFO_FILE).read_text())["data"] == "pets"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"classes": ("a",)}, ValueError, r"classes must be two names or more, got \['a'\]"),
        ({"classes": ("a", 1)}, ValueError, r"got \['a', 1\]"),
        ({"classes": ["a", "b"]}, TypeError, r"classes must be of type tuple, got \['a', 'b'\]"),
        ({"classes": ("a", "\ud800")}, ValueError, "surrogates"),
        ({"size": 0}, ValueError, f"size must be between 1 and {MAX_IMAGE_SIZE}, got 0"),
        ({"size": True}, TypeError, "size must be of type int, got True"),
        ({"seed": "3"}, TypeError, "seed must be of type int, got '3'"),
        ({"teacher": 3}, TypeError, r"teacher must be of type str \| None, got 3"),
    ],
)
def test_invalid_info_raises(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        replace(INFO, **change).check()
    INFO.check()


# --- model cards


def test_hub_reads_the_card(run: Path, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    camkd.load(run).save_pretrained(tmp_path)
    card = hub.ModelCard.load(tmp_path / CARD_FILE)
    assert card.data.library_name == "camkd"
    assert card.data.pipeline_tag == "image-classification"
    assert [(r.metric_type, r.metric_value, r.dataset_name) for r in card.data.eval_results] == [
        ("accuracy", 0.8125, "pets")
    ]
    assert "犬: or fox" in card.text


def test_card_names_results_and_training(run: Path, tmp_path: Path) -> None:
    text = card_text(run, tmp_path, test_images=1200)
    assert sorted(results(text).values()) == ["81.2 %", "90.0 %", "97.0 %"]
    assert results(text)["accuracy"] == "81.2 %"
    assert "| on 1,200 test images | |" in text
    assert "chance" not in text
    for fact in (
        "`resnet8`",
        "77,000 parameters",
        "8 x 8 pixels",
        "3 classes",
        "`cam-kd`",
        "`pets`",
        "`abc`",
        "Seed: 3",
    ):
        assert fact in text
    for fact in ("Epochs: 30", "15 different augmentations", "10 minutes"):
        assert fact in text


def test_card_has_the_largest_chance_level_of_the_similarity(run: Path, tmp_path: Path) -> None:
    text = card_text(run, tmp_path, cam_cosine_mean_map=0.4, cam_cosine_center=0.625)
    assert [value for label, value in results(text).items() if "chance" in label] == ["62.5 %"]


def test_card_without_metrics_has_no_results(run: Path, tmp_path: Path) -> None:
    (run / "metrics.json").unlink()
    camkd.load(run).save_pretrained(tmp_path)
    text = (tmp_path / CARD_FILE).read_text(encoding="utf-8")
    assert "model-index" not in yaml.safe_load(text.split("---")[1])
    assert results(text) == {}
    assert "%" not in text


@pytest.mark.parametrize("form", ["exact", "gradient", None])
def test_card_describes_the_form_and_the_cost_of_the_maps(run: Path, tmp_path: Path, form: str | None) -> None:
    text = card_text(run, tmp_path, **({"cam_form": form} if form else {}))
    assert "class activation map" in text
    assert ("in the same forward pass" in text) == (form == "exact")
    assert ("in units of its logit" in text) == (form == "exact")
    assert ("one backward pass per class" in text) == (form == "gradient")


@pytest.mark.parametrize("content", ["{", "[1]x"])
def test_model_with_corrupt_metrics_is_loaded_without_metrics(run: Path, content: str) -> None:
    (run / "metrics.json").write_text(content)
    assert camkd.load(run).metrics == {}


def test_saving_a_model_without_info_raises(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"info of the ResNet must .* got None"):
        build("resnet8", 3, 8).save_pretrained(tmp_path / "x")
    assert not (tmp_path / "x").exists()


# --- upload to the Hugging Face Hub


def test_uploaded_files_equal_saved_files(run: Path, tmp_path: Path, hub: LocalHub) -> None:
    model = camkd.load(run)
    url = model.push_to_hub("me/pets", private=True, token="t", commit_message="first")
    assert url == "https://huggingface.co/me/pets"
    model.save_pretrained(tmp_path / "shared")
    uploaded = {path.name: path.read_bytes() for path in hub.folder("me/pets").iterdir()}
    saved = {path.name: path.read_bytes() for path in (tmp_path / "shared").iterdir()}
    saved[CARD_FILE] = saved[CARD_FILE].replace(b'camkd.load("FOLDER")', b'camkd.load("hf:me/pets")')
    assert uploaded == saved
    assert hub.commits == [("me/pets", "model", "first", "t")]
    assert hub.private == {("me/pets", "model"): True}


def test_methods_have_the_parameters_of_the_mixin_of_the_hub() -> None:
    hub = pytest.importorskip("huggingface_hub")
    for name in ("save_pretrained", "push_to_hub"):
        mixin_parameters = inspect.signature(getattr(hub.PyTorchModelHubMixin, name)).parameters
        parameters = inspect.signature(getattr(camkd.models.ImageClassifier, name)).parameters
        assert set(parameters) - {"folder"} <= set(mixin_parameters)
        assert list(parameters)[1] in {*mixin_parameters, "folder"}


def test_message_without_huggingface_hub_names_the_package_to_install(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install 'camkd\[hub\]'"):
        camkd.load(run).push_to_hub("me/pets")
