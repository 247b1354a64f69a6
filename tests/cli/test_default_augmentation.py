"""The default of ``--augment``: resolved for the images of a run, stored, and kept on resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from camkd.runs.folder import Run
from support.cli import QUICK, camkd

pytestmark = pytest.mark.slow

MODEL = ("--model", "resnet8", "--seed", "0", *QUICK)


def train(folder: Path, data: str, size: int, *options: str) -> None:
    done = camkd("teacher", "--data", data, "--size", str(size), "--out", str(folder), *MODEL, *options)
    assert done.status == 0, done.err


@pytest.fixture(scope="module")
def photo_teacher(easy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("default") / "teacher"
    train(folder, str(easy_folder), 40)
    return folder


def test_default_of_a_folder_of_large_images_is_photo(photo_teacher: Path, easy_folder: Path, tmp_path: Path) -> None:
    assert Run(photo_teacher).config()["augment"] == "photo"
    train(tmp_path / "explicit", str(easy_folder), 40, "--augment", "photo")
    weights = (photo_teacher / "model.safetensors").read_bytes()
    assert (tmp_path / "explicit" / "model.safetensors").read_bytes() == weights


def test_default_of_small_images_is_light(easy_folder: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", str(easy_folder), 16)
    assert Run(tmp_path / "run").config()["augment"] == "light"


def test_resumed_run_keeps_its_augmentation(easy_folder: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", str(easy_folder), 40, "--augment", "none")
    train(tmp_path / "run", str(easy_folder), 40, "--resume", "--epochs", "2", "--accept", "epochs")
    assert Run(tmp_path / "run").config()["augment"] == "none"
    assert len(Run(tmp_path / "run").read_history()) == 2
    options = ("--data", str(easy_folder), "--size", "40", "--out", str(tmp_path / "run"), *MODEL)
    other = camkd("teacher", *options, "--epochs", "2", "--resume", "--augment", "light")
    assert "augment must be none, the value that" in other.err
    assert other.status == 2


def test_students_and_comparisons_have_the_default_of_the_images(
    photo_teacher: Path, easy_folder: Path, tmp_path: Path
) -> None:
    options = ("--data", str(easy_folder), "--size", "40", "--teacher", str(photo_teacher), "--weak-teacher", "accept")
    out = tmp_path / "student"
    done = camkd("distill", *options, "--student", "resnet8", "--method", "kd", "--out", str(out), *QUICK)
    assert done.status == 0, done.err
    assert Run(out).config()["augment"] == "photo"
    compared = tmp_path / "compared"
    compare = ("--methods", "kd", "--seeds", "1", "--student", "resnet8", "--out", str(compared), *QUICK)
    done = camkd("compare", *options, *compare)
    assert done.status == 0, done.err
    assert yaml.safe_load((compared / "comparison.yaml").read_text())["augment"] == "photo"
    done = camkd("compare", *options, *compare, "--resume")
    assert done.status == 0, done.err
    assert Run(compared / "kd" / "seed-0").config()["augment"] == "photo"
    cache = ("--epochs", "1", "--batch-size", "24", "--precision", "fp32", "--json", "--dry-run")
    cost = camkd("cache", "precompute", *options[:-2], *cache).json
    assert cost["computed_before"] == cost["images"], "the outputs of the same views"
