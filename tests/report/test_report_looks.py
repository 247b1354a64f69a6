"""Accessibility of the report: contrast, names, small screens, print; and the screenshots of the documentation.

``CAMKD_SCREENSHOTS=RUN:RUN`` takes the screenshots from the report of these runs: see ``make screenshots``.
"""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from browser import DESKTOP, PHONE, OfflinePage
from camkd.report.comparison_report import write_comparison
from camkd.report.comparison_stats import Arm, Comparison
from camkd.report.metric_table import METRICS
from camkd.report.report import write_report
from camkd.types import CHANCE_LEVELS
from run_folders import gallery_content, metrics_content, write_gallery_json, write_train_folder

pytestmark = pytest.mark.slow

LOW_CONTRAST = (Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")
IMAGES = Path(__file__).parents[2] / "docs" / "images"


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_texts_are_readable_and_fit_the_screen(browser: Any, report: Path, viewport: dict[str, int]) -> None:
    with OfflinePage(browser, report, viewport=viewport) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate(LOW_CONTRAST) == [], scheme
        page.locator("#image-cards li").first.click()
        for scheme in ("dark", "light"):
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate(LOW_CONTRAST) == [], f"{scheme} dialog"


def test_contrast_check_finds_low_contrast(browser: Any, tmp_path: Path) -> None:
    """White on half-transparent white over black has too little contrast, black has enough."""
    text = "<p style='background:#fff8;color:{}'>text</p>"
    html = f"<main style='background:#000'>{text.format('#fff')}{text.format('#000')}</main>"
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    with OfflinePage(browser, tmp_path / "page.html") as page:
        assert page.evaluate(LOW_CONTRAST) == ["text: rgb(255, 255, 255) on 136,136,136"]


def test_controls_have_names_and_images_have_descriptions(browser: Any, report: Path) -> None:
    unnamed = """() => [...document.querySelectorAll('button, select, input, canvas, dialog, [role=img]')]
        .filter(e => !(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.labels?.length
          || e.textContent.trim())).map(e => e.outerHTML)"""
    with OfflinePage(browser, report) as page:
        page.locator("#image-cards li").first.click()
        assert page.evaluate(unnamed) == []
        assert page.locator("img:not([alt])").count() == 0
        assert page.locator("#count").get_attribute("aria-live") == "polite"


def test_print_hides_the_controls(browser: Any, report: Path) -> None:
    with OfflinePage(browser, report) as page:
        page.emulate_media(media="print")
        assert not page.locator(".controls").is_visible()
        assert page.locator("#image-cards canvas").first.is_visible()
        assert page.locator("h1").is_visible()


# --- print


A4_CONTENT = {"width": 688, "height": 1016}
"""Size of a page without margins, in pixels."""


def classes_report(root: Path, num_classes: int) -> Path:
    """The report of a run with a gallery and a confusion matrix without empty cells."""
    names = [f"class number {index}" for index in range(num_classes)]
    write_train_folder(root, classes=names)
    metrics = metrics_content(0.9) | {"confusion": (90 * np.eye(num_classes, dtype=int) + 1).tolist()}
    (root / "student" / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    write_gallery_json(root / "student", gallery_content("teacher", "student", classes=num_classes))
    return write_report([root], root / "report.html")


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a comparison with all metrics."""
    run = {spec.key: 0.5 for spec in METRICS} | {level.key("cam_cosine"): 0.4 for level in CHANCE_LEVELS}
    methods = ("plain", "kd", "cam-kd", "ce=0.1,kd=0.9:T=4,cam=1:pool=4:schedule=early")
    arms = tuple(Arm(name, {seed: run | {"accuracy": seed / 10} for seed in range(5)}) for name in methods)
    settings = {"student": "cam-net", "teacher": "resnet20", "data": "pets", "epochs": 3, "processes": 1, "threads": 2}
    return write_comparison(Comparison(arms), tmp_path_factory.mktemp("comparison"), settings)


def number_of_printed_pages(page: Any) -> int:
    return len(re.findall(rb"/Type\s*/Page\b", page.pdf(prefer_css_page_size=True, format="A4")))


@pytest.mark.parametrize("num_classes", [10, 20, 40, 100])
def test_confusion_matrix_is_printed_on_one_page_with_class_names(
    browser: Any, tmp_path: Path, num_classes: int
) -> None:
    """The matrix begins in the middle of a page. The box after it shows by the number of pages whether it is split."""
    with OfflinePage(browser, classes_report(tmp_path / "run", num_classes), viewport=A4_CONTENT) as page:
        page.emulate_media(media="print")
        card = page.locator(".card:has(.confusion, .matrix)")
        height = card.evaluate("card => card.getBoundingClientRect().height")
        assert height < A4_CONTENT["height"] - 150, "there must be room for the heading"
        assert card.evaluate("card => card.scrollWidth <= card.clientWidth")
        shown = card.locator(".confusion bdi, .matrix text").evaluate_all(
            "names => names.filter(name => name.checkVisibility() && name.textContent.startsWith('class')).length"
        )
        assert shown >= min(num_classes, 50)
        assert not page.locator("#confusion-app").is_visible()
        page.evaluate(
            """([before, after]) => {
                const box = height => Object.assign(document.createElement("div"), { style: `height:${height}px` });
                const after_box = box(after);
                after_box.style.breakInside = "avoid";
                const card = document.querySelector(".card:has(.confusion, .matrix)");
                document.querySelector("main").replaceChildren(box(before), card, after_box);
                document.querySelector(".skip").remove();
            }""",
            [A4_CONTENT["height"] - height / 2, A4_CONTENT["height"] - 0.75 * height],
        )
        assert number_of_printed_pages(page) == 3


def test_nothing_is_cut_off_in_print(browser: Any, comparison: Path, tmp_path: Path) -> None:
    for path in (comparison, classes_report(tmp_path / "run", 20)):
        with OfflinePage(browser, path, viewport=A4_CONTENT) as page:
            page.emulate_media(media="print")
            wide = """() => [...document.querySelectorAll("table, svg, img, pre")]
                .filter(e => e.checkVisibility() && e.getBoundingClientRect().right > innerWidth)
                .map(e => e.outerHTML)"""
            assert page.evaluate(wide) == []
            assert page.evaluate("document.documentElement.scrollWidth") <= A4_CONTENT["width"]


# --- wide content on a phone


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_wide_content_shows_that_it_scrolls(browser: Any, comparison: Path, tmp_path: Path, scheme: str) -> None:
    """Exactly the elements with hidden content have a line of text about it; tables have a shade too."""
    states = """() => [...document.querySelectorAll(".scroll, .sheet, pre, .strip")]
        .filter(e => e.checkVisibility())
        .map(e => ({
            wide: e.scrollWidth > e.clientWidth,
            label: parseFloat(getComputedStyle(e, "::before").height) > 10,
            shade: e.matches(".scroll") === getComputedStyle(e).backgroundImage.includes("gradient"),
        }))"""
    for path in (comparison, classes_report(tmp_path / "run", 20)):
        viewport = {"width": 375, "height": 740}
        with OfflinePage(browser, path, viewport=viewport, color_scheme=scheme) as page:
            page.evaluate("for (const element of document.querySelectorAll('details')) element.open = true")
            elements = page.evaluate(states)
            assert {element["wide"] for element in elements} == {True, False}
            assert all(element["label"] == element["wide"] and element["shade"] for element in elements), elements


@pytest.mark.skipif("CAMKD_SCREENSHOTS" not in os.environ, reason="CAMKD_SCREENSHOTS names no run")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("name", "viewport"), [("desk", DESKTOP), ("phone", PHONE)])
def test_screenshots(browser: Any, tmp_path: Path, name: str, viewport: dict[str, int], scheme: str) -> None:
    path = write_report([Path(run) for run in os.environ["CAMKD_SCREENSHOTS"].split(":")], tmp_path / "report.html")
    with OfflinePage(browser, path, color_scheme=scheme, viewport=viewport) as page:
        save_screenshot(page, f"report-{name}-{scheme}")
        page.evaluate("document.documentElement.style.scrollBehavior = 'auto'")
        top = "#gallery-app .legends" if viewport is PHONE else "#gallery"
        page.locator(top).evaluate("element => element.scrollIntoView()")
        save_screenshot(page, f"report-{name}-{scheme}-gallery")
        if scheme == "light":
            page.locator("#image-cards li").nth(1).click()
            save_screenshot(page, f"report-{name}-picture")
            page.keyboard.press("Escape")
            page.locator("#errors").evaluate("element => element.scrollIntoView()")
            save_screenshot(page, f"report-{name}-mistakes")


def save_screenshot(page: Any, name: str) -> None:
    """Save a JPEG that is small enough for the repository, without chroma subsampling for the colors of the maps."""
    path = IMAGES / f"{name}.jpg"
    Image.open(io.BytesIO(page.screenshot(type="png"))).convert("RGB").save(path, quality=88, subsampling=0)
    assert path.stat().st_size < 300_000
