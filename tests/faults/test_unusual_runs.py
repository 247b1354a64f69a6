"""Runs whose surroundings change: moved projects, replaced teachers, unbalanced classes, unwritable folders."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from camkd.experiments import pipeline
from camkd.runs.folder import Run
from camkd.runs.loading import read_model_info
from support.cli import QUICK, camkd

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_figures")]


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
        "camkd: The teacher in runs/pets/teacher-resnet8, a default folder, must be trained on the images "
        f"of {str(data[1])!r}, got other images ({str(data[0])!r}), or another --limit or --train-limit. Set --teacher "
        "runs/pets/teacher-resnet8 to use it anyway, or train another teacher."
    )
    assert not Path("other").exists()
    compare = [*common[:6], "--methods", "kd", "--seeds", "1", *QUICK]
    assert "or train another teacher" in camkd("compare", *compare, "--out", "other").last_line
    limited = ["--data", str(data[0]), *common[2:], "--train-limit", "48"]
    assert "or another --limit or --train-limit" in camkd("distill", *limited, "--out", "other").last_line
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


def checksum(run: Path) -> str:
    return read_model_info(run).sha256


@pytest.mark.fault("moved project")
def test_moved_finished_runs_are_resumed(moved: Project) -> None:
    """The resumed runs store the new paths, and no teacher output is computed again."""
    before = {run.name: checksum(run) for run in (moved.teacher, moved.student)}
    output = moved.train("--resume")
    assert output.status == 0, output.err
    assert output.err.count("is a finished run: nothing is left to train") == 3
    assert {run.name: checksum(run) for run in (moved.teacher, moved.student)} == before
    info = read_model_info(moved.student)
    assert (info.data, info.teacher) == (str(moved.data), str(moved.teacher))
    assert "moved from" not in evaluate(moved.student).err


@pytest.mark.fault("moved project")
@pytest.mark.parametrize("spelling", ["{}/", "{}/../data", "copy"])
def test_unfinished_run_is_resumed_with_another_path_of_the_images(
    moved: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    monkeypatch.chdir(moved.root)
    expected = checksum(moved.student)
    shutil.rmtree(moved.student)
    command = ["distill", "--teacher", "runs/all/teacher", *QUICK, "--out", "runs/all/student", "--resume"]
    assert camkd(*command, "--data", "data").status == 0
    assert checksum(moved.student) == expected
    for name in ("metrics.json", "model.json", "model.safetensors"):
        (moved.student / name).unlink()
    root = Path(shutil.move(moved.root, tmp_path / "again"))
    monkeypatch.chdir(root)
    data = str(shutil.copytree("data", "copied")) if spelling == "copy" else spelling.format("data")
    output = camkd(*command, "--data", data)
    assert output.status == 0, output.err
    assert "1 of them exist" in output.err, "the outputs of the teacher are cached by content"
    assert checksum(Path("runs/all/student")) == expected
    assert evaluate(Path("runs/all/student")).json["teacher_agreement"] >= 0


@pytest.mark.fault("moved project")
def test_moved_comparison_is_resumed(moved: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = ["--methods", "plain,kd", "--seeds", "1", "--student", "resnet8", *QUICK, "--resume", "--json"]

    def compare(root: Path, *options: str) -> Any:
        paths = ["--data", str(root / "data"), "--teacher", str(root / "runs/all/teacher"), "--out", str(root / "cmp")]
        return camkd("compare", *paths, *common, *options)

    assert compare(moved.root).status == 0
    weights = [checksum(moved.root / "cmp" / method / "seed-0") for method in ("plain", "kd")]
    shutil.rmtree(moved.root / "cmp" / "kd" / "seed-0")
    root = Path(shutil.move(moved.root, tmp_path / "again"))
    monkeypatch.chdir(root)
    assert compare(Path(".")).status == 0
    assert [checksum(root / "cmp" / method / "seed-0") for method in ("plain", "kd")] == weights
    assert (root / "cmp" / "comparison.html").exists()
    assert evaluate(root / "cmp" / "plain" / "seed-0").json["teacher_agreement"] >= 0
    shutil.copy(next(root.glob("data/train/*/*.png")), next(root.glob("data/test/*/*.png")))
    assert "The images must be those that" in compare(root).last_line


# --- more epochs for finished runs


def epochs_of(project: Project) -> dict[str, int]:
    return {role: len(Run(project.runs / role).read_history()) for role in ("teacher", "control", "student")}


@pytest.mark.fault("--accept on a finished run")
def test_finished_runs_of_camkd_train_continue(moved: Project) -> None:
    teacher = checksum(moved.teacher)
    command = ("--resume", "--epochs", "2", "--accept", "epochs")
    output = moved.train(*command)
    assert output.status == 0, output.err
    assert epochs_of(moved) == {"teacher": 1, "control": 2, "student": 2}
    assert checksum(moved.teacher) == teacher, "the student was started with these weights"
    assert Run(moved.student).read_metrics()["epochs"] == 2
    weights = checksum(moved.student)
    again = moved.train(*command)
    assert again.status == 0, again.err
    assert again.err.count("nothing is left to train") == 3
    assert checksum(moved.student) == weights
    error = moved.train(*command, "--teacher-epochs", "2")
    assert "teacher_epochs must be 1" in error.last_line
    assert checksum(moved.teacher) == teacher


@pytest.mark.fault("--accept on a finished run")
def test_accepted_change_without_effect_is_refused(moved: Project) -> None:
    output = moved.train("--resume", "--lr", "0.2", "--accept", "lr")
    assert output.status == 2
    assert "for a change of lr to have an effect" in output.last_line
    run = ["--model", "resnet8", "--data", str(moved.data), *QUICK, "--out", str(moved.teacher), "--resume"]
    output = camkd("teacher", *run, "--epochs", "0", "--accept", "epochs")
    assert output.status == 2
    output = camkd("teacher", *run, "--epochs", "3", "--accept", "epochs")
    assert output.status == 0, output.err
    assert epochs_of(moved)["teacher"] == 3
    assert camkd("teacher", *run, "--epochs", "3").status == 0
    output = camkd("teacher", *run, "--epochs", "2", "--accept", "epochs")
    assert "epochs must be more than 3" in output.last_line


@pytest.mark.fault("--accept on a finished run")
def test_fewer_epochs_for_finished_runs_of_camkd_train_are_refused(moved: Project) -> None:
    assert moved.train("--resume", "--epochs", "3", "--accept", "epochs").status == 0
    output = moved.train("--resume", "--epochs", "2", "--accept", "epochs")
    assert output.status == 2
    assert "epochs must be more than 3" in output.last_line


@pytest.mark.fault("--accept on a finished run")
def test_accepted_label_smoothing_continues_the_run(moved: Project) -> None:
    run = ["--model", "resnet8", "--data", str(moved.data), *QUICK, "--out", str(moved.teacher), "--resume"]
    changed = [*run, "--epochs", "2", "--label-smoothing", "0.1"]
    assert "label_smoothing must be 0.0" in camkd("teacher", *changed, "--accept", "epochs").last_line
    output = camkd("teacher", *changed, "--accept", "epochs,label_smoothing")
    assert output.status == 0, output.err
    assert (epochs_of(moved)["teacher"], Run(moved.teacher).config()["label_smoothing"]) == (2, 0.1)


@pytest.mark.fault("--accept on a finished run")
def test_accepted_change_is_for_the_unfinished_run(moved: Project) -> None:
    """The teacher and the control are finished; the student diverged and gets a smaller bound of the gradient."""
    shutil.rmtree(moved.student)
    options = ("--resume", "--grad-clip", "1", "--accept", "grad_clip")
    for _ in range(2):
        output = moved.train(*options)
        assert output.status == 0, output.err
        values = {role: Run(moved.runs / role).config()["grad_clip"] for role in epochs_of(moved)}
        assert values == {"teacher": 5.0, "control": 5.0, "student": 1.0}


# --- files that cannot be written are found before the first epoch


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a network is trained."""
    monkeypatch.setattr(pipeline, "fit", lambda *arguments, **options: pytest.fail("a network was trained"))


