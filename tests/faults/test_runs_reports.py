"""Inputs of bug reports about runs: moved projects, replaced teachers, unbalanced classes, unwritable folders."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from camkd.experiments import pipeline
from camkd.runs.folder import Run
from camkd.runs.loading import read_model_info
from camkd.train import heatmap_figures
from support.cli import QUICK, camkd

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def no_figures() -> Iterator[None]:
    """Leave out the figures, which take longer than the training here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "draw_examples", lambda *arguments: None)
        patch.setattr(heatmap_figures, "draw_examples", lambda *arguments: None)
        yield


class Project:
    """A folder with images in ``data`` and the runs of ``camkd train`` in ``runs/all``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = root / "data"
        self.runs = root / "runs" / "all"
        self.teacher = self.runs / "teacher"
        self.student = self.runs / "student"

    def train(self, *options: str) -> Any:
        return camkd(
            "train", "--data", str(self.data), "--teacher", "resnet8", *QUICK, "--out", str(self.runs), *options
        )

    def replace_teacher(self) -> None:
        """Train another teacher in the folder of the teacher."""
        shutil.rmtree(self.teacher)
        options = ["--model", "resnet8", "--data", str(self.data), *QUICK, "--seed", "7", "--out", str(self.teacher)]
        assert camkd("teacher", *options).status == 0


@pytest.fixture(scope="module")
def original(easy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A trained project. Its folder was renamed after the training, so none of the recorded paths exists."""
    root = tmp_path_factory.mktemp("project")
    project = Project(root / "old")
    shutil.copytree(easy_folder, project.data)
    assert project.train().status == 0
    project.root.rename(root / "renamed")
    return Project(root / "renamed")


@pytest.fixture
def moved(original: Project, tmp_path: Path) -> Project:
    """A copy of the project in a folder that its runs do not record."""
    return Project(Path(shutil.copytree(original.root, tmp_path / "new")))


@pytest.fixture
def in_place(original: Project) -> Iterator[Project]:
    """A copy of the project in the folder that its runs record."""
    project = Project(Path(shutil.copytree(original.root, original.root.parent / "old")))
    yield project
    shutil.rmtree(project.root)


def evaluate(run: Path, *options: str) -> Any:
    return camkd("evaluate", str(run), "--json", *options)


# --- the teacher of a run is identified by its weights


@pytest.mark.fault("another teacher in the teacher's folder")
def test_replaced_teacher_is_left_out(in_place: Project, tmp_path: Path, easy_folder: Path) -> None:
    stored = Run(in_place.student).read_metrics()
    before = evaluate(in_place.student)
    assert before.json["teacher_agreement"] == stored["teacher_agreement"]
    assert "left out" not in before.err
    in_place.replace_teacher()
    after = evaluate(in_place.student)
    assert "teacher_agreement" not in after.json
    note = f"the teacher of {str(in_place.student)!r} is left out: {in_place.teacher} has other weights now"
    assert note in after.err
    given = evaluate(in_place.student, "--teacher", str(in_place.teacher))
    assert "teacher_agreement" in given.json
    assert "has other weights than the teacher that" in given.err
    image = str(next(easy_folder.glob("test/*/*.png")))
    explained = camkd("explain", str(in_place.student), image, "--json", "--out", str(tmp_path / "maps.json"))
    assert set(explained.json["images"][image]) == {"student"}
    assert note in explained.err
    checkpoint = next((in_place.student / "checkpoints").glob("best-*.pt"))
    explained = camkd("explain", str(checkpoint), image, "--json", "--out", str(tmp_path / "maps.json"))
    assert set(explained.json["images"][image]) == {"student"}


