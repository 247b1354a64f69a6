"""The report: a page for every run folder however incomplete, nothing fetched, everything escaped."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from camkd.report.metric_table import METRICS
from camkd.report.report import write_report
from camkd.types import InputError
from run_folders import (
    confusion_counts,
    gallery_content,
    metrics_content,
    write_gallery_json,
    write_run,
    write_train_folder,
)


class Page(HTMLParser):
    """Parsed HTML: tags with attributes, and the text with single spaces."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(self.html)
        self.text = " ".join(self.text.replace("\N{NO-BREAK SPACE}", " ").split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data + " "

    @property
    def policy(self) -> str:
        """The content security policy."""
        return next(a["content"] for _, a in self.tags if a.get("http-equiv") == "Content-Security-Policy") or ""


def report(*runs: Path, out: Path) -> Page:
    """Write the report of ``runs`` into a new folder of ``out`` and parse it."""
    path = out / "new" / "report.html"
    assert write_report(runs, path) == path
    return Page(path)


def update_metrics(folder: Path, **metrics: Any) -> None:
    content = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    (folder / "metrics.json").write_text(json.dumps(content | metrics), encoding="utf-8")


# --- content


def test_page_shows_verdict_numbers_curves_and_heatmaps(tmp_path: Path) -> None:
    page = report(write_train_folder(tmp_path / "run"), out=tmp_path)
    for text in (
        "▲ helped in one run",
        "Distillation helped in one run: 89.0 % test accuracy versus 85.0 %",
        "Of 3,000 test images, only the student predicts 120 correctly and only the control 0",
        "The student is 6.0 points below its teacher",
        "87× fewer parameters",
        "32× fewer MACs",
        "Yes, closer than the control, in one run.",
        "CAM cosine 0.830, chance 0.520, control 0.620.",
        "center 0.52",
        "mean map 0.41",
        "pets",
        "3,000 test images",
        "cat predicted as dog : 110",
        "+4.0",
        "resnet50",
        "cpu.cores",
        "Epoch 2",
    ):
        assert text in page.text, text
    assert page.text.index("Epoch 2") < page.text.index("Epoch 10")
    assert page.text.index("Distillation helped") < page.text.index("Results")
    assert page.html.count("<svg") == 2  # accuracy and loss
    assert sum(tag == "img" for tag, _ in page.tags) == 3


def test_recall_of_each_class_has_its_interval(tmp_path: Path) -> None:
    page = report(write_train_folder(tmp_path / "run"), out=tmp_path)
    student = json.loads((tmp_path / "run" / "student" / "metrics.json").read_text(encoding="utf-8"))
    correct, total = student["confusion"][0][0], sum(student["confusion"][0])
    interval = stats.binomtest(correct, total).proportion_ci(0.95, method="wilson")
    low, high = 100 * interval.low, 100 * interval.high
    assert f"{100 * correct / total:.1f} % {low:.0f}–{high:.0f} %" in page.text


def test_map_similarity_by_correct_model(tmp_path: Path) -> None:
    root = write_train_folder(tmp_path / "run")
    both = {"images": 1234, "cam_cosine": 0.91, "cam_cosine_mean_map": 0.4, "cam_iou": 0.625, "cam_iou_center": 0.5}
    groups = {"both_right": both, "only_teacher": {"images": 0}, "both_wrong": "?"}
    update_metrics(root / "student", by_outcome=groups)
    text = report(root, out=tmp_path).text
    row = "images CAM cosine ? CAM Pearson ? CAM overlap ? both 1,234 0.910 mean map 0.40 – 0.625 center 0.50"
    assert f"{row} only the teacher 0 – – –" in text
    assert "neither" not in text


def test_share_of_disagreeing_maps_is_shown_with_its_chance_levels(tmp_path: Path) -> None:
    root = write_train_folder(tmp_path / "run")
    levels = {"cam_disagreement_center": 0.5, "cam_disagreement_mean_map": 0.375, "cam_disagreement_shuffled": 0.75}
    update_metrics(root / "student", cam_disagreement=0.25, **levels)
    assert "25.0 % center 50 % mean map 38 % other image 75 %" in report(root, out=tmp_path).text


def test_invalid_outcome_groups_are_left_out(tmp_path: Path) -> None:
    root = write_train_folder(tmp_path / "run")
    update_metrics(root / "student", by_outcome=["nonsense"])
    assert "correct model" not in report(root, out=tmp_path).text


def test_localization_is_shown_with_teacher_and_chance(tmp_path: Path) -> None:
    root = write_train_folder(tmp_path / "run")
    update_metrics(root / "teacher", cam_inside=0.5, cam_inside_chance=0.125)
    update_metrics(root / "student", cam_inside=0.25, cam_inside_chance=0.125, cam_inside_center=0.2)
    text = report(root, out=tmp_path).text
    assert "50.0 % anywhere 12 %" in text, "result table"
    scale = "CAM energy on the object ? 0 all evidence student 25.0 % teacher 50.0 %"
    assert f"{scale} chance: a Gaussian in the center of the image 20.0 % chance: a uniform map 12.5 %" in text


def test_separate_folders_give_the_same_page_as_their_parent(tmp_path: Path) -> None:
    root = write_train_folder(tmp_path / "run")
    parent = report(root, out=tmp_path)
    separate = report(root / "teacher", root / "control", root / "student", out=tmp_path)
    assert separate.html == parent.html


def test_runs_with_the_same_name_get_their_parent_s_name(tmp_path: Path) -> None:
    first = write_run(tmp_path / "first" / "student", metrics_content(0.9))
    second = write_run(tmp_path / "second" / "student", metrics_content(0.9))
    page = report(first, second, out=tmp_path)
    assert "first/student" in page.text
    assert "second/student" in page.text


def test_page_with_many_classes(tmp_path: Path) -> None:
    metrics = {"accuracy": 0.9, "confusion": confusion_counts(0.9, 100, 100)}
    page = report(write_run(tmp_path / "student", metrics, [f"class {i}" for i in range(100)]), out=tmp_path)
    assert "class 99" in page.text


# --- security and structure


def test_page_fetches_nothing_and_its_policy_forbids_fetching(tmp_path: Path) -> None:
    page = report(write_train_folder(tmp_path / "run"), out=tmp_path)
    assert page.policy.startswith("default-src 'none'")
    assert "script" not in page.policy
    assert {"script", "link", "iframe", "object", "embed", "base", "form"}.isdisjoint(tag for tag, _ in page.tags)
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "action", "poster"):
            assert re.match(r"#|data:image/png;base64,", attributes.get(name) or "#"), attributes
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"@import|url\((?!#)", page.html)
    urls = set(re.findall(r"https?://[^\s\"'<]+", page.html))
    assert urls <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names of XML namespaces


