"""The page in a real browser: the same answers as in Python, a heatmap, and nothing that leaves the machine."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from camkd.cli.main import main
from camkd.data.dataset import Dataset
from camkd.data.images import decode
from camkd.export.sessions import as_input, open_session, run
from camkd.export.web.server import POLICY, page_server
from camkd.runs.load_model import load
from camkd.types import InputError
from conftest import Finished

pytest.importorskip("onnxruntime")
sync_api = pytest.importorskip("playwright.sync_api")

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

SHOWN = os.environ.get("CAMKD_SHOWN", "cam-net-cifar10")
SCREENSHOT = os.environ.get("CAMKD_SCREENSHOT")
"""What `docs/images/page.png` shows, and where a new one goes: CAMKD_SCREENSHOT=docs/images/page.png pytest ..."""

PATIENCE = 60_000
"""Milliseconds a busy machine gets."""


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    with page_server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


@contextmanager
def opened(context: BrowserContext, address: str) -> Iterator[Page]:
    """The page, ready; afterwards it is asserted that it neither complained nor asked another server for anything."""
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    complaints: list[str] = []
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda asked: complaints.append(asked.url) if not own(asked.url, address) else None)
    page.goto(address)
    expect(page.locator("#status")).to_have_text("Ready.")
    yield page
    assert complaints == []


def own(url: str, address: str) -> bool:
    return url.startswith((address, f"blob:{address}"))


def expect(locator: Any) -> Any:
    sync_api.expect.set_options(timeout=PATIENCE)
    return sync_api.expect(locator)


@pytest.fixture(scope="module")
def fp32(exported: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of `exported` with the model in fp32."""
    folder = tmp_path_factory.mktemp("fp32") / "page"
    shutil.copytree(exported.page, folder)
    shutil.copy(exported.folder / "model.onnx", folder / "model.onnx")
    return folder


@pytest.fixture(scope="module")
def address(fp32: Path) -> Iterator[str]:
    with serving(fp32) as found:
        yield found


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    context = browser.new_context()
    with opened(context, address) as found:
        yield found
    context.close()


def as_file(name: str, image: Image.Image, kind: str = "PNG") -> dict[str, Any]:
    stream = io.BytesIO()
    image.save(stream, kind)
    return {"name": name, "mimeType": f"image/{kind.lower()}", "buffer": stream.getvalue()}


def choose(page: Page, file: dict[str, Any]) -> dict[str, Any]:
    """Choose a file as a visitor does, and return what the page says to the console about it."""
    page.set_input_files("#file", file)
    expect(page.locator("#status")).to_contain_text(f"{file['name']}: ")
    found: dict[str, Any] = page.evaluate("""() => ({ logits: camkd.logits, pixels: Array.from(camkd.pixels),
        maps: camkd.maps.map(map => Array.from(map)), grid: camkd.grid })""")
    return found


def as_seen(found: dict[str, Any], size: int = 16) -> np.ndarray[Any, Any]:
    return np.array(found["pixels"], np.uint8).reshape(size, size, 4)[..., :3]


@pytest.mark.parametrize("row", [0, 5])
def test_a_known_picture_gets_the_logits_of_python(page: Page, fp32: Path, easy: Dataset, row: int) -> None:
    image = easy.test.images[row]
    found = choose(page, as_file("known.png", Image.fromarray(image)))
    np.testing.assert_array_equal(as_seen(found), image)
    logits, cam = run(open_session(fp32 / "model.onnx"), as_input(image[None]))
    np.testing.assert_allclose(found["logits"], logits[0], atol=1e-3)
    np.testing.assert_allclose(found["maps"], cam[0].reshape(3, -1), atol=1e-3)
    assert found["grid"] == list(cam.shape[2:])


def test_int8_answers_too(browser: Browser, exported: Any, easy: Dataset) -> None:
    context = browser.new_context()
    with serving(exported.page) as address, opened(context, address) as page:
        found = choose(page, as_file("known.png", Image.fromarray(easy.test.images[0])))
    context.close()
    logits, _ = run(open_session(exported.folder / "model.int8.onnx"), as_input(easy.test.images[:1]))
    scale = np.abs(logits).max()
    np.testing.assert_allclose(found["logits"], logits[0], atol=0.05 * scale)  # integers may be rounded otherwise