@pytest.mark.fault("another teacher in the teacher's folder")
def test_report_names_a_teacher_with_other_weights(in_place: Project) -> None:
    note = "The weights of teacher are not those of the teacher that student was trained with."
    page = in_place.root / "report.html"
    assert camkd("report", str(in_place.runs), "--out", str(page)).status == 0
    assert note not in page.read_text(encoding="utf-8")
    in_place.replace_teacher()
    assert camkd("report", str(in_place.runs), "--out", str(page)).status == 0
    text = page.read_text(encoding="utf-8")
    assert note in text
    assert text.count("not measured for both student and teacher") == 2


@pytest.mark.fault("another teacher in the teacher's folder")
def test_export_does_not_write_a_replaced_teacher(in_place: Project, tmp_path: Path) -> None:
    in_place.replace_teacher()
    output = camkd("export", str(in_place.student), "--teacher", "--out", str(tmp_path / "out"))
    assert output.status == 2
    assert "is left out" in output.err
    assert not (tmp_path / "out").exists()


@pytest.mark.fault("default teacher of another dataset")
def test_default_teacher_of_a_dataset_of_the_same_name_is_refused(
    easy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = [Path(shutil.copytree(easy_folder, tmp_path / name / "pets")) for name in ("first", "second")]
    changed = next(data[1].glob("train/*/*.png"))
    changed.write_bytes(next(data[1].glob("test/*/*.png")).read_bytes())
    assert camkd("teacher", "--model", "resnet8", "--data", str(data[0]), *QUICK).status == 0
    common = ["--teacher", "resnet8", "--student", "resnet8", "--method", "kd", *QUICK]
    assert camkd("distill", "--data", str(data[0]), *common, "--out", "same").status == 0
    common = ["--data", str(data[1]), *common]
    error = camkd("distill", *common, "--out", "other").last_line
    assert error == (
        "camkd: The teacher in runs/pets/teacher-resnet8, the default run of 'resnet8', must be trained on the images "
        f"of {str(data[1])!r}, got other images ({str(data[0])!r}) or other limits. Set --teacher "
        "runs/pets/teacher-resnet8 to use it anyway, or train another teacher."
    )
    assert not Path("other").exists()
    compare = [*common[:6], "--methods", "kd", "--seeds", "1", *QUICK]
    assert "or train another teacher" in camkd("compare", *compare, "--out", "other").last_line
    limited = ["--data", str(data[0]), *common[2:], "--train-limit", "48"]
    assert "or other limits" in camkd("distill", *limited, "--out", "other").last_line
    given = [*common, "--teacher", "runs/pets/teacher-resnet8"]
    assert camkd("distill", *given, "--out", "given").status == 0


# --- a moved project


@pytest.mark.fault("moved project")
def test_moved_run_is_evaluated_and_explained_with_its_teacher(moved: Project, tmp_path: Path) -> None:
    stored = Run(moved.student).read_metrics()
    assert not Path(read_model_info(moved.student).data).exists()
    output = evaluate(moved.student)
    assert output.json["teacher_agreement"] == stored["teacher_agreement"]
    assert output.json["confusion"] == stored["confusion"]
    assert f"moved from {read_model_info(moved.student).data!r} to {str(moved.data)!r}" in output.err
    assert evaluate(moved.runs / "control").json["teacher_agreement"] >= 0
    image = str(next(moved.data.glob("test/*/*.png")))
    explained = camkd("explain", str(moved.runs), image, "--json", "--out", str(tmp_path / "maps.json"))
    assert set(explained.json["images"][image]) == {"teacher", "student"}


@pytest.mark.fault("moved project")
def test_images_at_the_recorded_path_are_other_images(moved: Project, original: Project) -> None:
    """The project was copied, and then the images at the old path were replaced."""
    old = Path(shutil.copytree(moved.data, original.root.parent / "old" / "data"))
    try:
        shutil.copy(next(old.glob("train/*/*.png")), next(old.glob("test/*/*.png")))
        output = evaluate(moved.student)
    finally:
        shutil.rmtree(old.parent)
    assert output.json["confusion"] == Run(moved.student).read_metrics()["confusion"]
    assert "have changed" not in output.err
