"""Accessibility of the report: contrast, names, small screens, print; and the screenshots of the documentation.

``CAMKD_SCREENSHOTS=RUN:RUN`` takes the screenshots from the report of these runs: see ``make screenshots``.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from browser import DESKTOP, PHONE, OfflinePage
from camkd.report.report import write_report

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
