"""``camkd export``: files, model card, printed results and errors. Nothing is written if the export fails."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import camkd
from camkd.cli.main import main
from camkd.export import export as export_module
from camkd.export.onnx_graph import write_onnx
from camkd.export.sessions import open_session, run_session
from camkd.models import build
from camkd.models.io import ModelInfo, save

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.slow

Captured = pytest.CaptureFixture[str]


def last_line(capsys: Captured) -> str:
    return capsys.readouterr().err.splitlines()[-1]


# --- the files


@pytest.mark.parametrize(("file", "role"), [("model.onnx", "student"), ("teacher.onnx", "teacher")])
def test_files_match_the_runs(exported: Any, finished: Any, file: str, role: str) -> None:
    x = torch.rand(7, 3, 16, 16)
    with torch.no_grad():
        expected = camkd.predict(camkd.load(finished.folder / role), x)
    logits, cam = run_session(open_session(exported.folder / file), x.numpy())
    np.testing.assert_allclose(logits, expected.logits, atol=1e-4)
    np.testing.assert_allclose(cam, expected.cams, atol=1e-4)


def test_metadata_has_the_checksum_of_the_weights(exported: Any) -> None:
    info = camkd.load(exported.run).info
    for name in ("model.onnx", "model.int8.onnx"):
        values = {entry.key: entry.value for entry in onnx.load(exported.folder / name).metadata_props}
        assert values["weights_sha256"] == info.sha256
        assert values["data_fingerprint"] == info.data_fingerprint


def test_files_contain_no_paths_of_this_machine(exported: Any) -> None:
    home = str(exported.run.parents[1]).encode()
    for path in exported.folder.rglob("*"):
        assert home not in path.read_bytes(), path


def test_printed_results(exported: Any) -> None:
    results = exported.results
    assert results["model"]["bytes"] == (exported.folder / "model.onnx").stat().st_size
    assert 0 <= results["model"]["largest_difference"]["logits"] < 1e-4
    assert set(results["int8"]) >= {"before", "after", "cam_cosine", "agreement", "latency", "bytes"}
    assert results["int8"]["test_images"] == 24
    assert sorted(path.name for path in exported.folder.iterdir()) == [
        "README.md",
        "model.int8.onnx",
        "model.onnx",
        "teacher.onnx",
    ]


def test_model_card_has_the_results(exported: Any) -> None:
    text = (exported.folder / "README.md").read_text(encoding="utf-8")
    front_matter = yaml.safe_load(text.split("---")[1])
    assert front_matter["library_name"] == "onnx"
    cost = exported.results["int8"]
    assert f"{cost['before']:.2%} | {cost['after']:.2%}" in text
    assert f"{exported.results['model']['bytes']:,}" in text


def test_example_of_the_model_card_runs(exported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(.*?)```", (exported.folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    monkeypatch.chdir(exported.folder)
    names: dict[str, Any] = {}
    exec(code[1], names)
    assert names["logits"].shape == (1, 3)
    assert names["cam"].shape == (1, 3, 8, 8)


def test_export_of_a_run_with_larger_images_and_other_classes(tmp_path: Path, capsys: Captured) -> None:
    """A run with 64 pixels and five classes, exported with the default folder."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4), ("test", 4)):
        for k in range(5):
            folder = tmp_path / "images" / split / f"kind {k}"
            folder.mkdir(parents=True)
            for i in range(count):
                noise = rng.integers(0, 120, (64, 64, 3)) + 27 * k
                Image.fromarray(noise.astype(np.uint8)).save(folder / f"{i}.png")
    model = build("cam-net-lite", 5, 64, seed=1)
    model.train()(torch.rand(8, 3, 64, 64))
    names = tuple(f"kind {k}" for k in range(5))
    info = ModelInfo("cam-net-lite", names, 64, 1, 2, "student", "kd", str(tmp_path / "images"), "f", 0)
    save(model, tmp_path / "run", info)
    assert main(["export", str(tmp_path / "run"), "--int8", "--force", "--any-size", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["out"] == str(tmp_path / "run" / "export")
    assert results["model"]["largest_difference"]["cam"] < 1e-3
    assert results["int8"]["test_images"] == 20
    logits, cam = run_session(open_session(tmp_path / "run" / "export" / "model.onnx"), np.zeros((1, 3, 96, 96), "f4"))
    assert (logits.shape, cam.shape[:2]) == ((1, 5), (1, 5))


# --- failed exports


def test_int8_with_a_large_loss_is_refused(
    exported: Any, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "MIN_CAM_COSINE", 1.01)
    assert main(["export", str(exported.run), "--out", str(tmp_path / "out"), "--int8"]) == 2
    message = last_line(capsys)
    assert "int8 must lose at most 0.5 points of accuracy and keep a cosine similarity of 1.01 or more, got" in message
    assert "Leave out --int8, raise --max-drop, or add --force." in message
    assert list(tmp_path.iterdir()) == []


def test_file_that_differs_from_pytorch_is_not_kept(
    exported: Any, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_another_model(model: Any, info: ModelInfo, path: Path, **options: Any) -> None:
        write_onnx(build("cam-net", 3, 16, seed=9).eval(), info, path, **options)

    monkeypatch.setattr(export_module, "write_onnx", write_another_model)
    (tmp_path / "model.onnx").write_text("previous content")
    assert main(["export", str(exported.run), "--out", str(tmp_path)]) == 1
    assert "model.onnx must match PyTorch" in last_line(capsys)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("model.onnx", "previous content")]
    assert list(tmp_path.parent.glob(f".{tmp_path.name}*")) == []


@pytest.mark.parametrize(
    ("options", "value"),
    [
        (["nowhere"], "'nowhere'"),
        (["RUN", "--max-drop", "-1"], "max_drop must be between 0 and 100 percentage points, got -1"),
        (["RUN", "--data", "nowhere"], "or hf:PATH or hf:NAME, got 'nowhere'"),
        (["RUN", "--data", "shapes"], "Give images of the model's classes"),
        (["RUN", "--web", "OTHER_FILES"], "--web must be a new folder or a page of camkd, got"),
        (["RUN", "--web", "page", "--runtime", "nowhere"], "got 'nowhere'"),
        (["TEACHER", "--teacher"], "Give --teacher its run"),
        (["RUN", "--teacher", "nowhere"], "'nowhere' must be a run folder with a trained model"),
        (
            ["RUN", "--teacher", "cam-net-cifar10"],
            "must have the classes and the fit of the model, ",
        ),
    ],
)
def test_invalid_option_is_an_input_error_and_nothing_is_written(
    options: list[str],
    value: str,
    finished: Any,
    runtime: Path,
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "novel.txt").write_text("chapter one")
    paths = {
        "RUN": str(finished.folder / "student"),
        "TEACHER": str(finished.folder / "teacher"),
        "OTHER_FILES": str(tmp_path / "other"),
    }
    command = ["export", *(paths.get(option, option) for option in options)]
    if "--web" not in command:
        command += ["--out", "out"]
    elif "--runtime" not in command:
        command += ["--runtime", str(runtime)]
    assert main(command) == 2
    assert value in last_line(capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]
