"""A model of padded images: training, resume, evaluation, heatmaps, export and teacher keep its preprocessing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import camkd
from camkd.cli.main import main
from camkd.config import DataConfig, RunConfig
from camkd.data.images import decode, decode_full
from camkd.data.sources import open_dataset
from camkd.distill.teacher import choose_teacher, load_teacher
from camkd.evaluate import predict_split
from camkd.experiments.finished_runs import explain_files, open_model_data, reevaluate
from camkd.experiments.pipeline import train_run
from camkd.export.onnx_graph import metadata
from camkd.models.card import render_card
from camkd.models.io import ModelInfo
from camkd.runs.loading import load, read_model_info
from camkd.runs.resume import Resume
from camkd.types import InputError, Preprocessing
from support.training import train_config
from support.untrained import save_untrained

PREPROCESSING = Preprocessing(16, "pad", "bilinear")


def no_progress(done: int, total: int, description: str) -> None:
    pass


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 48 x 16 pixels: the class is the color of a square at the left end, which a crop leaves out."""
    root = tmp_path_factory.mktemp("images") / "wide"
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 4), ("test", 4)):
        for channel, name in enumerate(("red", "green", "blue")):
            for number in range(count):
                pixels = rng.integers(0, 60, (16, 48, 3), np.uint8)
                pixels[:, :15, channel] = 220
                path = root / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="module")
def config(wide_folder: Path) -> RunConfig:
    data = DataConfig(str(wide_folder), size=16, fit="pad", interpolation="bilinear", workers=1)
    return RunConfig(data, train_config(epochs=2, batch_size=12), model="resnet8", role="teacher")


@pytest.fixture(scope="module")
def run(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "pad"
    train_run(folder, config, open_dataset(config.data))
    return folder


def test_model_keeps_its_preprocessing(run: Path) -> None:
    assert read_model_info(run).preprocessing == PREPROCESSING
    (checkpoint, *_) = sorted((run / "checkpoints").glob("*.pt"))
    info = load(checkpoint).info
    assert info is not None
    assert info.preprocessing == PREPROCESSING


def test_model_of_an_earlier_version_has_cropped_images(run: Path, tmp_path: Path) -> None:
    info = json.loads((run / "model.json").read_text(encoding="utf-8"))
    del info["fit"], info["interpolation"]
    (tmp_path / "model.json").write_text(json.dumps(info), encoding="utf-8")
    assert read_model_info(tmp_path).preprocessing == Preprocessing(16, "crop", "bicubic")


@pytest.mark.parametrize(("name", "value"), [("fit", "stretch"), ("fit", 3), ("interpolation", "nearest")])
def test_model_with_an_unknown_preprocessing_is_refused(run: Path, tmp_path: Path, name: str, value: object) -> None:
    info = json.loads((run / "model.json").read_text(encoding="utf-8")) | {name: value}
    (tmp_path / "model.json").write_text(json.dumps(info), encoding="utf-8")
    with pytest.raises(InputError, match=rf"{name} must be .*got {value!r}"):
        read_model_info(tmp_path)


@pytest.mark.parametrize(("name", "value"), [("fit", "crop"), ("interpolation", "bicubic")])
def test_resume_refuses_another_preprocessing(run: Path, config: RunConfig, name: str, value: str) -> None:
    changed = replace(config, data=replace(config.data, **{name: value}))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=rf"{name} must be {getattr(config.data, name)}, .* got {value}"):
        train_run(run, changed, open_dataset(changed.data), resume=Resume())


@pytest.mark.parametrize("has_splits", [True, False])
def test_evaluation_of_another_folder_pads_its_images(
    run: Path, wide_folder: Path, tmp_path: Path, has_splits: bool
) -> None:
    messages: list[str] = []
    own = reevaluate(str(run), None, None, "cpu", no_progress, messages.append)
    assert messages == []
    other = tmp_path / "other"
    if has_splits:
        other.symlink_to(wide_folder)
    else:
        other.symlink_to(wide_folder / "test")
    data = open_model_data(str(run), str(other), no_progress) if has_splits else None
    if data:
        np.testing.assert_array_equal(data.test.images, open_model_data(str(run), None, no_progress).test.images)
    evaluated = reevaluate(str(run), str(other), None, "cpu", no_progress, messages.append)
    assert evaluated.metrics["accuracy"] == own.metrics["accuracy"] == 1  # the class is visible in padded images only


