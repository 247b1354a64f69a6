"""The command ``evaluate``: metrics, chance levels, disagreements, thresholds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import camkd.evaluate
from camkd.cli.commands.evaluate import metric_tables
from camkd.data.dataset import Dataset, no_progress
from camkd.data.sources import open_data
from camkd.evaluate import Evaluation
from camkd.experiments import finished_runs
from camkd.runs.folder import Run
from camkd.runs.per_image import read_per_image
from support.cli import camkd as run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def student(finished: Any) -> str:
    return str(finished.folder / "student")


@pytest.fixture(scope="module")
def stored_metrics(student: str) -> dict[str, Any]:
    """The metrics that training wrote."""
    return Run(Path(student)).read_metrics()


@pytest.fixture(scope="module")
def evaluation(student: str) -> Evaluation:
    """The evaluation of the student on its own test images."""
    return finished_runs.reevaluate(student, None, None, "cpu", no_progress, lambda text: None)


@pytest.fixture
def evaluated(evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands in this test use `evaluation` instead of computing it again."""
    monkeypatch.setattr(finished_runs, "reevaluate", lambda *arguments: evaluation)


def test_recall_of_each_class_in_a_table(student: str) -> None:
    output = run("evaluate", student)
    per_class = run("evaluate", student, "--json").json["per_class"]
    lines = [line.replace("│", " ").split() for line in output.out.split("recall by class")[1].splitlines()]
    for name, entry in per_class.items():
        numbers = [f"{entry[key]:.3f}" for key in ("recall", "low", "high")]
        assert [name, str(entry["images"]), *numbers] in lines


def test_only_the_lowest_recalls_of_many_classes_are_shown() -> None:
    per_class = {str(k): {"recall": k / 30, "low": 0.0, "high": 1.0, "images": 30} for k in reversed(range(30))}
    *_, (title, _, rows) = metric_tables("a", {"accuracy": 0.5, "per_class": per_class})
    assert title.endswith("the 20 lowest of 30 classes")
    assert [row[0] for row in rows] == [str(k) for k in range(20)]


@pytest.mark.parametrize(("bound", "status"), [(0.0, 0), (1.01, 1)])
def test_threshold_on_the_recall_of_a_class(student: str, bound: float, status: int) -> None:
    output = run("evaluate", student, "--fail-under", f"recall:sky={bound}")
    assert output.status == status
    assert ("recall:sky is" in output.err) == bool(status)


def test_json_has_the_metrics_of_training(student: str, stored_metrics: dict[str, Any]) -> None:
    metrics = run("evaluate", student, "--json", "--device", "cpu").json
    assert metrics["confusion"] == stored_metrics["confusion"]
    assert metrics["cam_cosine"] == pytest.approx(stored_metrics["cam_cosine"], rel=1e-3)


@pytest.mark.usefixtures("evaluated")
def test_tables_have_metrics_beside_their_chance_levels(student: str, stored_metrics: dict[str, Any]) -> None:
    output = run("evaluate", student)
    assert output.status == 0
    assert "teacher_agreement" in output.out
    assert "{" not in output.out
    for name, suffixes in {
        "cam_spearman": ("", "_center", "_mean_map"),
        "cam_disagreement": ("", "_center", "_mean_map", "_shuffled"),
        "insertion": ("", "_shuffled"),
    }.items():
        (line,) = [line for line in output.out.splitlines() if name in line]
        numbers = [float(cell) for cell in line.split("│")[2:] if cell.strip()]
        assert numbers == pytest.approx([stored_metrics[name + suffix] for suffix in suffixes], abs=2e-3)
    assert "_shuffled" not in output.out
    assert "confidence_increase" in output.out, "names are not folded at 80 columns"
    lines = output.out.splitlines()
    (index,) = [index for index, line in enumerate(lines) if "both right" in line]
    values, levels = (line.split("│")[2:4] for line in lines[index : index + 2])
    assert "by chance" in lines[index + 1]
    both_right = stored_metrics["by_outcome"]["both_right"]
    chance = max(both_right["cam_cosine_center"], both_right["cam_cosine_mean_map"])
    assert int(values[0]) == both_right["images"]
    assert not levels[0].strip()
    assert (float(values[1]), float(levels[1])) == pytest.approx((both_right["cam_cosine"], chance), abs=2e-3)


def test_message_names_other_images(student: str, easy_folder: Path) -> None:
    output = run("evaluate", student, "--data", str(easy_folder / "val"), "--json")
    assert f"evaluated on all 24 images of {str(easy_folder / 'val')!r}\n" in output.err
    assert output.json["test_images"] == 24