@pytest.mark.parametrize("size", [(75, 40), (33, 35), (16, 40), (9, 12)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_other_sizes_are_cut_and_resized_as_for_training(
    page: Page, tmp_path: Path, size: tuple[int, int], mode: str
) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (size[1], size[0], len(mode)), dtype=np.uint8)
    if mode == "RGBA":
        values[..., 3] = np.where(values[..., 3] > 99, 255, 0)
    image = Image.fromarray(values)
    image.save(tmp_path / "given.png")
    seen = as_seen(choose(page, as_file("given.png", image))).astype(int)
    assert np.abs(seen - decode(tmp_path / "given.png", 16)).max() <= 1


def test_a_tall_picture_is_resized_in_the_other_order(page: Page, tmp_path: Path) -> None:
    """Pillow then goes down before across, rounding in between: a few levels where half of the pixels are white."""
    values = np.random.default_rng(0).integers(0, 512, (120, 33, 3)).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(values)
    image.save(tmp_path / "given.png")
    seen = as_seen(choose(page, as_file("given.png", image))).astype(int)
    assert np.abs(seen - decode(tmp_path / "given.png", 16)).mean() < 1


def test_a_large_photograph_is_seen_nearly_as_for_training(page: Page, tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 1200)
    values = np.stack([np.broadcast_to(r, (900, 1200)) for r in (ramp, ramp[::-1], 255 - ramp**2 / 255)], -1)
    image = Image.fromarray(values.astype(np.uint8))
    image.save(tmp_path / "given.png")
    seen = as_seen(choose(page, as_file("given.png", image))).astype(int)
    assert np.abs(seen - decode(tmp_path / "given.png", 16)).max() <= 4


def test_a_sideways_photograph_is_turned_upright(page: Page) -> None:
    values = np.zeros((16, 16, 3), np.uint8)
    values[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "JPEG", quality=100, exif=exif)
    seen = as_seen(choose(page, {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": stream.getvalue()}))
    assert seen[:6].mean() > 240
    assert seen[10:].mean() < 15


def test_the_heatmap_is_drawn_over_the_picture(page: Page, easy: Dataset) -> None:
    found = choose(page, as_file("known.png", Image.fromarray(easy.test.images[4])))
    shown = int(np.argmax(found["logits"]))
    data = page.evaluate("document.querySelector('#student .map').toDataURL()")
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))).convert("RGBA"))
    evidence = np.maximum(np.array(found["maps"][shown], np.float32).reshape(found["grid"]), 0)
    share = Image.fromarray(evidence / evidence.max()).resize((224, 224), Image.Resampling.BILINEAR)
    import matplotlib

    expected = matplotlib.colormaps["inferno"](np.asarray(share))[..., :3] * 255
    assert np.abs(drawn[..., :3] - expected).mean() < 4  # what lies below is not seen through a canvas of its own
    assert np.ptp(drawn[..., 3].astype(int)) > 50
    image = Image.open(io.BytesIO(page.locator("#student .frame").screenshot())).convert("RGB")
    assert len(image.getcolors(1 << 20) or []) > 100


def test_any_classs_map_at_a_click_or_by_keyboard(page: Page, easy: Dataset) -> None:
    found = choose(page, as_file("known.png", Image.fromarray(easy.test.images[0])))
    ranked = [easy.classes[k] for k in np.argsort(found["logits"])[::-1]]
    buttons = page.locator("#top button")
    assert [text.split()[0] for text in buttons.all_inner_texts()] == ranked
    before = page.evaluate("document.querySelector('#student .map').toDataURL()")
    buttons.nth(1).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text(f"Evidence for {ranked[1]}: ")
    expect(buttons.nth(1)).to_have_attribute("aria-pressed", "true")
    assert page.evaluate("document.querySelector('#student .map').toDataURL()") != before
    page.get_by_label("Map of").select_option(ranked[2])
    expect(page.locator("#student figcaption")).to_contain_text(f"evidence for {ranked[2]}: ")
    page.get_by_label("Map of").select_option("")
    assert page.evaluate("document.querySelector('#student .map').toDataURL()") == before