def test_evaluation_on_a_built_in_dataset_needs_no_padding(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAMKD_CACHE", str(tmp_path))
    monkeypatch.setattr("camkd.data.shapes.COUNTS", {"train": 20, "val": 10, "test": 10})
    with pytest.raises(InputError, match="the classes of 'shapes' must be classes of"):
        reevaluate(str(run), "shapes", None, "cpu", no_progress, lambda text: None)


@pytest.mark.parametrize("suffix", [".npz", ".json", ".png", ""])
def test_explain_predicts_and_draws_the_padded_image(run: Path, wide_folder: Path, tmp_path: Path, suffix: str) -> None:
    path = wide_folder / "test" / "red" / "0.png"
    tall = tmp_path / "tall.png"
    Image.open(path).transpose(Image.Transpose.ROTATE_90).save(tall)
    out = tmp_path / f"out{suffix}"
    results: dict[str, Any] = explain_files(
        str(run), [str(path), str(tall)], out, None, no_progress, lambda text: None, device="cpu"
    )
    model = load(run)
    x = np.stack([decode(image, PREPROCESSING) for image in (path, tall)]).transpose(0, 3, 1, 2) / np.float32(255)
    probabilities = camkd.predict(model, torch.from_numpy(x)).logits.softmax(1)
    for image, expected in zip((path, tall), probabilities, strict=True):
        record = results["images"][str(image)]["teacher"]
        assert record["confidence"] == pytest.approx(expected.max().item(), abs=1e-3)
    if suffix == ".npz":
        maps = np.load(out)["teacher_maps"]
        assert maps.shape[:2] == (2, 1)
    if suffix == "":
        sizes = sorted(decode_full(file).shape[:2] for file in out.rglob("*.png"))
        assert sizes == [(16, 48), (48, 16)]


def test_export_metadata_and_model_card_name_the_preprocessing(run: Path) -> None:
    info = read_model_info(run)
    values = metadata(info)
    assert (values["fit"], values["interpolation"]) == ("pad", "bilinear")
    assert values["preprocessing"] == info.preprocessing.description
    card = render_card(vars(info), {}, "onnx")
    assert info.preprocessing.description in card
    assert "the longer side is resized to 16 pixels (bilinear" in card


def test_teacher_of_padded_images_is_refused_for_cropped_images(run: Path, config: RunConfig) -> None:
    data = open_dataset(replace(config.data, fit="crop"))
    with pytest.raises(InputError, match=r"fit must be pad, .* got crop\. Add --fit pad"):
        load_teacher(run, data, "cpu")
    padded = open_dataset(config.data)
    assert predict_split(load_teacher(run, padded, "cpu").model, padded.test) is not None


def test_given_teacher_must_have_the_fit_of_the_model(run: Path, config: RunConfig, tmp_path: Path) -> None:
    data = open_dataset(config.data)
    other = save_untrained(tmp_path / "teacher", "resnet8", data)
    info: ModelInfo = read_model_info(run)
    with pytest.raises(InputError, match="the fit of the model"):
        choose_teacher(info, str(run), str(other), lambda text: None)


def test_command_line_accepts_fit_and_interpolation(wide_folder: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(wide_folder), "--size", "16", "--epochs", "1", "--model", "resnet8", "--device", "cpu"]
    options = ["--fit", "pad", "--interpolation", "bilinear", "--figure-every", "0", "--workers", "1"]
    assert main(["teacher", *arguments, *options, "--out", str(tmp_path / "run")]) == 0
    assert read_model_info(tmp_path / "run").preprocessing == PREPROCESSING


def test_command_line_names_the_choices(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["teacher", "--data", "shapes", "--fit", "stretch", "--out", str(tmp_path / "run")]) == 2
    assert "--fit must be one of crop, pad, got 'stretch'" in capsys.readouterr().err
