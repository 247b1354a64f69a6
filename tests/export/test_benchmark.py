"""``camkd bench-device``: all variants are measured, on one thread, in turns."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from camkd.cli.main import main
from camkd.export.benchmark import TIMED_CALLS, WARMUP_CALLS, Variant, peak_memory, relative_overhead, time_round_robin

pytest.importorskip("onnxruntime")


def test_relative_overhead_is_the_quartiles_of_the_ratios_per_round() -> None:
    baseline = np.array([[1.0, 2.0, 3.0], [10.0, 10.0, 50.0], [4.0, 4.0, 4.0]])
    other = np.array([[2.0, 2.2, 9.0], [11.0, 11.0, 11.0], [4.8, 4.8, 4.8]])
    assert relative_overhead(baseline, other) == pytest.approx({"low": 10.0, "median": 10.0, "high": 15.0})


def test_variants_run_in_turns_in_alternating_order() -> None:
    calls: list[str] = []
    variants = [Variant(name, False, lambda x, name=name: calls.append(name), Path(), 0) for name in "ab"]  # type: ignore[misc]
    times = time_round_robin(variants, np.zeros((1, 3, 2, 2), np.float32), rounds=2)
    assert times.shape == (2, 2, TIMED_CALLS)
    assert (times > 0).all()
    per_turn = TIMED_CALLS + WARMUP_CALLS
    assert "".join(calls) == "b" * per_turn + "a" * per_turn + "a" * per_turn + "b" * per_turn


@pytest.mark.slow
def test_every_variant_is_a_row(finished: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished.folder / "student"
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert main(["bench-device", str(run), "--rounds", "1", "--json"]) == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    results = json.loads(capsys.readouterr().out)
    assert results["environment"]["threads"] == 1
    variants = [(row["program"], row["cam"]) for row in results["rows"]]
    assert variants == [(name, cam) for name in ("PyTorch", "ONNX fp32", "ONNX int8") for cam in (False, True)]
    for row in results["rows"]:
        assert 0 < row["median_ms"] <= row["p95_ms"]
        assert row["images_per_second"] > 0
    sizes = [row["file_bytes"] for row in results["rows"]]
    assert sizes[0] == sizes[1] == (run / "model.safetensors").stat().st_size
    assert max(sizes[4:]) < min(sizes[2:4])
    assert list(results["cam_over_logits_percent"]) == ["PyTorch", "ONNX fp32", "ONNX int8"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak memory of a process is known on Linux only")
def test_peak_memory_is_measured_in_another_process(exported: Any) -> None:
    ballast = np.ones(1 << 26)  # 512 MB in this process, which must not count
    onnx_bytes = peak_memory(Variant("", True, lambda x: None, exported.folder / "model.onnx", 0))
    torch_bytes = peak_memory(Variant("", True, lambda x: None, exported.run, 0))
    assert onnx_bytes is not None
    assert torch_bytes is not None
    assert 20e6 < onnx_bytes < min(ballast.nbytes, torch_bytes)


@pytest.mark.parametrize(
    ("options", "value"),
    [(["nowhere"], "'nowhere'"), (["cam-net-cifar10", "--rounds", "0"], "rounds must be 1 or more, got 0.")],
)
def test_invalid_option_is_an_input_error(options: list[str], value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench-device", *options]) == 2
    assert value in capsys.readouterr().err.splitlines()[-1]
