"""A headless Chromium for the tests of HTML pages, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = os.environ.get("CAMKD_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FAKE_CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 360, "height": 740}


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start a headless Chromium with a fake camera that shows a moving test image; skip the test without Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: requirements-dev.txt")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: run 'apt-get install chromium', or set CAMKD_CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *FAKE_CAMERA])
        yield browser
        browser.close()


class OfflinePage:
    """An open page without network. On exit it checks that nothing was logged and nothing was fetched."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.context = browser.new_context(offline=True, viewport=options.pop("viewport", DESKTOP), **options)
        self.page = self.context.new_page()
        self.messages: list[str] = []
        self.schemes: list[str] = []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.schemes.append(request.url.split(":")[0]))
        self.page.goto(path.as_uri())

    def check(self) -> None:
        assert self.messages == []
        assert set(self.schemes) <= {"file", "data"}

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, *exception: object) -> None:
        self.context.close()
        if exception[0] is None:
            self.check()