def test_policy_allows_only_the_script_of_the_page(tmp_path: Path) -> None:
    root = write_train_folder(tmp_path / "run")
    names = ("</script><script>alert(1)</script>", "<!--")
    write_gallery_json(root / "student", gallery_content("teacher", "student", names=names))
    page = report(root, out=tmp_path)
    scripts = re.findall(r"<script>(.*?)</script>", page.html, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert page.policy.startswith(f"default-src 'none'; script-src 'sha256-{digest}';")
    assert "unsafe-eval" not in page.policy
    assert [a.get("type") for tag, a in page.tags if tag == "script"] == ["application/json", None]
    assert not any(name.startswith("on") for _, a in page.tags for name in a)
    assert "<!--" not in page.html


def test_ids_are_unique_and_links_have_targets(tmp_path: Path) -> None:
    page = report(write_train_folder(tmp_path / "run"), out=tmp_path)
    ids = [a["id"] for tag, a in page.tags if "id" in a and tag != "path"]
    assert len(ids) == len(set(ids))
    links = {(a["href"] or "")[1:] for tag, a in page.tags if tag == "a"}
    assert links
    assert links <= set(ids)


def test_user_text_is_escaped_everywhere(tmp_path: Path) -> None:
    classes = ["<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "{{ 7 * 7 }} $x_1$"]
    root = write_train_folder(tmp_path / "run", classes=classes)
    info = {"classes": classes, "role": "student", "method": "<svg onload=alert(3)>", "data": "</title><script>"}
    (root / "student" / "model.json").write_text(json.dumps(info), encoding="utf-8")
    (root / "student" / "environment.json").write_text('{"<iframe>": "</td><script>"}', encoding="utf-8")
    folder = tmp_path / "<b>&amp;"
    root.rename(folder)
    page = report(folder, out=tmp_path)
    assert {"script", "iframe", "b>"}.isdisjoint(tag for tag, _ in page.tags)
    assert not any("onerror" in a or "onload" in a for _, a in page.tags)
    assert "<script>alert(1)</script>" in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert "lr: 0.1 # <b>bold</b>" in page.text


# --- incomplete and invalid folders


@pytest.mark.parametrize("name", ["metrics.json", "metrics.jsonl", "model.json", "config.yaml"])
def test_page_of_a_nearly_empty_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / name).write_text("{}", encoding="utf-8")
    page = report(folder, out=tmp_path)
    assert "bare has no test accuracy yet" in page.text
    assert page.text.count("–") > len([spec for spec in METRICS if not spec.optional])
    assert "no heatmaps in this run" in page.text


@pytest.mark.parametrize(
    "name", ["metrics.json", "metrics.jsonl", "model.json", "config.yaml", "environment.json", "per_image.npz"]
)
def test_page_without_one_of_the_files(tmp_path: Path, name: str) -> None:
    root = write_train_folder(tmp_path / "run")
    for role in ("teacher", "control", "student"):
        (root / role / name).unlink(missing_ok=name == "per_image.npz")
    page = report(root, out=tmp_path)
    assert ("Distillation helped" in page.text) == (name not in ("metrics.json", "per_image.npz"))


@pytest.mark.parametrize(
    "metrics",
    [
        {"accuracy": None, "confusion": None, "params": "many", "seconds": [], "cam_cosine": {}},
        {"accuracy": 0.5, "confusion": [[1, 2], [3]]},
        {"accuracy": 0.5, "confusion": [["a"]]},
        {"accuracy": 0.5, "confusion": [[-3, 1, 1], [0.25, 0.5, 0.1], [1e300, 0, 0]]},
        {"accuracy": 0.5, "confusion": [[0] * 5] * 5},
        {"accuracy": 0.0, "params": 0, "macs": 0, "seconds": 0.0, "cam_cosine": -0.2},
    ],
)
def test_page_with_invalid_or_extreme_numbers(tmp_path: Path, metrics: dict[str, Any]) -> None:
    root = write_train_folder(tmp_path / "run")
    (root / "student" / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    (root / "student" / "model.json").write_text('{"classes": "three", "role": 7, "size": "big"}', encoding="utf-8")
    assert "Results" in report(root, out=tmp_path).text


def test_folder_without_a_run_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"metrics\.json.*got .*nowhere"):
        write_report([tmp_path / "nowhere"], tmp_path / "report.html")
    with pytest.raises(InputError, match="got none"):
        write_report([], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_invalid_json_is_an_input_error_with_the_file_name(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "student", metrics_content(0.9))
    (folder / "metrics.json").write_text('{"accuracy": 0.', encoding="utf-8")
    with pytest.raises(InputError, match=r"student/metrics\.json must be valid JSON"):
        write_report([folder], tmp_path / "report.html")


def test_corrupt_per_image_file_is_an_input_error_with_the_file_name(tmp_path: Path) -> None:
    root = write_train_folder(tmp_path / "run")
    (root / "student" / "per_image.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"student/per_image\.npz must be a readable"):
        write_report([root], tmp_path / "report.html")


@pytest.mark.slow
def test_report_imports_no_torch() -> None:
    code = "import sys, camkd.report.report; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
