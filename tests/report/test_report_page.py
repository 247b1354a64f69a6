"""The report in Chromium: it opens offline without messages, and sorts, filters, overlays and follows the keyboard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch

from browser import DESKTOP, PHONE, OfflinePage
from camkd.report.report import write_report
from camkd.utils.plot_style import DIFFERENCE_COLORMAP, EVIDENCE_COLORMAP, colorize
from run_folders import (
    CLASSES,
    NUM_IMAGES,
    cam_cosine_of,
    confidence_of,
    gallery_content,
    labels_of,
    maps_of,
    metrics_content,
    write_gallery_json,
    write_run,
    write_train_folder,
)

pytestmark = pytest.mark.slow

NUMBERS = list(range(NUM_IMAGES))
HOSTILE_NAMES = [
    "<script>document.title='caught'</script>",
    "\"'><img src=x onerror=document.title='caught'>",
    "\u202ereversed \u200f\u05d0\u05d1\u05d2 🦉 </script> {{ 7 * 7 }} &amp; " + "long" * 50,
]


@pytest.fixture(scope="module")
def offline_page(browser: Any, report: Path) -> Iterator[OfflinePage]:
    opened = OfflinePage(browser, report)
    yield opened
    opened.context.close()


@pytest.fixture
def page(offline_page: OfflinePage) -> Iterator[Any]:
    """The shared page in its initial state; the test fails if the page logs a message or fetches anything."""
    offline_page.page.goto(offline_page.page.url)
    yield offline_page.page
    offline_page.check()


def plain(text: str) -> str:
    """Remove the marks that isolate user text."""
    return text.replace("\u2068", "").replace("\u2069", "")


def visible_images(page: Any) -> list[int]:
    """Return the numbers of the images on the page, in their order, from the gray levels of the thumbnails."""
    levels = page.eval_on_selector_all(
        "#image-cards .tile:first-child img",
        """images => Promise.all(images.map(async image => {
            await image.decode();
            const context = document.createElement("canvas").getContext("2d");
            context.drawImage(image, 0, 0);
            return context.getImageData(0, 0, 1, 1).data[0];
        }))""",
    )
    return [level // 5 for level in levels]


def all_images(page: Any) -> list[int]:
    while page.locator("#more").is_visible():
        page.locator("#more").click()
    return visible_images(page)


# --- order and filters


def test_page_opens_with_the_lowest_cosine_first(page: Any) -> None:
    assert "Distillation helped in one run" in page.locator("h1").inner_text()
    assert page.locator("#count").inner_text() == "40 of 40 images in the gallery, the first 24 are shown."
    assert visible_images(page) == sorted(NUMBERS, key=cam_cosine_of)[:24]
    titles = page.locator("#image-cards li").first.locator("figcaption b").all_inner_texts()
    assert [plain(title) for title in titles] == ["image", "teacher", "student", "difference", "control"]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("dissimilar", sorted(NUMBERS, key=cam_cosine_of)),
        ("similar", sorted(NUMBERS, key=cam_cosine_of, reverse=True)),
        ("confident", sorted(NUMBERS, key=confidence_of, reverse=True)),
        ("uncertain", sorted(NUMBERS, key=confidence_of)),
        ("selection", NUMBERS),
    ],
)
def test_images_are_sorted(page: Any, order: str, expected: list[int]) -> None:
    page.select_option("#order", order)
    assert all_images(page) == expected


@pytest.mark.parametrize(
    ("filters", "passes"),
    [
        ({"label": "1"}, lambda t: t["label"] == 1),
        ({"predicted": "2"}, lambda t: t["student"] == 2),
        ({"correct": "both"}, lambda t: t["teacher"] == t["student"] == t["label"]),
        ({"correct": "teacher"}, lambda t: t["teacher"] == t["label"] != t["student"]),
        ({"correct": "student"}, lambda t: t["student"] == t["label"] != t["teacher"]),
        ({"correct": "neither"}, lambda t: t["label"] not in (t["student"], t["teacher"])),
        ({"label": "0", "correct": "teacher"}, lambda t: t["label"] == 0 == t["teacher"] != t["student"]),
        ({"compared": "1", "predicted": "2"}, lambda t: t["control"] == 2),
    ],
)
def test_images_are_filtered(page: Any, filters: dict[str, str], passes: Callable[[dict[str, int]], bool]) -> None:
    expected = [number for number in NUMBERS if passes(labels_of(number))]
    assert expected, "a filter that no image passes tests nothing"
    page.select_option("#order", "selection")
    for name, value in filters.items():
        page.select_option(f"#{name}", value)
    assert all_images(page) == expected
    assert page.locator("#count").inner_text().startswith(f"{len(expected)} of {NUM_IMAGES} ")
    page.click("#reset")
    assert len(all_images(page)) == NUM_IMAGES


def test_correct_model_filter_names_the_compared_run(page: Any) -> None:
    options = page.locator("#correct option").all_inner_texts
    assert [plain(text) for text in options()] == ["any", "both", "only the teacher", "only student", "neither"]
    page.select_option("#compared", "1")
    assert "only control" in [plain(text) for text in options()]


def test_filters_without_a_match_give_a_message(page: Any) -> None:
    page.select_option("#label", "0")
    page.select_option("#predicted", "2")
    assert page.locator("#count").inner_text() == "None of the 40 images in the gallery matches the filters."


# --- maps


def test_opacity_slider_works_with_mouse_and_keyboard(page: Any) -> None:
    opacity = "getComputedStyle(document.querySelector('.overlay canvas')).opacity"
    page.fill("#opacity", "25")
    assert page.evaluate(opacity) == "0.25"
    assert page.locator("#opacity-value").inner_text() == "25\N{NO-BREAK SPACE}%"
    page.focus("#opacity")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(opacity) == "0.26"


def test_maps_of_every_class_equal_torch_and_matplotlib(page: Any) -> None:
    """Compares with torch's interpolation and matplotlib's colors, from the maps that the gallery was made of."""
    page.locator("#image-cards li").first.click()
    number = min(NUMBERS, key=cam_cosine_of)
    pressed = page.locator("#detail-classes button[aria-pressed=true]")
    assert plain(pressed.inner_text()) == CLASSES[labels_of(number)["teacher"]]
    for class_id, name in enumerate(CLASSES):
        page.locator("#detail-classes").get_by_role("button", name=name).click()
        assert plain(pressed.inner_text()) == name
        teacher_map, student_map = (upsampled(maps_of(role, number)[class_id]) for role in ("teacher", "student"))
        for tile, values, colormap in (
            (2, teacher_map, "inferno"),
            (3, student_map, "inferno"),
            (4, (student_map - teacher_map + 1) / 2, "coolwarm"),
        ):
            drawn = canvas_pixels(page, f"#detail-tiles .tile:nth-child({tile}) canvas")
            expected = 255 * matplotlib.colormaps[colormap](values)[..., :3]
            assert np.abs(drawn - expected).max() < 8, (name, tile)  # error of the 8-bit levels


def upsampled(cam: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    positive = torch.tensor(cam).clamp_min(0)[None, None]
    return torch.nn.functional.interpolate(positive / positive.max(), (48, 48), mode="bilinear")[0, 0].numpy()


def canvas_pixels(page: Any, selector: str) -> np.ndarray[Any, Any]:
    read = "canvas => [...canvas.getContext('2d').getImageData(0, 0, 48, 48).data]"
    return np.array(page.locator(selector).evaluate(read), float).reshape(48, 48, 4)[..., :3]


def test_gallery_shows_the_map_of_the_selected_class(page: Any) -> None:
    canvas = "#image-cards li:first-child .tile:nth-child(3) canvas"
    number = min(NUMBERS, key=cam_cosine_of)
    labels = labels_of(number)
    choices = {"prediction": labels["teacher"], "label": labels["label"], "own": labels["student"], "2": 2}
    for choice, class_id in choices.items():
        page.select_option("#map", choice)
        expected = 255 * matplotlib.colormaps["inferno"](upsampled(maps_of("student", number)[class_id]))[..., :3]
        assert np.abs(canvas_pixels(page, canvas) - expected).max() < 8, choice


def test_contrast_is_the_difference_of_the_stored_maps(page: Any) -> None:
    number = min(NUMBERS, key=cam_cosine_of)
    shown = labels_of(number)["teacher"]
    other = (shown + 1) % 3
    page.get_by_label("Contrast with").select_option(str(other))
    maps = {role: maps_of(role, number) for role in ("teacher", "student")}
    teacher_map, student_map = (upsampled(maps[role][shown] - maps[role][other]) for role in ("teacher", "student"))
    for tile, values, colormap in (
        (2, teacher_map, "inferno"),
        (3, student_map, "inferno"),
        (4, (student_map - teacher_map + 1) / 2, "coolwarm"),
    ):
        drawn = canvas_pixels(page, f"#image-cards li:first-child .tile:nth-child({tile}) canvas")
        expected = 255 * matplotlib.colormaps[colormap](values)[..., :3]
        assert np.abs(drawn - expected).max() < 16, tile  # errors of the 8-bit levels of two maps
    description = page.locator("#image-cards li").first.locator("canvas").first.get_attribute("aria-label")
    assert description.startswith(f"Map of teacher for {CLASSES[shown]} vs. {CLASSES[other]}. ")
    page.locator("#image-cards li").first.click()
    contrast = page.locator("#detail-contrast")
    assert plain(contrast.inner_text()) == f"Maps: evidence for a class vs. {CLASSES[other]}"
    page.locator("#detail-classes").get_by_role("button", name=CLASSES[other]).click()
    empty = page.locator("#detail-tiles .tile:nth-child(2) .empty")
    assert plain(empty.inner_text()) == f"no contrast of {CLASSES[other]} with itself"
    page.keyboard.press("Escape")
    page.locator("#reset").click()
    assert page.locator("#contrast").input_value() == ""
    assert page.locator("#image-cards .empty").count() == 0


@pytest.mark.parametrize(("name", "colormap"), [("evidence", EVIDENCE_COLORMAP), ("difference", DIFFERENCE_COLORMAP)])
def test_script_has_the_colors_of_python(page: Any, name: str, colormap: str) -> None:
    values = np.linspace(0, 1, 48 * 48)
    drawn = page.evaluate(
        """([values, name]) => {
            const canvas = document.createElement("canvas");
            drawMap(canvas, values, name);
            return [...canvas.getContext("2d").getImageData(0, 0, 48, 48).data];
        }""",
        [values.tolist(), name],
    )
    colors = np.array(drawn).reshape(-1, 4)[:, :3]
    assert np.abs(colors - colorize(values, colormap)).max() <= 1  # the canvas stores colors times opacity


# --- keyboard


def test_confusion_cell_shows_its_images(page: Any) -> None:
    page.get_by_role("button", name="cat, predicted dog: 110").first.press("Enter")
    expected = [n for n in NUMBERS if (labels_of(n)["label"], labels_of(n)["student"]) == (0, 1)]
    assert sorted(visible_images(page)) == expected
    message = plain(page.locator("#count").inner_text())
    assert message == f"True class cat, predicted class dog: {len(expected)} of 110 images are in the gallery."
    assert page.evaluate("document.activeElement.closest('#image-cards') !== null")


def test_arrow_keys_move_through_the_confusion_matrix(page: Any) -> None:
    focused = "document.activeElement.getAttribute('aria-label')"
    page.locator("#confusion-table button").first.focus()
    for key, name in (
        ("ArrowRight", "cat, predicted dog: 110"),
        ("ArrowDown", "dog, predicted dog: 890"),
        ("ArrowUp", "cat, predicted dog: 110"),
        ("End", "owl, predicted owl: 890"),
    ):
        page.keyboard.press(key)
        assert page.evaluate(focused) == name
    assert page.locator("#confusion-table button[tabindex='0']").count() == 1


def test_dialog_opens_steps_and_closes_by_keyboard(page: Any) -> None:
    page.locator("#image-cards button").first.focus()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    number = sorted(NUMBERS, key=cam_cosine_of)[1]
    assert page.locator("#detail").is_visible()
    assert plain(page.locator("#detail-name").inner_text()) == f"test/{number:02d}.png"
    page.keyboard.press("ArrowRight")
    assert ", 3 of 40" in page.locator("#detail-title").inner_text()
    page.keyboard.press("Escape")
    assert not page.locator("#detail").is_visible()
    assert page.evaluate("[...document.querySelectorAll('#image-cards button')].indexOf(document.activeElement)") == 2


# --- other reports


def test_hostile_names_are_shown_as_text(browser: Any, tmp_path: Path) -> None:
    root = write_train_folder(tmp_path / "run", classes=HOSTILE_NAMES)
    content = gallery_content("teacher", "student", names=tuple(HOSTILE_NAMES))
    write_gallery_json(root / "student", content)
    path = write_report([root], root / "report.html")
    for viewport in (DESKTOP, PHONE):
        with OfflinePage(browser, path, viewport=viewport) as page:
            page.locator("#image-cards li").first.click()
            name = plain(page.locator("#detail-name").inner_text())
            assert name in [" ".join(hostile.split()) for hostile in HOSTILE_NAMES]
            page.keyboard.press("Escape")
            page.locator("#confusion-table button").nth(1).click()
            assert page.title() != "caught"
            assert page.locator("img[src=x]").count() == 0
            assert page.locator("script").count() == 2
            assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
            assert HOSTILE_NAMES[0] in page.locator("#label option").all_inner_texts()[1]


def test_page_without_javascript_shows_everything_but_the_gallery(browser: Any, report: Path) -> None:
    with OfflinePage(browser, report, java_script_enabled=False) as page:
        assert page.locator("h1").is_visible()
        assert page.locator("#confusion-table td").first.inner_text() == "890"
        assert page.locator("figure svg").first.is_visible()
        assert page.locator(".sheet img").first.is_visible()
        assert not page.locator("#gallery-app").is_visible()
        assert page.locator("noscript p").is_visible()


def test_confusion_matrix_of_many_classes_is_a_canvas_with_a_cursor(browser: Any, tmp_path: Path) -> None:
    classes = [f"class {i}" for i in range(100)]
    counts = [[9 if r == c else int(c == r + 3) for c in range(100)] for r in range(100)]
    folder = write_run(tmp_path / "student", {"accuracy": 0.9, "confusion": counts}, classes)
    write_gallery_json(folder, gallery_content("teacher", "student"))
    with OfflinePage(browser, write_report([folder], tmp_path / "report.html")) as page:
        page.locator("#confusion-canvas").focus()
        page.keyboard.press("Shift+ArrowDown")
        page.keyboard.press("Shift+ArrowRight")
        assert plain(page.locator("#confusion-cell").inner_text()) == "class 10, predicted class 10: 9"
        page.keyboard.press("Shift+ArrowUp")
        page.keyboard.press("Shift+ArrowLeft")
        page.keyboard.press("Enter")
        expected = [n for n in NUMBERS if labels_of(n)["label"] == labels_of(n)["student"] == 0]
        assert sorted(visible_images(page)) == expected


def test_run_without_teacher_shows_only_its_own_maps(browser: Any, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "teacher", metrics_content(0.9))
    write_gallery_json(folder, gallery_content("teacher"))
    with OfflinePage(browser, write_report([folder], tmp_path / "report.html")) as page:
        assert page.locator("#image-cards li").first.locator(".tile").count() == 2
        page.select_option("#correct", "neither")
        assert all_images(page) == [n for n in NUMBERS if labels_of(n)["teacher"] != labels_of(n)["label"]]
