"""Training on photographs. Needs CAMKD_CIFAR10, a folder with `train/<class>/*` and `test/<class>/*`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from camkd.config import DataConfig, RunConfig, TrainConfig
from camkd.data.dataset import Dataset
from camkd.data.sources import open_data
from camkd.experiments.pipeline import train_run
from support.training import Recorder


@pytest.fixture(scope="module")
def photographs(cifar10_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The first 60 training and 20 test images of each class."""
    root = tmp_path_factory.mktemp("photographs")
    for split, count in (("train", 60), ("test", 20)):
        for source in sorted((cifar10_folder / split).iterdir()):
            folder = root / split / source.name
            folder.mkdir(parents=True)
            for path in sorted(source.iterdir())[:count]:
                (folder / path.name).symlink_to(path.resolve())
    return open_data(root)


def test_folder_of_photographs(photographs: Dataset) -> None:
    assert len(photographs.classes) == 10
    assert photographs.train.images.shape[1:] == (32, 32, 3)
    assert len(photographs.train) + len(photographs.val) == 600
    assert np.bincount(photographs.test.labels).tolist() == [20] * 10
    assert photographs.train.images.std() > 30, "the images must not be blank"


def test_limited_dataset_is_balanced(photographs: Dataset) -> None:
    limited = photographs.limited(50)
    assert np.bincount(limited.train.labels).tolist() == [5] * 10
    assert limited.fingerprint != photographs.fingerprint


@pytest.mark.slow
def test_one_epoch_is_better_than_chance(photographs: Dataset, tmp_path: Path) -> None:
    recorder = Recorder()
    train = TrainConfig(epochs=1, batch_size=16, lr=0.2, device="cpu", figure_every=0)
    config = RunConfig(DataConfig(), train, model="resnet8", role="teacher")
    metrics = train_run(tmp_path, config, photographs, callbacks=[recorder])
    assert sum(recorder.sizes) == len(photographs.train)
    assert metrics["accuracy"] > 0.15  # chance is 0.10 +- 0.02 on 200 images
