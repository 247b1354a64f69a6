"""What every test gets: fixed seeds, a cache of its own, few threads."""

from __future__ import annotations

import contextlib
import io
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
from camkd.cli.main import main
from camkd.data.dataset import Dataset, Split
from camkd.models import MODELS
from camkd.report.report import write_report
from run_folders import gallery_content, write_gallery_json, write_train_folder
from support.processes import distill_arguments, reference_run, teacher
from support.fault_table import fault_table, pytest_configure, pytest_runtest_call, pytest_terminal_summary

if TYPE_CHECKING:
    from playwright.sync_api import Browser

os.environ["MPLBACKEND"] = "Agg"  # before anything imports matplotlib
torch.set_num_threads(1)

__all__ = [  # fixtures and hooks
    "distill_arguments", "reference_run", "fault_table", "pytest_configure", "pytest_runtest_call", "pytest_terminal_summary", "teacher",
]  # fmt: skip

hypothesis.settings.register_profile("camkd", derandomize=True, deadline=None)
hypothesis.settings.load_profile("camkd")


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Send decoded data sets and the like to a folder of this session, never to the user's cache."""
    folder = tmp_path_factory.mktemp("camkd-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAMKD_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Make a test's random numbers the same alone and in any order with others."""
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def cifar10_folder() -> Path:
    """CIFAR-10 as class folders, `train/<class>/*` and `test/<class>/*`; skips where it is not at hand."""
    folder = os.environ.get("CAMKD_CIFAR10")
    if not folder:
        pytest.skip("CAMKD_CIFAR10 is not set: it names a folder with train/<class>/* and test/<class>/*")
    if not (Path(folder) / "train").is_dir():
        pytest.fail(f"CAMKD_CIFAR10={folder} has no folder train/: unset it, or name the right folder")
    return Path(folder)


def _easy_split(rng: np.random.Generator, count: int, size: int) -> Split:
    """Three classes that differ in colour: red, green, blue, all brighter in one corner, under noise."""
    labels = np.arange(count, dtype=np.int64) % 3
    images = rng.integers(0, 60, (count, size, size, 3))
    images[np.arange(count), :, :, labels] += 90
    images[:, : size // 2, : size // 2] += 60
    return Split(images.astype(np.uint8), labels)


@pytest.fixture(scope="session")
def easy() -> Dataset:
    """Pictures of 16 pixels that any network learns in a few steps: 96 to train, 24 to validate, 24 to test."""
    rng = np.random.default_rng(0)
    train, val, test = (_easy_split(rng, count, 16) for count in (96, 24, 24))
    return Dataset("easy", ("berry", "leaf", "sky"), train, val, test, "f" * 64, ())


@pytest.fixture(scope="session")
def easy_folder(easy: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures of `easy` as PNG files, `train/<class>/<number>.png` and so on."""
    root = tmp_path_factory.mktemp("pictures") / "easy"
    for name, split in easy.splits.items():
        for number, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
            place = root / name / easy.classes[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{number:03d}.png")
    return root


class Finished(NamedTuple):
    """What `camkd train --json` did: its exit status, what it printed, and the folder it left."""

    folder: Path
    options: list[str]
    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def finished(easy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A finished `camkd train` of a ResNet-8 and a CAM-Net on `easy_folder`; tests only read it."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    options = [
        "--data",
        str(easy_folder),
        "--epochs",
        "2",
        "--batch-size",
        "24",
        "--optimizer",
        "sgd",
        "--lr",
        "0.4",
        "--precision",
        "fp32",
    ]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["train", "--teacher", "resnet8", *options, "--out", str(folder), "--json"])
    return Finished(folder, options, status, out.getvalue(), err.getvalue())


@pytest.fixture
def keep_models() -> Iterator[Callable[..., None]]:
    """Make the list of networks shorter for a test; afterwards it is whole again, and in its order."""
    before = dict(MODELS)

    def keep(*names: str) -> None:
        for name in set(MODELS) - set(names):
            del MODELS[name]

    yield keep
    MODELS.clear()
    MODELS.update(before)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium; skips where there is none."""
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a teacher, a control and a student, with a gallery of all three in the student's folder."""
    root = write_train_folder(tmp_path_factory.mktemp("runs") / "run")
    write_gallery_json(root / "student", gallery_content("teacher", "student", "control"))
    return write_report([root], root / "report.html")