def test_folder_of_three_runs_stands_for_its_student(finished: Any, stored_metrics: dict[str, Any]) -> None:
    assert run("evaluate", str(finished.folder), "--json").json["params"] == stored_metrics["params"]


# --- disagreements


@pytest.mark.usefixtures("evaluated")
def test_disagreements(student: str) -> None:
    disagreements = run("evaluate", student, "--list-disagreements", "2", "--json").json["disagreements"]
    per_image = read_per_image(Run(Path(student)).per_image_file)
    same_prediction = per_image["predicted"] == per_image["teacher_predicted"]
    disagree = same_prediction & (per_image["cam_cosine"] <= disagreements["chance_level"])
    assert disagreements["same_prediction"] == same_prediction.sum()
    assert disagreements["count"] == disagree.sum()
    assert len(disagreements["images"]) == min(2, disagreements["count"])
    for image in disagreements["images"]:
        row = image["index"]
        assert image["name"] == per_image["name"][row]
        assert image["name"].startswith(f"test/{image['label']}/")
        assert image["cam_cosine"] == pytest.approx(per_image["cam_cosine"][row], abs=1e-3)


@pytest.mark.usefixtures("evaluated")
def test_disagreements_as_a_table(student: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camkd.evaluate, "chance_level", lambda metrics: 1.0)
    output = run("evaluate", student, "--list-disagreements", "2", "--json")
    disagreements = output.json["disagreements"]
    table = run("evaluate", student, "--list-disagreements", "2").out
    text = " ".join(table.split())
    assert f"{disagreements['count']:,} of {disagreements['same_prediction']:,} images" in text
    for suffix, label in (("center", "center"), ("mean_map", "mean map"), ("shuffled", "other image")):
        assert disagreements["chance_shares"][suffix] == output.json[f"cam_disagreement_{suffix}"]
        assert f"{label} {disagreements['chance_shares'][suffix]:.1%}" in text
    for image in disagreements["images"]:
        (line,) = [line for line in table.splitlines() if image["name"] in line]
        assert [image["label"], image["predicted"]] == line.replace("│", " ").split()[1:3]


def test_class_names_of_disagreements_with_a_class_without_test_images(
    student: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a small ``--limit`` a class may have no test images; ``per_class`` then omits the class."""

    def open_without_first_class(*arguments: Any, **options: Any) -> Dataset:
        data = open_data(*arguments, **options)
        test = data.test.take(np.flatnonzero(data.test.labels))
        return replace(data, test=test, source_fingerprint="0" * 64)  # identifies the samples

    monkeypatch.setattr(finished_runs, "open_data", open_without_first_class)
    monkeypatch.setattr(camkd.evaluate, "chance_level", lambda metrics: 1.0)  # no map is more similar
    metrics = run("evaluate", student, "--list-disagreements", "24", "--json").json
    assert list(metrics["per_class"]) == ["leaf", "sky"]
    disagreements = metrics["disagreements"]
    images = disagreements["images"]
    assert disagreements["count"] == disagreements["same_prediction"] == len(images) > 0
    assert [image["label"] for image in images] == [Path(image["name"]).parent.name for image in images]
    num_correct = sum(image["predicted"] == image["label"] for image in images)
    assert num_correct == metrics["by_outcome"]["both_right"]["images"]


def test_disagreements_without_a_teacher_are_refused(finished: Any) -> None:
    teacher = str(finished.folder / "teacher")
    assert f"got {teacher!r}" in run("evaluate", teacher, "--list-disagreements", "3").error


# --- thresholds


@pytest.mark.usefixtures("evaluated")
def test_thresholds_that_hold(student: str) -> None:
    thresholds = ["--fail-under", "accuracy=0,cam_cosine=-1", "--fail-over", "nll=1000"]
    assert run("evaluate", student, *thresholds).status == 0


@pytest.mark.usefixtures("evaluated")
def test_violated_thresholds_exit_with_status_1(student: str) -> None:
    output = run("evaluate", student, "--fail-under", "accuracy=1.5", "--fail-over", "nll=-1", "--json")
    assert output.status == 1
    metrics = output._replace(status=0).json
    violations = f"accuracy is {metrics['accuracy']:.6g}, below 1.5; nll is {metrics['nll']:.6g}, above -1."
    assert output.err == f"camkd: {violations}\n"


def test_threshold_on_a_missing_metric_is_refused(finished: Any) -> None:
    output = run("evaluate", str(finished.folder / "teacher"), "--fail-under", "cam_cosine=0.8")
    assert "got 'cam_cosine'" in output.error