def test_the_slider_fades_the_heatmap(page: Page, easy: Dataset) -> None:
    choose(page, as_file("known.png", Image.fromarray(easy.test.images[0])))
    page.get_by_label("Heatmap").focus()
    page.keyboard.press("Home")
    plain = page.locator("#student .frame").screenshot()
    expect(page.locator("#student .map")).to_have_css("opacity", "0")
    page.keyboard.press("End")
    expect(page.locator("#student .map")).to_have_css("opacity", "1")
    assert page.locator("#student .frame").screenshot() != plain


def test_an_example_has_its_teachers_map_beside_it(page: Page, fp32: Path) -> None:
    said = json.loads((fp32 / "page.json").read_text(encoding="utf-8"))
    page.get_by_role("button", name=said["examples"][1]["truth"], exact=True).first.click()
    expect(page.locator("#status")).to_contain_text("Example (")
    expect(page.locator("#teacher")).to_be_visible()
    expect(page.locator("#teacher figcaption")).to_contain_text("its teacher: ")
    choose(page, as_file("own.png", Image.new("RGB", (16, 16), "red")))
    expect(page.locator("#teacher")).to_be_hidden()


def test_the_teachers_maps_are_the_teachers(exported: Any, finished: Finished) -> None:
    import torch

    import camkd

    said = json.loads((exported.page / "page.json").read_text(encoding="utf-8"))
    for example in said["examples"][:3]:
        x = as_input(np.asarray(Image.open(exported.page / example["file"]))[None])
        with torch.no_grad():
            answer = camkd.predict(load(finished.folder / "teacher"), torch.from_numpy(x))
        assert answer.cams is not None
        for k, values in example["teacher"]["maps"].items():
            np.testing.assert_allclose(values, answer.cams[0, int(k)].flatten(), atol=1e-3)
            chance = float(answer.logits.softmax(1)[0, int(k)])
            assert example["teacher"]["chances"][k] == pytest.approx(chance, abs=1e-3)


# --- what cannot be read


