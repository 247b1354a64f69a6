"""The report: honest verdicts, a page for every run folder however bare, nothing fetched, all escaped."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from camkd.report import verdict as findings
from camkd.report.report import write_report
from camkd.types import InputError
from run_folders import confusion, gallery, hang, measured, write_run, write_tree


class Page(HTMLParser):
    """What a browser would see: tags, attributes, text."""

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


def report(*runs: Path, out: Path) -> Page:
    path = out / "deep" / "report.html"
    assert write_report(runs, path) == path
    return Page(path)


def test_a_training_folder_becomes_a_page_with_everything(tmp_path: Path) -> None:
    page = report(write_tree(tmp_path / "run"), out=tmp_path)
    for words in (
        "Distillation helped: 89.0 % against 85.0 %",
        "6.0 points below its teacher",
        "87× fewer parameters",
        "32× fewer MACs",
        "Yes, closer than the control.",
        "other 0.41",
        "pets",
        "3,000 test pictures",
        "cat taken for dog : 110",
        "+4.0",
        "resnet50",
        "cpu.cores",
        "Epoch 2",
    ):
        assert words in page.text, words
    assert page.text.index("Epoch 2") < page.text.index("Epoch 10")
    assert page.text.index("Distillation helped") < page.text.index("Results")
    assert page.html.count("<svg") == 2  # accuracy, loss
    assert sum(tag == "img" for tag, _ in page.tags) == 3


def amend(folder: Path, **metrics: Any) -> None:
    told = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    (folder / "metrics.json").write_text(json.dumps(told | metrics), encoding="utf-8")


def test_likeness_is_told_apart_by_who_is_right(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "run")
    both = {"pictures": 1234, "cam_cosine": 0.91, "cam_cosine_shuffled": 0.4, "cam_iou": 0.625, "cam_iou_centre": 0.5}
    amend(root / "student", by_outcome={"both_right": both, "only_teacher": {"pictures": 0}, "both_wrong": "?"})
    text = report(root, out=tmp_path).text
    assert "both are right 1,234 0.910 other 0.40 – 0.625 centre 0.50 only the teacher is right 0 – – –" in text
    assert "both are wrong" not in text
    amend(root / "student", by_outcome=["nonsense"])
    assert "both are right" not in report(root, out=tmp_path).text


def test_maps_on_objects_stand_beside_the_teacher_s_and_chance(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "run")
    amend(root / "teacher", cam_inside=0.5, cam_inside_chance=0.125)
    amend(root / "student", cam_inside=0.25, cam_inside_chance=0.125, cam_inside_centre=0.2)
    text = report(root, out=tmp_path).text
    assert "50.0 % chance 12 %" in text  # the table
    line = "Map on the object ? 0 all of it this student 25.0 % the teacher 50.0 % chance: anywhere 12.5 %"
    assert f"{line} chance: a blob in the middle 20.0 %" in text
    assert "1, the teacher's map" in text  # of likeness


def test_the_same_folders_one_by_one_give_the_same_page(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "run")
    whole = report(root, out=tmp_path)
    apart = report(root / "teacher", root / "control", root / "student", out=tmp_path)
    assert apart.html == whole.html


def test_the_page_fetches_nothing_and_forbids_fetching(tmp_path: Path) -> None:
    page = report(write_tree(tmp_path / "run"), out=tmp_path)
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "script" not in policy
    assert {"script", "link", "iframe", "object", "embed", "base", "form"}.isdisjoint(tag for tag, _ in page.tags)
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "action", "poster"):
            assert re.match(r"#|data:image/png;base64,", attributes.get(name) or "#"), attributes
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"@import|url\((?!#)", page.html)
    urls = set(re.findall(r"https?://[^\s\"'<]+", page.html))
    assert urls <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names of namespaces


def test_the_policy_allows_the_page_s_own_script_and_no_other(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "run")
    hang(root / "student", gallery("teacher", "student", names=("</script><script>alert(1)</script>", "<!--")))
    page = report(root, out=tmp_path)
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy") or ""
    scripts = re.findall(r"<script>(.*?)</script>", page.html, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; script-src 'sha256-{digest}';")
    assert "unsafe-eval" not in policy
    assert [a.get("type") for tag, a in page.tags if tag == "script"] == ["application/json", None]
    assert not any(name.startswith("on") for _, a in page.tags for name in a)
    assert "<!--" not in page.html


def test_ids_are_unique_and_links_lead_somewhere(tmp_path: Path) -> None:
    page = report(write_tree(tmp_path / "run"), out=tmp_path)
    ids = [a["id"] for tag, a in page.tags if "id" in a and tag != "path"]
    assert len(ids) == len(set(ids))
    links = {(a["href"] or "")[1:] for tag, a in page.tags if tag == "a"}
    assert links
    assert links <= set(ids)


def test_the_users_words_are_escaped_everywhere(tmp_path: Path) -> None:
    evil = ["<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "{{ 7 * 7 }} $x_1$"]
    root = write_tree(tmp_path / "run", classes=evil)
    meta = {"classes": evil, "role": "student", "method": "<svg onload=alert(3)>", "data": "</title><script>"}
    (root / "student" / "model.json").write_text(json.dumps(meta), encoding="utf-8")
    (root / "student" / "environment.json").write_text('{"<iframe>": "</td><script>"}', encoding="utf-8")
    folder = tmp_path / "<b>&amp;"
    root.rename(folder)
    page = report(folder, out=tmp_path)
    assert {"script", "iframe", "b>"}.isdisjoint(tag for tag, _ in page.tags)
    assert not any("onerror" in a or "onload" in a for _, a in page.tags)
    assert "<script>alert(1)</script>" in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert "lr: 0.1 # <b>bold</b>" in page.text


@pytest.mark.parametrize("mark", ["metrics.json", "metrics.jsonl", "model.json", "config.yaml"])
def test_an_almost_empty_folder_still_makes_a_page(tmp_path: Path, mark: str) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / mark).write_text("{}", encoding="utf-8")
    page = report(folder, out=tmp_path)
    assert "bare has no test accuracy yet" in page.text
    assert page.text.count("–") > len(findings.METRICS)
    assert "no heatmaps in this run" in page.text


@pytest.mark.parametrize("lost", ["metrics.json", "metrics.jsonl", "model.json", "config.yaml", "environment.json"])
def test_any_file_may_be_missing(tmp_path: Path, lost: str) -> None:
    root = write_tree(tmp_path / "run")
    for role in ("teacher", "control", "student"):
        (root / role / lost).unlink()
    page = report(root, out=tmp_path)
    assert ("Distillation helped" in page.text) == (lost != "metrics.json")


@pytest.mark.parametrize(
    "metrics",
    [
        {"accuracy": None, "confusion": None, "params": "many", "seconds": [], "cam_cosine": {}},
        {"accuracy": 0.5, "confusion": [[1, 2], [3]]},
        {"accuracy": 0.5, "confusion": [["a"]]},
        {"accuracy": 0.5, "confusion": [[0] * 5] * 5},
        {"accuracy": 0.0, "params": 0, "macs": 0, "seconds": 0.0, "cam_cosine": -0.2},
    ],
)
def test_odd_numbers_do_not_stop_the_page(tmp_path: Path, metrics: dict[str, Any]) -> None:
    root = write_tree(tmp_path / "run")
    (root / "student" / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    (root / "student" / "model.json").write_text('{"classes": "three", "role": 7, "size": "big"}', encoding="utf-8")
    assert "Results" in report(root, out=tmp_path).text


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    one, other = (write_run(tmp_path / name / "student", measured(0.9)) for name in ("first", "second"))
    page = report(one, other, out=tmp_path)
    assert "first/student" in page.text
    assert "second/student" in page.text


def test_many_classes_make_a_page(tmp_path: Path) -> None:
    k = 100
    table = {"accuracy": 0.9, "confusion": confusion(0.9, 100, k)}
    page = report(write_run(tmp_path / "student", table, [f"class {i}" for i in range(k)]), out=tmp_path)
    assert "class 99" in page.text


def test_a_folder_that_is_no_run_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere is no run folder"):
        write_report([tmp_path / "nowhere"], tmp_path / "report.html")
    with pytest.raises(InputError, match="at least one run folder"):
        write_report([], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "student", measured(0.9))
    (folder / "metrics.json").write_text('{"accuracy": 0.', encoding="utf-8")
    with pytest.raises(InputError, match=r"student/metrics\.json is not JSON"):
        write_report([folder], tmp_path / "report.html")
