"""The page of `camkd audit`: one file, every image named and shown, no network and no script."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from browser import DESKTOP, PHONE, OfflinePage
from camkd.audit.audit import audit
from camkd.config import DataConfig
from support.cli import camkd
from support.photos import make_photos

if TYPE_CHECKING:
    from playwright.sync_api import Browser

STRANGE = "<b>&'x"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("audit") / "pets"
    photos = make_photos(60, 128)
    for number, photo in enumerate(photos[:50]):
        folder = root / "train" / (STRANGE if number % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        photo.save(folder / f"{number}.png")
    for split in ("val", "test"):
        for name in ("dog", STRANGE):
            (root / split / name).mkdir(parents=True)
    for number, photo in enumerate(photos[50:]):
        photo.save(root / ("val" if number % 4 < 2 else "test") / ("dog" if number % 2 else STRANGE) / f"{number}.png")
    photos[0].save(root / "test" / "dog" / "same.jpg", quality=60)
    photos[1].resize((30, 30)).save(root / "train" / STRANGE / "1.png")
    (root / "train" / "dog" / f"{STRANGE} of a very long file name without any space in it.jpg").write_bytes(b"nothing")
    for number in range(12):
        photos[2].crop((0, 0, 80, 128)).save(root / "train" / "dog" / f"again {number}.png")
    output = camkd("audit", str(root), "--out", str(root.parent / "out"))
    assert output.status == 0
    assert output.last_line == f"page: {root.parent / 'out' / 'audit.html'}"
    return root.parent / "out" / "audit.html"


def test_page_is_one_file_without_network_and_script(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    assert [path.name for path in page.parent.iterdir()] == ["audit.html"]
    assert "http:" not in html
    assert "https:" not in html
    assert "<script" not in html
    assert "default-src 'none'" in html
    assert STRANGE not in html
    assert "&lt;b&gt;&amp;&#39;x" in html


def test_page_shows_the_images(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    sections = dict(zip(re.findall(r'<section id="([a-z-]+)"', html), html.split("<section id=")[1:], strict=True))
    assert list(sections) == ["unreadable", "leakage", "duplicates", "small"]
    shown = {kind: section.count("<img") for kind, section in sections.items()}
    assert shown == {"unreadable": 0, "leakage": 2, "duplicates": 8, "small": 1}
    assert "4 more images" in sections["duplicates"]
    data = re.search(r"data:image/png;base64,([^\"]+)", sections["small"])
    assert data is not None
    assert Image.open(io.BytesIO(base64.b64decode(data[1]))).size == (30, 30)


def test_page_without_faults(tmp_path: Path) -> None:
    for number, photo in enumerate(make_photos(60, 128)):
        folder = tmp_path / "pets" / ("train" if number < 50 else "val" if number < 55 else "test") / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        photo.save(folder / f"{number}.png")
    audit(DataConfig(str(tmp_path / "pets")), out=tmp_path / "out")
    html = (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    assert '<h1 class="wrap">pets: no faults</h1>' in html
    assert "<section" not in html


def test_out_must_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "must be a folder, got the file" in camkd("audit", "shapes", "--out", str(tmp_path / "file")).error


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_page_fits_its_window(browser: Browser, page: Path, viewport: dict[str, int]) -> None:
    with OfflinePage(browser, page, viewport=viewport) as opened:
        assert opened.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        images = opened.locator(".frame img")
        assert images.count() == 11
        for frame, image in zip(opened.locator(".frame:has(img)").all(), images.all(), strict=True):
            assert frame.bounding_box() == image.bounding_box(), "tall images are not cut"
        opened.locator(".kinds a").first.click()
        assert opened.url.endswith("#unreadable")
