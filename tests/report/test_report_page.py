"""The report in a real Chromium: it opens offline without a complaint, sorts, filters, slides, answers to keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch

from browser import DESK, PHONE, Watched
from camkd.report.report import write_report
from run_folders import (
    PICTURES,
    confidence_of,
    gallery,
    hang,
    labels_of,
    likeness_of,
    maps_of,
    measured,
    write_run,
    write_tree,
)

EVIL = [
    "<script>document.title='caught'</script>",
    "\"'><img src=x onerror=document.title='caught'>",
    "\u202ereversed \u200f\u05d0\u05d1\u05d2 🦉 </script> {{ 7 * 7 }} &amp; " + "long" * 50,
]


@pytest.fixture
def page(browser: Any, report: Path) -> Iterator[Any]:
    with Watched(browser, report) as page:
        yield page


def shown(page: Any) -> list[int]:
    """The numbers of the pictures on the page, in their order."""
    colours = page.eval_on_selector_all(
        "#shots .tile:first-child img",
        """images => Promise.all(images.map(async image => {
            await image.decode();
            const canvas = document.createElement("canvas");
            canvas.getContext("2d").drawImage(image, 0, 0);
            return canvas.getContext("2d").getImageData(0, 0, 1, 1).data[0];
        }))""",
    )
    return [colour // 5 for colour in colours]


def every_picture(page: Any) -> list[int]:
    while page.locator("#more").is_visible():
        page.locator("#more").click()
    return shown(page)


NUMBERS = list(range(PICTURES))


def test_it_opens_with_the_least_alike_first(page: Any) -> None:
    assert "Distillation helped" in page.locator("h1").inner_text()
    assert page.locator("#count").inner_text() == "40 pictures of 40 in the gallery, 24 of them shown."
    assert shown(page) == sorted(NUMBERS, key=likeness_of)[:24]
    titles = page.locator("#shots li").first.locator("figcaption b").all_inner_texts()
    assert [title.strip("\u2068\u2069") for title in titles] == [
        "picture",
        "teacher",
        "student",
        "difference",
        "control",
    ]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("apart", sorted(NUMBERS, key=likeness_of)),
        ("alike", sorted(NUMBERS, key=likeness_of, reverse=True)),
        ("sure", sorted(NUMBERS, key=confidence_of, reverse=True)),
        ("unsure", sorted(NUMBERS, key=confidence_of)),
        ("row", NUMBERS),
    ],
)
def test_it_sorts(page: Any, order: str, expected: list[int]) -> None:
    page.select_option("#order", order)
    assert every_picture(page) == expected


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        ({"truth": "1"}, lambda t: t["truth"] == 1),
        ({"label": "2"}, lambda t: t["student"] == 2),
        ({"who": "both"}, lambda t: t["teacher"] == t["student"] == t["truth"]),
        ({"who": "teacher"}, lambda t: t["teacher"] == t["truth"] != t["student"]),
        ({"who": "student"}, lambda t: t["student"] == t["truth"] != t["teacher"]),
        ({"who": "neither"}, lambda t: t["truth"] not in (t["student"], t["teacher"])),
        ({"truth": "0", "who": "teacher"}, lambda t: t["truth"] == 0 == t["teacher"] != t["student"]),
        ({"compared": "1", "label": "2"}, lambda t: t["control"] == 2),
    ],
)
def test_it_filters(page: Any, filters: dict[str, str], wanted: Any) -> None:
    expected = [number for number in NUMBERS if wanted(labels_of(number))]
    assert expected, "a filter that finds nothing proves nothing"
    page.select_option("#order", "row")
    for name, value in filters.items():
        page.select_option(f"#{name}", value)
    assert every_picture(page) == expected
    assert page.locator("#count").inner_text().startswith(f"{len(expected)} picture")
    page.click("#reset")
    assert len(every_picture(page)) == PICTURES


def test_who_was_right_names_the_run_in_question(page: Any) -> None:
    words = page.locator("#who option").all_inner_texts
    assert [text.replace("\u2068", "").replace("\u2069", "") for text in words()] == [
        "all",
        "both",
        "only the teacher",
        "only student",
        "neither",
    ]
    page.select_option("#compared", "1")
    assert "only \u2068control\u2069" in words()


def test_nothing_found_is_said(page: Any) -> None:
    page.select_option("#truth", "0")
    page.select_option("#label", "2")
    assert page.locator("#count").inner_text() == "None of the 40 pictures in the gallery is like that."


def test_the_slider_veils_the_picture_by_mouse_and_by_key(page: Any) -> None:
    opacity = "getComputedStyle(document.querySelector('.veiled canvas')).opacity"
    page.fill("#veil", "25")
    assert page.evaluate(opacity) == "0.25"
    assert page.locator("#veil-share").inner_text() == "25\N{NO-BREAK SPACE}%"
    page.focus("#veil")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(opacity) == "0.26"


def test_a_cell_of_the_confusion_matrix_opens_its_pictures(page: Any) -> None:
    page.get_by_role("button", name="cat, answered dog: 110").first.press("Enter")
    expected = [n for n in NUMBERS if (labels_of(n)["truth"], labels_of(n)["student"]) == (0, 1)]
    assert sorted(shown(page)) == expected
    said = page.locator("#count").inner_text().replace("\u2068", "").replace("\u2069", "")
    assert said == f"cat taken for dog: {len(expected)} of 110 pictures are in the gallery."
    assert page.evaluate("document.activeElement.closest('#shots') !== null")


def test_arrow_keys_walk_through_the_confusion_matrix(page: Any) -> None:
    focused = "document.activeElement.getAttribute('aria-label')"
    page.locator("#confusion-table button").first.focus()
    walk = {
        "ArrowRight": "cat, answered dog: 110",
        "ArrowDown": "dog, answered dog: 890",
        "ArrowUp": "cat, answered dog: 110",
    }
    for key, name in walk.items():
        page.keyboard.press(key)
        assert page.evaluate(focused) == name
    page.keyboard.press("End")
    assert page.evaluate(focused) == "owl, answered owl: 890"
    assert page.locator("#confusion-table button[tabindex='0']").count() == 1


def test_a_picture_opens_turns_and_closes_by_key_alone(page: Any) -> None:
    page.locator("#shots button").first.focus()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    number = sorted(NUMBERS, key=likeness_of)[1]
    assert page.locator("#detail").is_visible()
    assert page.locator("#detail-name").inner_text().strip("\u2068\u2069") == f"test/{number:02d}.png"
    page.keyboard.press("ArrowRight")
    assert ", 3 of 40" in page.locator("#detail-title").inner_text()
    page.keyboard.press("Escape")
    assert not page.locator("#detail").is_visible()
    assert page.evaluate("[...document.querySelectorAll('#shots button')].indexOf(document.activeElement)") == 2


def test_any_class_shows_its_map_in_the_colours_of_viridis(page: Any) -> None:
    """Against torch's enlarging and matplotlib's colours, from the maps that went into the gallery."""
    page.locator("#shots li").first.click()
    number = min(NUMBERS, key=likeness_of)
    pressed = page.locator("#detail-classes button[aria-pressed=true]")
    assert pressed.inner_text().strip("\u2068\u2069") == ["cat", "dog", "owl"][labels_of(number)["teacher"]]
    for place, name in enumerate(["cat", "dog", "owl"]):
        page.locator("#detail-classes").get_by_role("button", name=name).click()
        assert pressed.inner_text().strip("\u2068\u2069") == name
        for tile, role in ((2, "teacher"), (3, "student")):
            painted = pixels_of(page, f"#detail-tiles .tile:nth-child({tile}) canvas")
            shares = fine(maps_of(role, number)[place])
            colours = 255 * matplotlib.colormaps["viridis"](shares)[..., :3]
            assert np.abs(painted - colours).max() < 8, (name, role)  # 8 bits, of the larger of both signs
        taught, own = (fine(maps_of(role, number)[place]) for role in ("teacher", "student"))
        difference = 255 * matplotlib.colormaps["coolwarm"]((own - taught + 1) / 2)[..., :3]
        assert np.abs(pixels_of(page, "#detail-tiles .tile:nth-child(4) canvas") - difference).max() < 8


def fine(cam: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    evidence = torch.tensor(cam).clamp_min(0)[None, None]
    return torch.nn.functional.interpolate(evidence / evidence.max(), (48, 48), mode="bilinear")[0, 0].numpy()


def pixels_of(page: Any, selector: str) -> np.ndarray[Any, Any]:
    read = "canvas => [...canvas.getContext('2d').getImageData(0, 0, 48, 48).data]"
    return np.array(page.locator(selector).evaluate(read), float).reshape(48, 48, 4)[..., :3]


def test_the_gallery_can_show_other_classes_maps(page: Any) -> None:
    canvas = "#shots li:first-child .tile:nth-child(3) canvas"
    number = min(NUMBERS, key=likeness_of)
    for choice, place in (
        ("answer", labels_of(number)["teacher"]),
        ("truth", labels_of(number)["truth"]),
        ("own", labels_of(number)["student"]),
        ("2", 2),
    ):
        page.select_option("#map", choice)
        colours = 255 * matplotlib.colormaps["viridis"](fine(maps_of("student", number)[place]))[..., :3]
        assert np.abs(pixels_of(page, canvas) - colours).max() < 8, choice


def test_names_of_every_kind_are_words_and_nothing_else(browser: Any, tmp_path: Path) -> None:
    root = write_tree(tmp_path / "run", classes=EVIL)
    hang(root / "student", gallery("teacher", "student", names=tuple(EVIL)))
    for viewport in (DESK, PHONE):
        with Watched(browser, write_report([root], root / "report.html"), viewport=viewport) as page:
            page.locator("#shots li").first.click()
            assert page.locator("#detail-name").inner_text().strip("\u2068\u2069") in [
                " ".join(e.split()) for e in EVIL
            ]
            page.keyboard.press("Escape")
            page.locator("#confusion-table button").nth(1).click()
            assert page.title() != "caught"
            assert page.locator("img[src=x]").count() == 0
            assert page.locator("script").count() == 2
            assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
            options = page.locator("#truth option").all_inner_texts()
            assert EVIL[0] in options[1]


def test_without_script_there_are_verdict_tables_curves_and_a_picture(browser: Any, report: Path) -> None:
    with Watched(browser, report, java_script_enabled=False) as page:
        assert page.locator("h1").is_visible()
        assert page.locator("#confusion-table td").first.inner_text() == "890"
        assert page.locator("figure svg").first.is_visible()
        assert page.locator(".sheet img").first.is_visible()
        assert not page.locator("#pictures").is_visible()
        assert page.locator("noscript p").is_visible()


def test_many_classes_have_a_drawing_to_walk_through(browser: Any, tmp_path: Path) -> None:
    classes = [f"class {i}" for i in range(100)]
    counts = [[9 if r == c else int(c == r + 3) for c in range(100)] for r in range(100)]
    table = measured(0.9) | {"confusion": counts}
    folder = write_run(tmp_path / "student", table, classes)
    hang(folder, gallery("teacher", "student"))
    with Watched(browser, write_report([folder], tmp_path / "report.html")) as page:
        page.locator("#confusion-drawing").focus()
        page.keyboard.press("Shift+ArrowDown")
        page.keyboard.press("Shift+ArrowRight")
        said = page.locator("#confusion-cell").inner_text().replace("\u2068", "").replace("\u2069", "")
        assert said == "class 10, answered class 10: 9"
        page.locator("#confusion-drawing").focus()
        for _ in range(1):
            page.keyboard.press("Shift+ArrowUp")
            page.keyboard.press("Shift+ArrowLeft")
        page.keyboard.press("Enter")
        assert sorted(shown(page)) == [n for n in NUMBERS if labels_of(n)["truth"] == labels_of(n)["student"] == 0]


def test_a_plain_run_shows_its_own_maps_alone(browser: Any, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "teacher", measured(0.9))
    hang(folder, gallery("teacher"))
    with Watched(browser, write_report([folder], tmp_path / "report.html")) as page:
        assert page.locator("#shots li").first.locator(".tile").count() == 2
        page.select_option("#who", "neither")
        assert every_picture(page) == [n for n in NUMBERS if labels_of(n)["teacher"] != labels_of(n)["truth"]]
