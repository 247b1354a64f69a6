"""The example notebook runs cell by cell as plain Python, without Jupyter, and holds no outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from PIL import Image

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))


def read_cells(notebook: Path) -> list[dict[str, Any]]:
    content = json.loads(notebook.read_text(encoding="utf-8"))
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    cells: list[dict[str, Any]] = content["cells"]
    return cells


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_no_outputs(notebook: Path) -> None:
    cells = read_cells(notebook)
    assert len({cell["id"] for cell in cells}) == len(cells)
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    for cell in code:
        assert (cell["outputs"], cell["execution_count"]) == ([], None)


@pytest.mark.slow
def test_notebook_leads_from_a_folder_to_a_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (notebook,) = NOTEBOOKS
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for cell in read_cells(notebook):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    plt.close("all")
    assert names["metrics"]["teacher"]["accuracy"] > 0.8
    assert names["metrics"]["student"]["accuracy"] > 0.8
    assert (tmp_path / "runs/notebook/report.html").exists()
    with Image.open(tmp_path / "runs/notebook/heatmaps.png") as figure:
        assert figure.size[0] > 300
    output = capsys.readouterr()
    assert "similarity to the teacher's maps 0." in output.out
    assert "teacher  epoch 1" in output.err
