"""Settings of all extra tests: one thread, a temporary cache, no network, and torchvision beside any build of torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

os.environ["MPLBACKEND"] = "Agg"  # before anything imports matplotlib
os.environ["HF_HUB_OFFLINE"] = "1"  # a download of weights fails at once
torch.set_num_threads(1)

# The compiled part of torchvision does not load beside another build of torch than its own, for example the CPU build.
# Without its operators `nms` and `qnms`, `import torchvision` fails. These tests do not call the operators.
_library = torch.library.Library("torchvision", "FRAGMENT")
for _operator in ("nms", "qnms"):
    _library.define(f"{_operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Set the cache folder to a temporary folder of this session."""
    folder = tmp_path_factory.mktemp("camkd-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAMKD_CACHE", str(folder))
        yield folder
