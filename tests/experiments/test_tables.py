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


def test_other_weights_are_another_run(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    rows = [(f"images/{name}", label, name.split("/")[0]) for name, label in list_files(project / "images")]
    heavy = [(*row, 3 if row[1] == "sky" else 1) for row in rows]
    run = ("teacher", "--model", "resnet8", "--data", "w.csv", "--out", "run", *QUICK)
    write_table(project / "w.csv", heavy, "image,label,split,weight")
    assert camkd(*run).status == 0
    plain = camkd("teacher", "--model", "resnet8", "--data", "easy.csv", "--out", "plain", *QUICK)
    assert plain.status == 0
    assert weights(project / "run") != weights(project / "plain")
    write_table(project / "w.csv", [(*row[:3], row[3] + 1) for row in heavy], "image,label,split,weight")
    refused = camkd(*run, "--resume")
    assert "weights of the images must be those that run was started with" in refused.err
    evaluated = camkd("evaluate", "run", "--json")
    assert evaluated.status == 0
    assert "changed" not in evaluated.err


def test_groups_of_a_run_decide_its_test_images(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    files = list_files(project / "images" / "train")
    pattern = r"/([0-9][0-9])[0-9]\.png"
    (project / "images" / "train").rename(project / "classes")
    options = ("--group-regex", pattern, *QUICK)
    assert camkd("teacher", "--model", "resnet8", "--data", "classes", "--out", "run", *options).status == 0
    own = camkd("evaluate", "run", "--json")
    given = camkd("evaluate", "run", "--data", "classes", "--json")
    assert own.json["accuracy"] == given.json["accuracy"]
    assert own.json["test_images"] == given.json["test_images"] < len(files)
    (project / "classes").rename(project / "moved")
    moved = camkd("evaluate", "run", "--data", "moved", "--json")
    assert moved.json["test_images"] == own.json["test_images"]
