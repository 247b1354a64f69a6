"""Runs with unlabeled images: what they change, and what they leave as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from camkd.config import DataConfig, DistillConfig, RunConfig, TrainConfig
from camkd.data.sources import open_dataset
from camkd.distill.teacher import load_teacher
from camkd.experiments import pipeline
from camkd.experiments.pipeline import prepare_teacher, train_run
from camkd.report.report import write_report
from camkd.runs.folder import Run
from camkd.runs.loading import load
from camkd.runs.resume import Resume
from camkd.types import InputError, Interrupted
from support.interrupt import InterruptAt
from support.untrained import save_untrained

pytestmark = pytest.mark.slow

TRAIN = TrainConfig(epochs=3, batch_size=24, optimizer="sgd", lr=0.2, precision="fp32", device="cpu", figure_every=0)


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache of teacher outputs for each test, and no figures."""
    monkeypatch.setattr("camkd.distill.cache.store.cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr("camkd.distill.predictions.cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(pipeline, "draw_examples", lambda *arguments: None)


@pytest.fixture(scope="module")
def pile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 images of random blocks, none of which is a near duplicate of another image."""
    folder = tmp_path_factory.mktemp("pile")
    rng = np.random.default_rng(5)
    for number in range(50):
        blocks = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
        Image.fromarray(blocks.repeat(4, 0).repeat(4, 1)).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def teacher(easy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = open_dataset(DataConfig(str(easy_folder)))
    return save_untrained(tmp_path_factory.mktemp("teachers") / "resnet8", "resnet8", data)


def run_config(easy_folder: Path, pile: Path | None, method: str = "cam-kd", **train: object) -> RunConfig:
    data = DataConfig(str(easy_folder), unlabeled=None if pile is None else str(pile))
    distill = DistillConfig(method=method, weak_teacher="accept")
    return RunConfig(data, replace(TRAIN, **train), distill, model="resnet8")  # type: ignore[arg-type]


def distill(folder: Path, config: RunConfig, teacher: Path, **options: object) -> dict[str, object]:
    data = open_dataset(config.data)
    prepared, config = prepare_teacher(load_teacher(teacher, data, "cpu"), config)
    return train_run(folder, config, data, prepared, **options)  # type: ignore[arg-type]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load(folder).state_dict()


def equal(first: Path, second: Path) -> bool:
    a, b = weights(first), weights(second)
    return all(torch.equal(a[name], b[name]) for name in a)


def test_student_is_trained_on_the_unlabeled_images(
    easy_folder: Path, pile: Path, teacher: Path, tmp_path: Path
) -> None:
    metrics = distill(tmp_path / "run", run_config(easy_folder, pile), teacher)
    assert metrics["unlabeled_images"] == 50
    predictions = metrics["unlabeled_predictions"]
    assert isinstance(predictions, dict)
    assert sum(predictions.values()) == 50
    rows = Run(tmp_path / "run").read_history()
    assert rows[0]["images_per_second"] * rows[0]["seconds"] == pytest.approx(96 + 50)
    distill(tmp_path / "without", run_config(easy_folder, None), teacher)
    assert not equal(tmp_path / "run", tmp_path / "without")
    write_report([teacher, tmp_path / "run"], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "outputs for 50 unlabeled images" in page


def test_method_without_a_teacher_uses_the_labeled_images_only(
    easy_folder: Path, pile: Path, teacher: Path, tmp_path: Path
) -> None:
    metrics = distill(tmp_path / "run", run_config(easy_folder, pile, "plain"), teacher)
    distill(tmp_path / "without", run_config(easy_folder, None, "plain"), teacher)
    assert equal(tmp_path / "run", tmp_path / "without")
    assert "unlabeled_images" not in metrics
    assert Run(tmp_path / "run").config()["unlabeled"] is None


@pytest.mark.parametrize("ratio", [None, 0.3])
def test_interrupted_run_ends_as_an_uninterrupted_one(
    ratio: float | None, easy_folder: Path, pile: Path, teacher: Path, tmp_path: Path
) -> None:
    config = run_config(easy_folder, pile, unlabeled_ratio=ratio)
    distill(tmp_path / "whole", config, teacher)
    with pytest.raises(Interrupted):
        distill(tmp_path / "parts", config, teacher, callbacks=[InterruptAt(4)])
    distill(tmp_path / "parts", config, teacher, resume=Resume())
    assert equal(tmp_path / "whole", tmp_path / "parts")


def test_run_is_not_resumed_with_other_unlabeled_images(
    easy_folder: Path, pile: Path, teacher: Path, tmp_path: Path
) -> None:
    distill(tmp_path / "run", run_config(easy_folder, pile), teacher)
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    for path in sorted(pile.iterdir())[:20]:
        (fewer / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="unlabeled images must be those"):
        distill(tmp_path / "run", run_config(easy_folder, fewer), teacher, resume=Resume())
    with pytest.raises(InputError, match="unlabeled"):
        distill(tmp_path / "run", run_config(easy_folder, None), teacher, resume=Resume())
