"""Fixtures of all tests: fixed seeds, a temporary cache, one thread, a small dataset and finished runs."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image

from browser import chromium
from camkd.config import DataConfig, DistillConfig, RunConfig, TrainConfig
from camkd.data.dataset import Dataset, Split
from camkd.data.sources import open_dataset
from camkd.experiments import pipeline, teacher_student
from camkd.experiments.teacher_student import train_all
from camkd.models import MODELS
from camkd.report.report import write_report
from camkd.train import heatmap_figures
from run_folders import gallery_content, write_gallery_json, write_train_folder
from support.fault_table import fault_table, pytest_configure, pytest_runtest_call, pytest_terminal_summary
from support.hub import LocalHub
from support.processes import distill_arguments, reference_run, teacher

if TYPE_CHECKING:
    from playwright.sync_api import Browser

os.environ["MPLBACKEND"] = "Agg"  # before anything imports matplotlib
torch.set_num_threads(1)

__all__ = [  # fixtures and hooks
    "distill_arguments",
    "fault_table",
    "pytest_configure",
    "pytest_runtest_call",
    "pytest_terminal_summary",
    "reference_run",
    "teacher",
]  # fmt: skip

hypothesis.settings.register_profile("camkd", derandomize=True, deadline=None)
hypothesis.settings.load_profile("camkd")


SLOW_FIXTURES = {"browser", "distill_arguments", "finished", "reference_run", "teacher_run"}
"""Fixtures that train runs or start a browser: every test that uses them is slow."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use a slow fixture."""
    for item in items:
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Set the cache folder to a temporary folder of this session."""
    folder = tmp_path_factory.mktemp("camkd-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAMKD_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Seed the random generators, so that a test is independent of the order of tests."""
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def no_figures() -> Iterator[None]:
    """Leave out the figures, which take longer than the training here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "draw_examples", lambda *arguments: None)
        patch.setattr(teacher_student, "draw_examples", lambda *arguments: None)
        patch.setattr(heatmap_figures, "draw_examples", lambda *arguments: None)
        yield


@pytest.fixture(scope="session")
def cifar10_folder() -> Path:
    """CIFAR-10 as class folders, `train/<class>/*` and `test/<class>/*`; skips without CAMKD_CIFAR10."""
    folder = os.environ.get("CAMKD_CIFAR10")
    if not folder:
        pytest.skip("CAMKD_CIFAR10 is not set. Set it to a folder with train/<class>/* and test/<class>/*.")
    if not (Path(folder) / "train").is_dir():
        pytest.fail(f"CAMKD_CIFAR10 must be a folder with train/<class>/*, got {folder}.")
    return Path(folder)


def _easy_split(rng: np.random.Generator, count: int, size: int) -> Split:
    """Make noise images of three classes that differ in color: red, green, blue. One quarter is brighter."""
    labels = np.arange(count, dtype=np.int64) % 3
    images = rng.integers(0, 60, (count, size, size, 3))
    images[np.arange(count), :, :, labels] += 90
    images[:, : size // 2, : size // 2] += 60
    return Split(images.astype(np.uint8), labels)


@pytest.fixture(scope="session")
def easy() -> Dataset:
    """Images of 16 pixels that a network learns in a few steps: 96 for training, 24 for validation, 24 for test."""
    rng = np.random.default_rng(0)
    train, val, test = (_easy_split(rng, count, 16) for count in (96, 24, 24))
    return Dataset("easy", ("berry", "leaf", "sky"), train, val, test, "f" * 64, "f" * 64, ())


@pytest.fixture(scope="session")
def easy_folder(easy: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of `easy` as PNG files, `<split>/<class>/<number>.png`."""
    root = tmp_path_factory.mktemp("images") / "easy"
    for name, split in easy.splits.items():
        for number, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
            folder = root / name / easy.classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number:03d}.png")
    return root


class Finished(NamedTuple):
    """The folder of a teacher, a control, a student and their report."""

    folder: Path


@pytest.fixture(scope="session")
def finished(easy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A ResNet-8 teacher, a CAM-Net control and a CAM-Net student, trained on `easy_folder`. Tests only read them."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    train = TrainConfig(epochs=2, batch_size=24, optimizer="sgd", lr=0.4, precision="fp32")
    config = RunConfig(DataConfig(data=str(easy_folder)), train, DistillConfig("resnet8"))
    train_all(folder, config, open_dataset(config.data))
    return Finished(folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    """A Hugging Face Hub in a local folder; skips without the library."""
    pytest.importorskip("huggingface_hub")
    return LocalHub(tmp_path / "hub", monkeypatch)


@pytest.fixture
def keep_models() -> Iterator[Callable[..., None]]:
    """Return a function that removes all networks but a few from the registry for the duration of a test."""
    before = dict(MODELS)

    def keep(*names: str) -> None:
        for name in set(MODELS) - set(names):
            del MODELS[name]

    yield keep
    MODELS.clear()
    MODELS.update(before)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium; skips if none is installed."""
    with chromium() as chrome:
        yield chrome


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a teacher, a control and a student, with a gallery of all three in the student's folder."""
    root = write_train_folder(tmp_path_factory.mktemp("runs") / "run")
    write_gallery_json(root / "student", gallery_content("teacher", "student", "control"))
    return write_report([root], root / "report.html")
