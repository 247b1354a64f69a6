"""Comparison of exported files with PyTorch, and metrics of int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from camkd.data.dataset import Dataset
from camkd.export.checks import TOLERANCE, compare_with_pytorch, enlarge, max_difference, measure_int8
from camkd.export.sessions import open_session, run_session, to_input
from camkd.models import build

pytestmark = pytest.mark.slow

pytest.importorskip("onnxruntime")


def test_int8_is_smaller_and_close_to_fp32(onnx_files: Any, easy: Dataset) -> None:
    assert onnx_files.int8.stat().st_size < 0.6 * onnx_files.fp32.stat().st_size
    x = to_input(easy.test.images)
    logits, cam = run_session(open_session(onnx_files.fp32), x)
    int8_logits, int8_cam = run_session(open_session(onnx_files.int8), x)
    assert not np.array_equal(logits, int8_logits)
    assert np.corrcoef(logits.ravel(), int8_logits.ravel())[0, 1] > 0.99
    assert np.corrcoef(cam.ravel(), int8_cam.ravel())[0, 1] > 0.98


def test_measure_int8_matches_numpy(onnx_files: Any, easy: Dataset) -> None:
    labels = easy.test.labels
    cost = measure_int8(onnx_files.fp32, onnx_files.int8, easy.test)
    x = to_input(easy.test.images)
    logits, cam = run_session(open_session(onnx_files.fp32), x)
    int8_logits, int8_cam = run_session(open_session(onnx_files.int8), x)
    classes = logits.argmax(1)
    int8_classes = int8_logits.argmax(1)
    assert cost.before == pytest.approx((classes == labels).mean())
    assert cost.after == pytest.approx((int8_classes == labels).mean())
    assert cost.agreement == pytest.approx((classes == int8_classes).mean())
    rows = np.arange(len(labels))
    a, b = (np.maximum(maps[rows, classes], 0).reshape(len(rows), -1) for maps in (cam, int8_cam))
    scale = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(1) / np.where(scale > 0, scale, 1)
    assert cost.cam_cosine == pytest.approx(cosines.mean(), abs=1e-5)


def test_measure_int8_of_equal_files(onnx_files: Any, easy: Dataset) -> None:
    cost = measure_int8(onnx_files.fp32, onnx_files.fp32, easy.test)
    assert cost.before == cost.after
    assert cost.agreement == 1


def test_another_model_differs_from_the_file(onnx_files: Any, easy: Dataset) -> None:
    assert compare_with_pytorch(onnx_files.model, onnx_files.fp32, easy.test.images).logits < TOLERANCE
    other = build("cam-net-lite", 3, 16, seed=9).eval()
    with pytest.raises(FloatingPointError, match=r"model\.onnx must match PyTorch"):
        compare_with_pytorch(other, onnx_files.fp32, easy.test.images)


def test_difference_within_the_tolerance() -> None:
    expected = np.array([[0.0, 50.0]], np.float32)
    assert max_difference(expected, expected + np.float32(0.004), Path("x.onnx")) == pytest.approx(0.004, rel=1e-2)


@pytest.mark.parametrize(
    ("actual", "difference"), [((np.nan, 0.0), "nan"), ((0.0, 0.0, 0.0), "nan"), ((0.25, 0.0), "0.25")]
)
def test_nan_another_shape_and_a_large_difference_are_errors(actual: tuple[float, ...], difference: str) -> None:
    expected = np.zeros((1, 2), np.float32)
    with pytest.raises(FloatingPointError) as caught:
        max_difference(expected, np.array([actual], np.float32), Path("x.onnx"))
    assert str(caught.value) == (
        f"x.onnx must match PyTorch within 0.0001, got a difference of {difference}, so it was not kept. Try another "
        "version of torch, onnxscript or onnxruntime."
    )


def test_enlarge_scales_both_sides_and_keeps_constant_images() -> None:
    images = np.full((2, 8, 12, 3), 77, np.uint8)
    np.testing.assert_array_equal(enlarge(images), np.full((2, 12, 18, 3), 77, np.uint8))
