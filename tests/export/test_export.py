"""`camkd export`: what is written answers as the trained network does, and nothing else is written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import camkd
from camkd.cli.main import main
from camkd.data.dataset import Dataset
from camkd.export import checks
from camkd.export import export as folder
from camkd.export import onnx_graph as graph
from camkd.export.sessions import as_input, open_session, run
from camkd.models import build
from camkd.models.io import ModelInfo, save
from camkd.runs.load_model import load, read_model_info
from conftest import Finished

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

Captured = pytest.CaptureFixture[str]


def pixels(count: int, size: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def named(path: Path) -> dict[str, Any]:
    """The outputs' names of a file, asked as a stranger would: with onnxruntime and numpy alone."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return {output.name: output.shape for output in session.get_outputs()}


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize(("file", "role"), [("model.onnx", "student"), ("teacher.onnx", "teacher")])
def test_logits_and_maps_are_those_of_pytorch_for_any_batch(
    exported: Any, finished: Finished, file: str, role: str, count: int
) -> None:
    assert list(named(exported.folder / file)) == ["logits", "cam"]
    x = pixels(count)
    with torch.no_grad():
        expected = camkd.predict(load(finished.folder / role), x)
    logits, cam = run(open_session(exported.folder / file), x.numpy())
    np.testing.assert_allclose(logits, expected.logits, atol=1e-4)
    np.testing.assert_allclose(cam, expected.cams, atol=1e-4)


def test_the_map_explains_the_logits(exported: Any) -> None:
    logits, cam = run(open_session(exported.folder / "model.onnx"), pixels(3).numpy())
    offset = load(exported.run).head.bias.detach().numpy()
    np.testing.assert_allclose(cam.mean((2, 3)) + offset, logits, atol=1e-5)


def test_the_file_says_what_it_is_and_where_it_comes_from(exported: Any) -> None:
    said = read_model_info(exported.run)
    for name in ("model.onnx", "model.int8.onnx"):
        told = {entry.key: entry.value for entry in onnx.load(exported.folder / name).metadata_props}
        assert tuple(json.loads(told["classes"])) == said.classes
        assert told["weights_sha256"] == said.sha256
        assert (told["architecture"], told["size"], told["method"]) == ("cam-net", "16", said.method)
        assert told["data_fingerprint"] == said.data_fingerprint


def test_no_path_of_this_machine_is_inside(exported: Any) -> None:
    home, package = str(exported.run.parents[1]).encode(), str(Path(camkd.__file__).parent).encode()
    for path in exported.folder.rglob("*"):
        content = path.read_bytes()
        assert home not in content, path
        assert package not in content, path
        assert b"File " not in content, path


def test_the_answer_to_json(exported: Any) -> None:
    found = exported.found
    assert found["model"]["bytes"] == (exported.folder / "model.onnx").stat().st_size
    assert 0 <= found["model"]["largest_difference"]["logits"] < 1e-4
    assert set(found["int8"]) >= {"before", "after", "cam_cosine", "agreement", "latency", "bytes"}
    assert found["int8"]["test_images"] == 24
    assert sorted(path.name for path in exported.folder.iterdir()) == [
        "README.md",
        "model.int8.onnx",
        "model.onnx",
        "teacher.onnx",
    ]


