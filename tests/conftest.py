"""What every test gets: fixed seeds, a cache of its own, few threads."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

os.environ["MPLBACKEND"] = "Agg"  # before anything imports matplotlib
torch.set_num_threads(2)

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
