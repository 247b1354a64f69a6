"""Runs on tables of image files, by the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.data.test_table import list_files, write_table

from support.cli import QUICK, camkd

pytestmark = pytest.mark.slow


@pytest.fixture
def project(easy_folder: Path, tmp_path: Path) -> Path:
    """A folder with the images of `easy` and a table of them with a column for the split."""
    root = tmp_path / "project"
    shutil.copytree(easy_folder, root / "images")
    rows = [(f"images/{name}", label, name.split("/")[0]) for name, label in list_files(root / "images")]
    write_table(root / "easy.csv", rows, "image,label,split")
    return root


def weights(run: Path) -> str:
    return str(json.loads((run / "model.json").read_text())["sha256"])


def test_every_command_takes_a_table(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    for name, data in (("folder", "images"), ("table", "easy.csv")):
        result = camkd("teacher", "--model", "resnet8", "--data", data, "--out", f"runs/{name}", *QUICK)
        assert result.status == 0, result.err
    assert weights(project / "runs/table") == weights(project / "runs/folder")

    moved = project.parent / "moved"
    project.rename(moved)
    monkeypatch.chdir(project.parent)
    run = ("teacher", "--model", "resnet8", "--out", "moved/runs/table", "--resume", *QUICK)
    resumed = camkd(*run, "--data", "moved/easy.csv")
    assert resumed.status == 0, resumed.err
    assert "is a finished run" in resumed.err
    evaluated = camkd("evaluate", "moved/runs/table", "--json")
    assert evaluated.json["test_images"] == 24
    assert "changed" not in evaluated.err
    other = camkd("evaluate", "moved/runs/folder", "--data", "moved/easy.csv", "--json")
    assert other.json["accuracy"] == evaluated.json["accuracy"]
    assert "evaluated on the 24 test images of 'moved/easy.csv'" in other.err
    camkd("explain", "moved/runs/table", "moved/easy.csv", "--out", "maps.json", "--json")
    assert len(json.loads(Path("maps.json").read_text())["images"]) == 144

    lines = (moved / "easy.csv").read_text().splitlines()
    (moved / "fewer.csv").write_text("\n".join(lines[:-1]) + "\n")
    fewer = camkd(*run, "--data", "moved/fewer.csv")
    assert (fewer.status, "got other images (data moved/fewer.csv)" in fewer.err) == (2, True)

    student = ("--data", "moved/easy.csv", "--teacher", "moved/runs/table", *QUICK)
    assert camkd("distill", *student, "--out", "student").status == 0
    assert camkd("compare", "--methods", "plain,kd", "--seeds", "1", *student, "--out", "comparison").status == 0
    assert camkd("report", "student", "--out", "report.html").status == 0
    assert camkd("export", "student").status == 0