def test_the_card_says_what_was_measured(exported: Any) -> None:
    text = (exported.folder / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---")[1])
    assert front["library_name"] == "onnx"
    cost = exported.found["int8"]
    assert f"{cost['before']:.2%} | {cost['after']:.2%}" in text
    assert f"{exported.found['model']['bytes']:,}" in text


def test_the_example_of_the_card_runs(exported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(.*?)```", (exported.folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    monkeypatch.chdir(exported.folder)
    names: dict[str, Any] = {}
    exec(code[1], names)
    assert names["logits"].shape == (1, 3)
    assert names["cam"].shape == (1, 3, 8, 8)


# --- what int8 costs


def test_int8_is_smaller_and_nearly_the_same(exported: Any, easy: Dataset) -> None:
    sizes = [(exported.folder / name).stat().st_size for name in ("model.onnx", "model.int8.onnx")]
    assert sizes[1] < 0.6 * sizes[0]
    x = as_input(easy.test.images)
    (logits, cam), (ours, own) = (run(open_session(exported.folder / n), x) for n in ("model.onnx", "model.int8.onnx"))
    assert not np.array_equal(logits, ours)
    assert np.corrcoef(logits.ravel(), ours.ravel())[0, 1] > 0.99
    assert np.corrcoef(cam.ravel(), own.ravel())[0, 1] > 0.98


def test_the_cost_is_counted_as_it_should_be(exported: Any, easy: Dataset) -> None:
    files = [exported.folder / name for name in ("model.onnx", "model.int8.onnx")]
    cost = checks.measure_int8(*files, easy.test)
    answers = [run(open_session(path), as_input(easy.test.images)) for path in files]
    classes = [logits.argmax(1) for logits, _ in answers]
    assert cost.before == pytest.approx((classes[0] == easy.test.labels).mean())
    assert cost.after == pytest.approx((classes[1] == easy.test.labels).mean())
    assert cost.agreement == pytest.approx((classes[0] == classes[1]).mean())
    rows = np.arange(len(classes[0]))
    a, b = (np.maximum(cam[rows, classes[0]], 0).reshape(len(rows), -1) for _, cam in answers)
    scale = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    alike = (a * b).sum(1) / np.where(scale > 0, scale, 1)
    assert cost.cam_cosine == pytest.approx(alike.mean(), abs=1e-5)
    same = checks.measure_int8(files[0], files[0], easy.test)
    assert (same.before, same.agreement) == (same.after, 1)


def test_int8_that_costs_too_much_is_refused(
    exported: Any, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "SMALLEST_COSINE", 1.01)
    assert main(["export", str(exported.run), "--out", str(tmp_path / "out"), "--int8"]) == 2
    assert "leave out --int8, raise --max-drop, or add --force" in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


# --- what is not right is not written


def test_a_graph_that_answers_otherwise_is_not_kept(
    exported: Any, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: Any, said: ModelInfo, path: Path, **how: Any) -> None:
        graph.write_graph(build("cam-net", 3, 16, seed=9).eval(), said, path, **how)

    monkeypatch.setattr(folder, "write_graph", wrong)
    (tmp_path / "model.onnx").write_text("what was here before")
    assert main(["export", str(exported.run), "--out", str(tmp_path)]) == 1
    assert "model.onnx does not answer as PyTorch does" in capsys.readouterr().err.splitlines()[-1]
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("model.onnx", "what was here before")]
    assert list(tmp_path.parent.glob(f".{tmp_path.name}*")) == []


@pytest.mark.parametrize("values", [(np.nan, 0.0), (0.0, 0.0, 0.0)])
def test_nan_and_another_shape_are_mismatches(values: tuple[float, ...]) -> None:
    expected = np.zeros((1, 2), np.float32)
    with pytest.raises(FloatingPointError, match=r"x\.onnx does not answer"):
        checks.difference(expected, np.array([values], np.float32), Path("x.onnx"))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["nowhere"], "'nowhere' is neither a run folder"),
        (["RUN", "--max-drop", "-1"], "max_drop is -1"),
        (["RUN", "--data", "nowhere"], "no folder and no built-in data set called 'nowhere'"),
        (["RUN", "--data", "shapes"], "give pictures of its own classes"),
        (["RUN", "--web", "FULL"], "holds something else than a page of camkd"),
        (["RUN", "--web", "page", "--runtime", "nowhere"], "'nowhere' has not the files of onnxruntime-web"),
        (["RUN", "--teacher", "LONELY"], "give --teacher its run"),
        (["RUN", "--teacher", "nowhere"], "'nowhere'"),
        (["RUN", "--teacher", "cam-net-cifar10"], "is no teacher of"),
    ],
)
def test_wrong_input_is_one_sentence_and_leaves_nothing(
    options: list[str],
    named: str,
    finished: Finished,
    runtime: Path,
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "novel.txt").write_text("chapter one")
    run_folder = finished.folder / ("teacher" if "LONELY" in options else "student")
    words = {"RUN": str(run_folder), "FULL": str(tmp_path / "full")}
    given = [words.get(option, option) for option in options if option != "LONELY"]
    if "--web" in given and "--runtime" not in given:
        given += ["--runtime", str(runtime)]
    assert main(["export", *given, "--out", "out"] if "--web" not in given else ["export", *given]) == 2
    assert named in capsys.readouterr().err.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_gradient_maps_have_no_single_pass(tmp_path: Path) -> None:
    model = build("resnet8", 3, 16).eval()
    model.fc = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    with pytest.raises(camkd.InputError, match="gradient-based"):
        graph.write_graph(model, said("resnet8", 3, 16), tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


# --- other networks, classes and sizes


def said(architecture: str, classes: int, size: int) -> ModelInfo:
    names = tuple(f"class {k}" for k in range(classes))
    return ModelInfo(architecture, names, size, 1, 2, "student", "kd", "x", "f", 0)


@pytest.mark.parametrize(("name", "classes", "size"), [("resnet8", 5, 64), ("resnet20", 2, 96)])
def test_other_networks_classes_and_sizes(name: str, classes: int, size: int, tmp_path: Path) -> None:
    model, path = build(name, classes, size, seed=3), tmp_path / "model.onnx"
    model.train()(pixels(8, size))  # statistics of its own
    graph.write_graph(model.eval(), said(name, classes, size), path, any_size=True)
    images = (pixels(4, size) * 255).byte().permute(0, 2, 3, 1).numpy()
    assert checks.compare(model, path, images).cam < 1e-3
    assert checks.compare(model, path, checks.widened(images)).cam < 1e-3
    assert named(path)["logits"][1] == classes


def test_a_folder_of_larger_pictures_with_other_classes(tmp_path: Path, capsys: Captured) -> None:
    """A user's own run, 64 pixels and five classes, through the command."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4), ("test", 4)):
        for k in range(5):
            place = tmp_path / "pictures" / split / f"kind {k}"
            place.mkdir(parents=True)
            for i in range(count):
                noise = rng.integers(0, 120, (64, 64, 3)) + 27 * k
                Image.fromarray(noise.astype(np.uint8)).save(place / f"{i}.png")
    model = build("cam-net-lite", 5, 64, seed=1)
    model.train()(pixels(8, 64))
    names = tuple(f"kind {k}" for k in range(5))
    told = ModelInfo("cam-net-lite", names, 64, 1, 2, "student", "kd", str(tmp_path / "pictures"), "f", 0)
    save(model, tmp_path / "run", told)
    assert main(["export", str(tmp_path / "run"), "--int8", "--force", "--any-size", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["out"] == str(tmp_path / "run" / "export")
    assert found["model"]["largest_difference"]["cam"] < 1e-3
    assert found["int8"]["test_images"] == 20
    assert named(tmp_path / "run" / "export" / "model.onnx")["cam"][1] == 5