def test_what_cannot_be_read_is_refused_politely(page: Page, easy: Dataset) -> None:
    choose(page, as_file("known.png", Image.fromarray(easy.test.images[0])))
    before = page.evaluate("camkd.logits")
    whole = as_file("x.png", Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    huge = as_file("huge.png", Image.new("1", (10_000, 10_000)))
    broken = [
        ({"name": "words.png", "mimeType": "image/png", "buffer": b"no picture"}, "it is not a picture"),
        ({"name": "empty.jpg", "mimeType": "image/jpeg", "buffer": b""}, "it is not a picture"),
        ({**whole, "name": "half.png", "buffer": whole["buffer"][:5000]}, "it is damaged"),
        (huge, "it has 100 megapixels; at most 64 are read, so make it smaller"),
    ]
    for file, reason in broken:
        page.set_input_files("#file", file)
        expect(page.get_by_role("alert")).to_contain_text(f"{file['name']} cannot be read: {reason}")
        assert page.evaluate("camkd.logits") == before
    choose(page, as_file("again.png", Image.fromarray(easy.test.images[1])))
    expect(page.get_by_role("alert")).to_be_empty()


# --- other ways in


@pytest.mark.parametrize(("event", "carrier"), [("paste", "clipboardData"), ("drop", "dataTransfer")])
def test_clipboard_and_drop(page: Page, easy: Dataset, event: str, carrier: str) -> None:
    content = base64.b64encode(as_file("", Image.fromarray(easy.test.images[2]))["buffer"]).decode()
    give = """([event, carrier, content, named]) => {
        const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0)), transfer = new DataTransfer();
        if (named) transfer.items.add(new File([bytes], named, { type: 'image/png' }));
        const Kind = event === 'paste' ? ClipboardEvent : DragEvent;
        document.body.dispatchEvent(new Kind(event, { [carrier]: transfer, bubbles: true, cancelable: true }));
    }"""
    page.evaluate(give, [event, carrier, content, ""])
    expect(page.get_by_role("alert")).to_contain_text("holds no picture file")
    page.evaluate(give, [event, carrier, content, "given.png"])
    expect(page.locator("#status")).to_contain_text("given.png: ")


def test_the_camera_shows_frames_a_second(browser: Browser, address: str) -> None:
    context = browser.new_context(permissions=["camera"])
    with opened(context, address) as page:
        page.get_by_role("button", name="Use the camera").click()
        expect(page.locator("#speed")).to_have_text(re.compile(r"\d+ frames/s, [\d.]+ ms in the network"))
        expect(page.locator("#student .map")).to_be_visible()
        page.get_by_role("button", name="Stop the camera").click()
        expect(page.get_by_role("button", name="Use the camera")).to_have_attribute("aria-pressed", "false")
        expect(page.locator("#speed")).to_be_empty()
    context.close()


def test_by_keyboard_alone_and_named_for_a_screen_reader(page: Page) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    expect(page.get_by_label("Choose a picture")).to_be_focused()
    for name in ("paste", "camera"):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == name
    page.keyboard.press("Tab")  # nothing to choose from yet but the examples
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("Example (")
    expect(page.get_by_role("img", name=re.compile("evidence for .*: most")).first).to_be_visible()
    unnamed = page.evaluate("""() => [...document.querySelectorAll('button, input, select')]
        .filter(e => e.offsetParent && !(e.labels?.length || e.textContent.trim() || e.getAttribute('aria-label')))
        .map(e => e.outerHTML)""")
    assert unnamed == []


def test_it_fits_a_phone(browser: Browser, address: str) -> None:
    context = browser.new_context(viewport={"width": 340, "height": 700}, has_touch=True)
    with opened(context, address) as page:
        page.locator("#examples button").first.tap()
        expect(page.locator("#stage")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 340
        heights = page.evaluate("[...document.querySelectorAll('button, select')].map(e => e.offsetHeight)")
        assert min(height for height in heights if height) >= 44
    context.close()


def test_it_works_without_a_network_once_loaded(browser: Browser, fp32: Path, easy: Dataset) -> None:
    context = browser.new_context()
    with serving(fp32) as address:
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        page.evaluate("navigator.serviceWorker.ready.then(() => true)")
    context.set_offline(True)  # and the server is gone
    page.reload()
    expect(page.locator("#status")).to_have_text("Ready.")
    choose(page, as_file("known.png", Image.fromarray(easy.test.images[0])))
    context.close()


def test_the_screenshot_of_the_readme(browser: Browser, cifar10_folder: Path, runtime: Path, tmp_path: Path) -> None:
    """The shipped model on a real picture; with CAMKD_SCREENSHOT the picture is kept."""
    try:
        load(SHOWN)
    except InputError as error:
        pytest.skip(f"{SHOWN} cannot be loaded: {error}")
    for split, place in product(("train", "val", "test"), sorted((cifar10_folder / "test").iterdir())):
        for path in sorted(place.iterdir())[:2]:
            (tmp_path / "few" / split / place.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "few" / split / place.name)
    where = ["--data", str(tmp_path / "few"), "--runtime", str(runtime)]
    assert main(["export", SHOWN, "--web", str(tmp_path / "page"), *where]) == 0
    context = browser.new_context(viewport={"width": 1000, "height": 760})
    with serving(tmp_path / "page") as address, opened(context, address) as page:
        page.get_by_role("button", name="horse").click()
        expect(page.get_by_role("status")).to_contain_text("Example (horse): ")
        content = page.screenshot(path=SCREENSHOT, full_page=True)
    context.close()
    with Image.open(io.BytesIO(content)) as image:
        assert len(image.convert("RGB").getcolors(1 << 22) or []) > 1000


def test_the_policy_in_the_page_is_the_servers(exported: Any) -> None:
    text = (exported.page / "index.html").read_text(encoding="utf-8")
    assert f'content="{POLICY}"' in text
    assert "unsafe-inline" not in text
    assert not re.search(r'<script(?![^>]*src=)|style="|onclick=|https?://', text)
