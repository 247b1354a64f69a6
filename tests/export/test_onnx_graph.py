"""Exported files compute the logits and maps of PyTorch, for any batch size, network and image size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import camkd
from camkd.export.checks import compare_with_pytorch, enlarge
from camkd.export.onnx_graph import WithCam, write_onnx
from camkd.export.sessions import open_session, run_session, to_input
from camkd.models import build
from camkd.models.io import ModelInfo
from camkd.types import InputError

pytestmark = pytest.mark.slow

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def random_images(count: int, size: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def make_info(architecture: str, classes: int, size: int) -> ModelInfo:
    names = tuple(f"class {k}" for k in range(classes))
    return ModelInfo(architecture, names, size, 1, 2, "student", "kd", "x", "f", 0)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_outputs_match_pytorch_for_any_batch_size(onnx_files: Any, count: int) -> None:
    x = random_images(count)
    with torch.no_grad():
        expected = camkd.predict(onnx_files.model, x)
    logits, cam = run_session(open_session(onnx_files.fp32), x.numpy())
    np.testing.assert_allclose(logits, expected.logits, atol=1e-4)
    np.testing.assert_allclose(cam, expected.cams, atol=1e-4)


def test_logits_are_the_mean_of_the_maps_plus_the_bias(onnx_files: Any) -> None:
    logits, cam = run_session(open_session(onnx_files.fp32), random_images(3).numpy())
    bias = onnx_files.model.head.bias.detach().numpy()
    np.testing.assert_allclose(cam.mean((2, 3)) + bias, logits, atol=1e-5)


@pytest.mark.parametrize("gamma", [1.0, 0.6])
def test_contrast_maps_are_computed_from_the_maps_by_the_formula_of_the_metadata(onnx_files: Any, gamma: float) -> None:
    values = {entry.key: entry.value for entry in onnx.load(onnx_files.fp32).metadata_props}
    assert values["contrast"].startswith("cam[:, c] - gamma * mean of cam[:, d] over other classes d: ")
    x = random_images(3)
    logits, cam = run_session(open_session(onnx_files.fp32), x.numpy())
    c, d = 1, [0, 2]
    contrast = cam[:, c] - gamma * cam[:, d].mean(1)
    ids = torch.tensor([[c]] * 3)
    with torch.no_grad():
        expected = camkd.predict(onnx_files.model, x, classes=ids, against=torch.tensor([d] * 3), gamma=gamma)
    np.testing.assert_allclose(contrast, expected.cams[:, 0], atol=1e-4)
    if gamma == 1:
        centered = logits - onnx_files.model.head.bias.detach().numpy()
        np.testing.assert_allclose(contrast.mean((1, 2)), centered[:, c] - centered[:, d].mean(1), atol=1e-4)


def test_output_names_and_shapes(onnx_files: Any) -> None:
    session = onnxruntime.InferenceSession(str(onnx_files.fp32), providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    assert (image.name, image.shape[1:]) == ("image", [3, 16, 16])
    assert [(output.name, output.shape[1]) for output in session.get_outputs()] == [("logits", 3), ("cam", 3)]


def test_logits_only(onnx_files: Any, tmp_path: Path) -> None:
    write_onnx(onnx_files.model, onnx_files.info, tmp_path / "x.onnx", cam=False)
    (logits,) = run_session(open_session(tmp_path / "x.onnx"), random_images(2).numpy())
    with torch.no_grad():
        np.testing.assert_allclose(logits, onnx_files.model(random_images(2)), atol=1e-4)


def test_metadata_describes_the_model(onnx_files: Any) -> None:
    for path in (onnx_files.fp32, onnx_files.int8):
        values = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        assert tuple(json.loads(values["classes"])) == onnx_files.info.classes
        assert (values["architecture"], values["size"], values["method"]) == ("cam-net-lite", "16", "kd")
        assert (values["weights_sha256"], values["data_fingerprint"]) == ("", "f" * 64)
        assert values["input"] == "image (N, 3, 16, 16) float32, RGB in 0..1; normalization is inside"
        assert values["camkd"] == camkd.__version__
        assert "contrast" in values
        assert "teacher" not in values


def test_files_contain_no_paths_of_this_machine(onnx_files: Any) -> None:
    package = str(Path(camkd.__file__).parent).encode()
    for path in (onnx_files.fp32, onnx_files.int8):
        content = path.read_bytes()
        assert b"/home/me" not in content, path
        assert package not in content, path
        assert b"File " not in content, path


@pytest.mark.parametrize(("name", "classes", "size"), [("resnet8", 5, 64), ("resnet20", 2, 96)])
def test_other_networks_classes_and_sizes(name: str, classes: int, size: int, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = build(name, classes, size, seed=3)
    model.train()(random_images(8, size))  # updates the batch norm statistics
    write_onnx(model.eval(), make_info(name, classes, size), path, any_size=True)
    images = (random_images(4, size) * 255).byte().permute(0, 2, 3, 1).numpy()
    assert compare_with_pytorch(model, path, images).cam < 1e-3
    assert compare_with_pytorch(model, path, enlarge(images)).cam < 1e-3
    assert run_session(open_session(path), to_input(images))[0].shape == (4, classes)


def test_gradient_based_maps_are_an_input_error(tmp_path: Path) -> None:
    model = build("resnet8", 3, 16).eval()
    model.fc = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    with pytest.raises(InputError) as caught:
        write_onnx(model, make_info("resnet8", 3, 16), tmp_path / "x.onnx")
    assert str(caught.value) == (
        "the network must have exact maps, got resnet8 with gradient-based maps, which no single forward pass returns. "
        "Export a network with a linear head, such as its student."
    )
    assert list(tmp_path.iterdir()) == []


def test_network_that_cannot_be_traced_is_an_input_error(tmp_path: Path) -> None:
    class Untraceable(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)) * (1 if float(x.sum()) > 0 else 2)

    with pytest.raises(InputError, match="must be traceable to ONNX"):
        write_onnx(Untraceable(), make_info("mine", 3, 16), tmp_path / "x.onnx", cam=False)
    assert list(tmp_path.iterdir()) == []


def test_logits_and_maps_can_be_exported_by_torch_export() -> None:
    """docs/device.md names this way to ExecuTorch."""
    model = build("resnet8", 3, 16).eval()
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    wrapped = WithCam(model, x)
    exported = torch.export.export(wrapped, (x,)).module()
    for value, expected in zip(exported(x), wrapped(x), strict=True):
        torch.testing.assert_close(value, expected)