TRAIN = ("train", "--teacher", "resnet8", "--student", "resnet8", *QUICK)


@pytest.mark.fault("cache that cannot be written")
@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("command", ["train", "distill", "compare", "precompute"])
def test_unwritable_teacher_cache_is_found_first(
    moved: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("CAMKD_CACHE", str(cache))
    assert camkd("evaluate", str(moved.teacher)).status == 0  # the dataset is cached
    (cache / "teacher").write_text("a file", encoding="utf-8")
    common = ["--data", str(moved.data), "--epochs", "1", "--out", str(tmp_path / "out")]
    teacher = ["--teacher", str(moved.teacher)]
    arguments = {
        "train": ["train", "--teacher", "resnet8", *common],
        "distill": ["distill", *teacher, *common],
        "compare": ["compare", *teacher, *common, "--seeds", "1"],
        "precompute": ["cache", "precompute", *teacher, *common[:-2]],
    }
    output = camkd(*arguments[command])
    assert output.status == 2
    assert f"got the file {cache / 'teacher'}. Set CAMKD_CACHE to a writable folder" in output.last_line
    assert not (tmp_path / "out").exists()


@pytest.mark.fault("cache that cannot be written")
def test_teacher_cache_that_is_not_used_need_not_be_writable(
    moved: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("CAMKD_CACHE", str(cache))
    assert camkd("evaluate", str(moved.teacher)).status == 0
    (cache / "teacher").write_text("a file", encoding="utf-8")
    command = ["distill", "--data", str(moved.data), "--teacher", str(moved.teacher), *QUICK, "--student", "resnet8"]
    for options in (["--method", "plain"], ["--method", "at"], ["--cache-budget", "0"]):
        output = camkd(*command, *options, "--out", str(tmp_path / options[-1]))
        assert output.status == 0, output.err


@pytest.mark.fault("run folder that cannot be written")
@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("out", "out must be a folder, got the file {out}. Choose another --out."),
        ("out/control", "{out}/control must be a folder, got the file {out}/control."),
        ("out/student/tensorboard", "{out}/student/tensorboard must be a folder, got the file"),
    ],
)
def test_file_in_place_of_a_folder_is_found_first(easy_folder: Path, tmp_path: Path, path: str, message: str) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("mine", encoding="utf-8")
    output = camkd(*TRAIN, "--data", str(easy_folder), "--out", str(tmp_path / "out"))
    assert message.format(out=tmp_path / "out") in output.error
    assert file.read_text(encoding="utf-8") == "mine"


