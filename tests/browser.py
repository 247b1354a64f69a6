"""A real browser for the tests of pages: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = os.environ.get("CAMKD_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium with a camera that shows a moving test picture; skips where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: 'apt-get install chromium', or name one in CAMKD_CHROMIUM")
    with sync_api.sync_playwright() as programs:
        browser = programs.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *CAMERA])
        yield browser
        browser.close()
