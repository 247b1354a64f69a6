"""Fixtures of the export tests: exported files, made once per session, and the runtime of the page."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from camkd.cli.main import main
from camkd.data.dataset import Dataset
from camkd.export.int8 import write_int8
from camkd.export.onnx_graph import write_onnx
from camkd.export.web.runtime import runtime_files
from camkd.models import build
from camkd.models.io import ModelInfo
from camkd.types import InputError


class Exported(NamedTuple):
    """Result of ``camkd export`` with all files: the run, the ONNX folder, the page and the printed JSON."""

    run: Path
    folder: Path
    page: Path
    results: dict[str, Any]


class OnnxFiles(NamedTuple):
    """An untrained model and its files in fp32 and int8."""

    model: nn.Module
    info: ModelInfo
    fp32: Path
    int8: Path


@pytest.fixture(scope="session")
def runtime() -> Path:
    """Folder of onnxruntime-web; skips if npm cannot download it."""
    pytest.importorskip("onnxruntime")
    try:
        return runtime_files(None)[0].parent
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def exported(finished: Any, runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Export of the student of `finished`, with int8, teacher and page. Tests only read it."""
    root = tmp_path_factory.mktemp("exported")
    run = finished.folder / "student"
    folder = root / "files"
    page = root / "page"
    output = io.StringIO()
    command = ["export", str(run), "--out", str(folder), "--int8", "--force", "--teacher"]
    with contextlib.redirect_stdout(output):
        assert main([*command, "--web", str(page), "--runtime", str(runtime), "--json"]) == 0
    return Exported(run, folder, page, json.loads(output.getvalue()))


@pytest.fixture(scope="session")
def onnx_files(easy: Dataset, tmp_path_factory: pytest.TempPathFactory) -> OnnxFiles:
    """An untrained CAM-Net with the batch norm statistics of `easy`, as ONNX. Tests only read it."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("onnx")
    model = build("cam-net-lite", 3, 16, seed=1)
    model.train()(torch.from_numpy(easy.train.images).permute(0, 3, 1, 2) / 255)
    model.eval()
    info = ModelInfo("cam-net-lite", easy.classes, 16, 1, 2, "student", "kd", "/home/me/pets", "f" * 64, 0)
    write_onnx(model, info, folder / "model.onnx")
    write_int8(folder / "model.onnx", folder / "model.int8.onnx", easy.train)
    return OnnxFiles(model, info, folder / "model.onnx", folder / "model.int8.onnx")
