"""The report for everybody: contrast, names, small screens, paper; and its pictures for the documentation.

``CAMKD_SCREENSHOTS=RUN:RUN`` takes those pictures anew from the report of these runs: see ``make screenshots``.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from browser import DESK, PHONE, Watched
from camkd.report.report import write_report

FAINT = (Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")
IMAGES = Path(__file__).parents[2] / "docs" / "images"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_it_is_readable_in_light_and_dark_on_desk_and_phone(
    browser: Any, report: Path, scheme: str, viewport: dict[str, int]
) -> None:
    with Watched(browser, report, color_scheme=scheme, viewport=viewport) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        assert page.evaluate(FAINT) == []
        page.locator("#shots li").first.click()
        assert page.evaluate(FAINT) == []


def test_faint_words_are_found(browser: Any, tmp_path: Path) -> None:
    """The check above can fail: white over a half veil of white on black is too faint, black on white is not."""
    words = "<p style='background:#fff8;color:{}'>words</p>"
    html = f"<main style='background:#000'>{words.format('#fff')}{words.format('#000')}</main>"
    (tmp_path / "faint.html").write_text(html, encoding="utf-8")
    with Watched(browser, tmp_path / "faint.html") as page:
        assert page.evaluate(FAINT) == ["words: rgb(255, 255, 255) on 136,136,136"]


def test_every_control_has_a_name_and_every_picture_words(browser: Any, report: Path) -> None:
    nameless = """() => [...document.querySelectorAll('button, select, input, canvas, dialog, [role=img]')]
        .filter(one => !(one.getAttribute('aria-label') || one.getAttribute('aria-labelledby') || one.labels?.length
          || one.textContent.trim())).map(one => one.outerHTML)"""
    with Watched(browser, report) as page:
        page.locator("#shots li").first.click()
        assert page.evaluate(nameless) == []
        assert page.locator("img:not([alt])").count() == 0
        assert page.locator("#count").get_attribute("aria-live") == "polite"


def test_on_paper_there_are_no_controls(browser: Any, report: Path) -> None:
    with Watched(browser, report) as page:
        page.emulate_media(media="print")
        assert not page.locator(".controls").is_visible()
        assert page.locator("#shots canvas").first.is_visible()
        assert page.locator("h1").is_visible()


@pytest.mark.skipif("CAMKD_SCREENSHOTS" not in os.environ, reason="CAMKD_SCREENSHOTS names no run to take pictures of")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("name", "viewport"), [("desk", DESK), ("phone", PHONE)])
def test_screenshots(browser: Any, tmp_path: Path, name: str, viewport: dict[str, int], scheme: str) -> None:
    path = write_report([Path(run) for run in os.environ["CAMKD_SCREENSHOTS"].split(":")], tmp_path / "report.html")
    with Watched(browser, path, color_scheme=scheme, viewport=viewport) as page:
        save(page, f"report-{name}-{scheme}")
        page.evaluate("document.documentElement.style.scrollBehavior = 'auto'")
        page.locator("#pictures .legends" if viewport is PHONE else "#gallery").evaluate("one => one.scrollIntoView()")
        save(page, f"report-{name}-{scheme}-gallery")
        if scheme == "light":
            page.locator("#shots li").nth(1).click()
            save(page, f"report-{name}-picture")
            page.keyboard.press("Escape")
            page.locator("#mistakes").evaluate("one => one.scrollIntoView()")
            save(page, f"report-{name}-mistakes")


def save(page: Any, name: str) -> None:
    """Small enough to lie in the repository, with the colours of the maps as they are."""
    path = IMAGES / f"{name}.jpg"
    Image.open(io.BytesIO(page.screenshot(type="png"))).convert("RGB").save(path, quality=88, subsampling=0)
    assert path.stat().st_size < 300_000
