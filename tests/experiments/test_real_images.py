"""A trial on photographs, where CAMKD_CIFAR10 names them: `train/<class>/*` and `test/<class>/*`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from camkd.config import DataConfig, DistillConfig, TrainConfig
from camkd.data.dataset import Dataset
from camkd.data.sources import open_data
from camkd.experiments.pipeline import train_run
from camkd.train.callbacks import Callback


@pytest.fixture(scope="module")
def photographs(cifar10_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The first 60 training and 20 test pictures of each class."""
    root = tmp_path_factory.mktemp("photographs")
    for split, count in (("train", 60), ("test", 20)):
        for folder in sorted((cifar10_folder / split).iterdir()):
            place = root / split / folder.name
            place.mkdir(parents=True)
            for path in sorted(folder.iterdir())[:count]:
                (place / path.name).symlink_to(path.resolve())
    return open_data(root)


def test_folder_of_photographs(photographs: Dataset) -> None:
    assert len(photographs.classes) == 10
    assert photographs.train.images.shape[1:] == (32, 32, 3)
    assert len(photographs.train) + len(photographs.val) == 600
    assert np.bincount(photographs.test.labels).tolist() == [20] * 10
    assert photographs.train.images.std() > 30  # pictures, not blanks


def test_limited(photographs: Dataset) -> None:
    few = photographs.limited(50)
    assert np.bincount(few.train.labels).tolist() == [5] * 10
    assert few.fingerprint != photographs.fingerprint


def test_one_epoch_is_better_than_chance(photographs: Dataset, tmp_path: Path) -> None:
    steps: list[int] = []

    class Steps(Callback):
        def step(self, pictures: int) -> None:
            steps.append(pictures)

    config = TrainConfig(epochs=1, batch_size=16, lr=0.2, device="cpu")
    metrics = train_run(
        tmp_path, photographs, "resnet8", "teacher", (DataConfig(), config), DistillConfig("plain"), watch=Steps()
    )
    assert sum(steps) == len(photographs.train)
    assert metrics["accuracy"] > 0.15  # chance is 0.10 +- 0.02 on 200 pictures
