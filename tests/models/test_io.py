"""Saving for others and sharing: what comes back, what stays here, and a card that the Hub takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import camkd
from camkd.models import build
from camkd.models.io import CARD_FILE, INFO_FILE, WEIGHTS_FILE, ModelInfo, save
from camkd.types import InputError

SAID = ModelInfo(
    architecture="resnet8",
    classes=("Katze", "犬: or fox", "bird"),
    size=8,
    params=77_000,
    macs=2,
    role="student",
    method="cam-kd",
    data="/home/someone/pets",
    data_fingerprint="abc",
    seed=3,
    teacher="/home/someone/teacher",
)
FIGURES = {
    "epochs": 30,
    "augment_epochs": 15,
    "seconds": 600.0,
    "accuracy": 0.8125,
    "cam_cosine": 0.97,
    "teacher_agreement": 0.9,
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    save(build("resnet8", 3, 8, seed=5), folder, SAID)
    (folder / "metrics.json").write_text(json.dumps(FIGURES))
    return folder


def test_what_was_saved_for_others_answers_the_same(run: Path, tmp_path: Path) -> None:
    model, place = camkd.load(run), tmp_path / "shared"
    model.save_pretrained(place)
    assert sorted(path.name for path in place.iterdir()) == sorted([CARD_FILE, INFO_FILE, WEIGHTS_FILE])
    back, x = camkd.load(str(place)), torch.rand(2, 3, 8, 8)
    for own, other in zip(camkd.predict(model, x)[:2], camkd.predict(back, x)[:2], strict=True):
        assert torch.equal(own, other)
    assert back.info is not None
    assert back.info.classes == SAID.classes


def test_no_path_of_this_machine_is_shared(run: Path, tmp_path: Path) -> None:
    camkd.load(run).save_pretrained(tmp_path / "shared")
    for path in (tmp_path / "shared").iterdir():
        assert b"someone" not in path.read_bytes()
    assert json.loads((tmp_path / "shared" / INFO_FILE).read_text())["data"] == "pets"


def test_the_card_is_one_that_the_hub_reads(run: Path, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    camkd.load(run).save_pretrained(tmp_path)
    card = hub.ModelCard.load(tmp_path / CARD_FILE)
    assert card.data.library_name == "camkd"
    assert card.data.pipeline_tag == "image-classification"
    assert [(r.metric_type, r.metric_value, r.dataset_name) for r in card.data.eval_results] == [
        ("accuracy", 0.8125, "pets")
    ]
    assert "犬: or fox" in card.text
    assert "| same answer as its teacher | 90.0 % |" in card.text
    assert "chance" not in card.text
    assert "30 epochs over 15 different views of each picture, 10 minutes of training." in card.text


def test_the_card_has_chance_beside_likeness(run: Path, tmp_path: Path) -> None:
    levels = {"cam_cosine_shuffled": 0.4, "cam_cosine_centre": 0.625, "test_images": 1200}
    (run / "metrics.json").write_text(json.dumps(FIGURES | levels))
    camkd.load(run).save_pretrained(tmp_path)
    text = (tmp_path / CARD_FILE).read_text(encoding="utf-8")
    assert "| likeness of maps that know nothing of the picture (chance) | 62.5 % |" in text
    assert "| on 1,200 test pictures | |" in text


def test_a_card_without_figures_claims_none(run: Path, tmp_path: Path) -> None:
    (run / "metrics.json").unlink()
    camkd.load(run).save_pretrained(tmp_path)
    text = (tmp_path / CARD_FILE).read_text(encoding="utf-8")
    assert "model-index" not in yaml.safe_load(text.split("---")[1])
    assert "%" not in text


@pytest.mark.parametrize("form", ["exact", "gradient", None])
def test_the_card_says_what_the_maps_cost_and_are(run: Path, tmp_path: Path, form: str | None) -> None:
    (run / "metrics.json").write_text(json.dumps(FIGURES | ({"cam_form": form} if form else {})))
    camkd.load(run).save_pretrained(tmp_path)
    text = (tmp_path / CARD_FILE).read_text(encoding="utf-8")
    assert "into 3 classes and" in text
    assert ("in the same forward pass" in text, "in units of its logit" in text) == (form == "exact",) * 2
    assert ("one backward pass a class" in text) == (form == "gradient")


@pytest.mark.parametrize("content", ["{", "[1]x"])
def test_damaged_figures_do_not_keep_a_model_from_loading(run: Path, content: str) -> None:
    (run / "metrics.json").write_text(content)
    assert camkd.load(run).figures == {}


def test_a_network_that_is_not_trained_has_nothing_to_say(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="knows nothing of its classes"):
        build("resnet8", 3, 8).save_pretrained(tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_what_is_pushed_is_what_is_saved(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked: dict[str, Any] = {}

    def create_repo(api: Any, repo_id: str, **how: Any) -> Any:
        asked.update(repo_id=repo_id, token=api.token, **how)
        return hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(api: Any, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        asked.update(files=files, to=repo_id, commit_message=commit_message)

    monkeypatch.setattr(hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(hub.HfApi, "upload_folder", upload_folder)
    model = camkd.load(run)
    assert model.push_to_hub("me/pets", private=True, token="t", commit_message="first") == (
        "https://huggingface.co/me/pets"
    )
    model.save_pretrained(tmp_path / "shared")
    assert asked.pop("files") == {path.name: path.read_bytes() for path in (tmp_path / "shared").iterdir()}
    assert asked == {
        "repo_id": "me/pets",
        "to": "me/pets",
        "token": "t",
        "private": True,
        "exist_ok": True,
        "commit_message": "first",
    }


def test_the_methods_take_what_the_hubs_own_mixin_takes() -> None:
    import inspect

    hub = pytest.importorskip("huggingface_hub")
    for name in ("save_pretrained", "push_to_hub"):
        theirs = inspect.signature(getattr(hub.PyTorchModelHubMixin, name)).parameters
        ours = inspect.signature(getattr(camkd.models.ImageClassifier, name)).parameters
        assert set(ours) - {"folder"} <= set(theirs)
        assert list(ours)[1] in {*theirs, "folder"}


def test_without_the_package_it_is_said_what_to_install(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install 'camkd\[hub\]'"):
        camkd.load(run).push_to_hub("me/pets")
