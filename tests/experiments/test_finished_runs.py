"""Heatmaps of image files from finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import camkd
from camkd.experiments.finished_runs import explain_files
from camkd.types import InputError

pytestmark = pytest.mark.slow


def explain(source: Path, files: list[str], out: Path, **options: Any) -> dict[str, dict[str, Any]]:
    result = explain_files(str(source), files, out, None, lambda *done: None, print, **options)
    assert result["classes"] == ["berry", "leaf", "sky"]
    records: dict[str, dict[str, Any]] = result["images"]
    return records


def test_student_and_teacher_are_explained(finished: Any, easy_folder: Path, tmp_path: Path) -> None:
    folder = easy_folder / "test" / "leaf"
    records = explain(finished.folder / "student", [str(folder)], tmp_path / "cams.png")
    assert list(records) == sorted(str(path) for path in folder.iterdir())
    assert [set(record) for record in records.values()] == [{"teacher", "student"}] * 8
    assert (tmp_path / "cams.png").read_bytes().startswith(b"\x89PNG")
    teacher_records = explain(finished.folder / "teacher", [str(folder)], tmp_path / "own.png")
    assert [set(record) for record in teacher_records.values()] == [{"teacher"}] * 8
    assert [record["teacher"] for record in teacher_records.values()] == [
        record["teacher"] for record in records.values()
    ]


def test_maps_equal_those_of_predict(finished: Any, easy_folder: Path, tmp_path: Path) -> None:
    file = next((easy_folder / "test" / "leaf").iterdir())
    records = explain(finished.folder / "student", [str(file)], tmp_path / "maps.npz", top=3)
    x = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None].float() / 255
    with np.load(tmp_path / "maps.npz") as arrays:
        for role in ("teacher", "student"):
            with torch.no_grad():
                prediction = camkd.predict(camkd.load(finished.folder / role), x)
            assert prediction.cams is not None
            np.testing.assert_allclose(
                arrays[f"{role}_maps"], prediction.cams[:, arrays["class_ids"][0]], rtol=1e-4, atol=1e-4
            )
            np.testing.assert_allclose(arrays[f"{role}_probabilities"], prediction.logits.softmax(1), rtol=1e-4)
            classes = records[str(file)][role]["classes_shown"]
            assert [entry["class"] for entry in classes] == [arrays["classes"][k] for k in arrays["class_ids"][0]]


def test_overlays_show_the_predicted_class(finished: Any, easy_folder: Path, tmp_path: Path) -> None:
    records = explain(finished.folder / "student", [str(easy_folder / "test")], tmp_path / "overlays")
    assert all(
        record["student"]["classes_shown"][0]["class"] == record["student"]["class"] for record in records.values()
    )
    assert all(set(record) == {"student"} for record in records.values())
    overlays = sorted(path for path in (tmp_path / "overlays").rglob("*.png"))
    assert [f"{path.relative_to(tmp_path / 'overlays')}" for path in overlays] == [
        f"{Path(path).relative_to(easy_folder / 'test')}.png" for path in records
    ]


@pytest.mark.parametrize("top", [0, 4])
def test_top_beyond_the_classes_is_refused(finished: Any, tmp_path: Path, top: int) -> None:
    with pytest.raises(InputError, match=f"--top must be 1 to 3, .* got {top}"):
        explain(finished.folder, ["x.png"], tmp_path / "cams.png", top=top)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".png", ".npz", ".json", ""])
def test_contrast_with_every_kind_of_output(finished: Any, easy_folder: Path, tmp_path: Path, suffix: str) -> None:
    files = [str(easy_folder / "test")]
    out = tmp_path / f"maps{suffix}"
    result = explain_files(str(finished.folder), files, out, None, lambda *done: None, print, against=["leaf", "leaf"])
    assert result["against"] == ["leaf"]
    predicted = {record["student"]["class"] for record in result["images"].values()}
    assert "leaf" in predicted, "the images of leaves must be among the images"
    for record in result["images"].values():
        assert all(entry["classes_shown"][0]["class"] in ("berry", "sky") for entry in record.values())
    if suffix == ".npz":
        plain = tmp_path / "plain.npz"
        explain(finished.folder, files, plain, top=3)
        with np.load(out) as arrays, np.load(plain) as plain_arrays:
            leaf = list(arrays["classes"]).index("leaf")
            assert arrays["against"].tolist() == [leaf]
            for role in ("teacher", "student"):
                for row, k in enumerate(arrays["class_ids"][:, 0]):
                    ids = plain_arrays["class_ids"][row].tolist()
                    maps = plain_arrays[f"{role}_maps"][row]
                    expected = maps[ids.index(k)] - maps[ids.index(leaf)]
                    np.testing.assert_allclose(arrays[f"{role}_maps"][row, 0], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"against": ["sky", "Leaf"]}, r"--against must be classes of .*, got 'Leaf'\. Choose from berry, leaf, sky\."),
        ({"against": ["sky", "leaf", "berry"]}, r"--against must leave out at least one class of .*, got all 3\."),
        ({"against": ["sky"], "top": 3}, r"--top must be 1 to 2, the number of .* outside of --against, got 3\."),
    ],
)
def test_wrong_contrast_is_refused(finished: Any, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        explain(finished.folder, ["x.png"], tmp_path / "cams.png", **options)
    assert not list(tmp_path.iterdir())
