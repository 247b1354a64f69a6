"""`camkd bench-device`: every variant is measured, and a ratio is a ratio."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from camkd.cli.main import main
from camkd.export.benchmark import Variant, cost_of, peak_memory
from conftest import Finished

pytest.importorskip("onnxruntime")


def test_the_cost_is_a_ratio_within_each_turn() -> None:
    less = np.array([[1.0, 2.0, 3.0], [10.0, 10.0, 50.0], [4.0, 4.0, 4.0]])
    more = np.array([[2.0, 2.2, 9.0], [11.0, 11.0, 11.0], [4.8, 4.8, 4.8]])
    assert cost_of(less, more) == pytest.approx({"low": 10.0, "median": 10.0, "high": 15.0})


def test_every_variant_is_a_row(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished.folder / "student"
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert main(["bench-device", str(run), "--rounds", "1", "--json"]) == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    found = json.loads(capsys.readouterr().out)
    assert found["environment"]["threads"] == 1
    variants = [(row["program"], row["cam"]) for row in found["rows"]]
    assert variants == [(name, cam) for name in ("PyTorch", "ONNX fp32", "ONNX int8") for cam in (False, True)]
    for row in found["rows"]:
        assert 0 < row["median_ms"] <= row["p95_ms"]
        assert row["pictures_per_second"] > 0
    sizes = [row["file_bytes"] for row in found["rows"]]
    assert sizes[0] == sizes[1] == (run / "model.safetensors").stat().st_size
    assert max(sizes[4:]) < min(sizes[2:4])
    assert list(found["cam_over_logits_percent"]) == ["PyTorch", "ONNX fp32", "ONNX int8"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's peak")
def test_memory_is_that_of_a_process_of_its_own(exported: Any, finished: Finished) -> None:
    blob = np.ones(1 << 26)  # half a gigabyte in this process is not counted
    exported_file = peak_memory(Variant("", True, lambda x: None, exported.folder / "model.onnx", 0))
    run_folder = peak_memory(Variant("", True, lambda x: None, Path(finished.folder / "student"), 0))
    assert exported_file is not None
    assert run_folder is not None
    assert 20e6 < exported_file < min(blob.nbytes, run_folder)


@pytest.mark.parametrize(("options", "said"), [(["nowhere"], "'nowhere'"), (["RUN", "--rounds", "0"], "rounds is 0")])
def test_wrong_input(options: list[str], said: str, finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    given = [str(finished.folder / "student") if option == "RUN" else option for option in options]
    assert main(["bench-device", *given]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