@pytest.mark.fault("run folder that cannot be written")
@pytest.mark.usefixtures("no_training")
def test_folder_in_place_of_the_report_is_found_first(easy_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    output = camkd(*TRAIN, "--data", str(easy_folder), "--out", str(tmp_path))
    assert "report.html must be a file, got a folder." in output.error


@pytest.mark.fault("disk quota of zero")
@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("option", ["--out", "CAMKD_CACHE"])
def test_quota_of_zero_is_found_first(
    easy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    """Files can be created, but have no bytes."""
    full = tmp_path / "full"
    full.mkdir()
    if option == "CAMKD_CACHE":
        monkeypatch.setenv("CAMKD_CACHE", str(full))
    fsync = os.fsync

    def fail_in_full_folder(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(full)):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_in_full_folder)
    out = full / "run" if option == "--out" else tmp_path / "run"
    error = camkd(*TRAIN, "--data", str(easy_folder), "--out", str(out)).error
    folder = out if option == "--out" else full / "teacher"
    assert f"{folder} must be writable, got an error for a file of 4,096 bytes: Disk quota exceeded." in error
    assert list(full.iterdir()) == []
    assert not out.exists()


def test_accept_needs_resume(moved: Project) -> None:
    assert "--accept must be given with --resume" in moved.train("--accept", "epochs").error
