"""torchvision beside any torch, a cache of this session, no network, few threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

os.environ["MPLBACKEND"] = "Agg"  # before anything imports matplotlib
os.environ["HF_HUB_OFFLINE"] = "1"  # whoever asks for weights is told at once that there are none
torch.set_num_threads(1)

# torchvision's index has wheels for the CUDA build of torch alone. Beside another its compiled part does not load, and
# the import fails because two operators that nothing here calls are not declared.
_library = torch.library.Library("torchvision", "FRAGMENT")
for _operator in ("nms", "qnms"):
    _library.define(f"{_operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Send decoded data sets and the like to a folder of this session, never to the user's cache."""
    folder = tmp_path_factory.mktemp("camkd-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAMKD_CACHE", str(folder))
        yield folder
