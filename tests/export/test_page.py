"""The page in a real browser: the outputs of Python, a heatmap, and no requests to other servers."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import count, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

import camkd
from camkd.cli.main import main
from camkd.data.dataset import Dataset
from camkd.data.images import decode
from camkd.export.onnx_graph import write_onnx
from camkd.export.sessions import open_session, run_session, to_input
from camkd.export.web.runtime import runtime_files
from camkd.export.web.server import CONTENT_SECURITY_POLICY, page_server
from camkd.export.web.site import build
from camkd.runs.loading import read_model_info
from camkd.types import PAD_VALUE, Fit, InputError, Interpolation, Preprocessing
from camkd.utils.files import commit_dir
from camkd.utils.plot_style import EVIDENCE_COLORMAP, colorize
from support.image_files import (
    UPRIGHT,
    corrupt_files,
    encode,
    files_of_no_image,
    files_of_other_formats,
    files_with_broken_metadata,
    incomplete_files,
    oriented,
    photo,
    png,
    png_chunk,
    readable_files,
    tiff_header,
)

pytest.importorskip("onnxruntime")
sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

SCREENSHOT_MODEL = os.environ.get("CAMKD_SHOWN", "cam-net-cifar10")
SCREENSHOT = os.environ.get("CAMKD_SCREENSHOT")
"""Model and path of the screenshot in docs/device.md: CAMKD_SCREENSHOT=docs/images/page.png pytest ..."""

OTHER_CLASSES = ["bolt", "nut", "screw"]

PHOTOS = os.environ.get("CAMKD_PHOTOS")
"""Folder of JPEGs that are compared with Python too."""

FILE_NUMBERS = count()
"""Numbers for names of files, so that each prediction of a page is told from the one before."""

TIMEOUT = 60_000
"""Milliseconds, enough for a busy machine."""


class StaticHandler(SimpleHTTPRequestHandler):
    """An ordinary server of static files: it answers If-Modified-Since by the time of a file, with 304."""

    def log_message(self, *arguments: Any) -> None:
        pass


def static_server(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    return ThreadingHTTPServer(("127.0.0.1", port), partial(StaticHandler, directory=str(folder)))


@contextmanager
def serve(
    folder: Path, port: int = 0, create: Callable[[Path, int], ThreadingHTTPServer] = page_server
) -> Iterator[str]:
    """Serve a page; yield its address."""
    with create(folder, port) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


@contextmanager
def open_page(context: BrowserContext, address: str) -> Iterator[Page]:
    """Open a page and wait until it is ready. At the end, assert that it logged no error and made no remote request."""
    page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    problems: list[str] = []
    page.on("console", lambda entry: problems.append(entry.text) if entry.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: problems.append(request.url) if not is_local(request.url, address) else None)
    page.goto(address)
    expect(page.locator("#status")).to_have_text("Ready.")
    yield page
    assert problems == []


def is_local(url: str, address: str) -> bool:
    return url.startswith((address, f"blob:{address}"))


def expect(locator: Any) -> Any:
    sync_api.expect.set_options(timeout=TIMEOUT)
    return sync_api.expect(locator)


@pytest.fixture(scope="module")
def fp32(exported: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of `exported` with the model in fp32."""
    folder = tmp_path_factory.mktemp("fp32") / "page"
    shutil.copytree(exported.page, folder)
    shutil.copy(exported.folder / "model.onnx", folder / "model.onnx")
    return folder


@pytest.fixture(scope="module")
def other_page(finished: Any, easy: Dataset, runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a model with other weights and class names; every file is older than those of the other pages."""
    root = tmp_path_factory.mktemp("other")
    run = shutil.copytree(finished.folder / "control", root / "run")
    info = json.loads((run / "model.json").read_text(encoding="utf-8"))
    (run / "model.json").write_text(json.dumps(info | {"classes": OTHER_CLASSES}), encoding="utf-8")
    write_onnx(camkd.load(run), read_model_info(run), root / "model.onnx")
    (root / "page").mkdir()
    build(root / "page", root / "model.onnx", str(run), None, easy, runtime_files(runtime))
    for path in (root / "page").rglob("*"):
        os.utime(path, (1e9, 1e9))
    return root / "page"


@pytest.fixture(scope="module")
def address(fp32: Path) -> Iterator[str]:
    with serve(fp32) as address:
        yield address


@pytest.fixture(scope="session")
def photos() -> list[Path]:
    """All JPEGs of a folder; skips without CAMKD_PHOTOS."""
    if PHOTOS is None:
        pytest.skip("CAMKD_PHOTOS is not set. Set it to a folder of JPEGs.")
    return sorted(Path(PHOTOS).rglob("*.jpg"))


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    context = browser.new_context()
    with open_page(context, address) as page:
        yield page
    context.close()


def as_file(name: str, image: Image.Image, kind: str = "PNG") -> dict[str, Any]:
    stream = io.BytesIO()
    image.save(stream, kind)
    return {"name": name, "mimeType": f"image/{kind.lower()}", "buffer": stream.getvalue()}


def choose(page: Page, file: dict[str, Any]) -> dict[str, Any]:
    """Choose a file, wait for the prediction and return the outputs that the page offers to the console."""
    page.set_input_files("#file", file)
    expect(page.locator("#status")).to_contain_text(f"{file['name']}: ")
    outputs: dict[str, Any] = page.evaluate("""() => ({ logits: camkd.logits, pixels: Array.from(camkd.pixels),
        maps: camkd.maps.map(map => Array.from(map)), grid: camkd.grid })""")
    return outputs


def model_input(outputs: dict[str, Any], size: int = 16) -> np.ndarray[Any, Any]:
    """The pixels that the model received, RGB ``(size, size, 3)``."""
    return np.array(outputs["pixels"], np.uint8).reshape(size, size, 4)[..., :3]


def heatmap_url(page: Page) -> str:
    url: str = page.evaluate("document.querySelector('#student .map').toDataURL()")
    return url


# --- predictions


@pytest.mark.parametrize("row", [0, 5])
def test_logits_and_maps_match_python(page: Page, fp32: Path, easy: Dataset, row: int) -> None:
    image = easy.test.images[row]
    outputs = choose(page, as_file("known.png", Image.fromarray(image)))
    np.testing.assert_array_equal(model_input(outputs), image)
    logits, cam = run_session(open_session(fp32 / "model.onnx"), to_input(image[None]))
    np.testing.assert_allclose(outputs["logits"], logits[0], atol=1e-3)
    np.testing.assert_allclose(outputs["maps"], cam[0].reshape(3, -1), atol=1e-3)
    assert outputs["grid"] == list(cam.shape[2:])


def test_int8_logits_match_python(browser: Browser, exported: Any, easy: Dataset) -> None:
    context = browser.new_context()
    with serve(exported.page) as address, open_page(context, address) as page:
        outputs = choose(page, as_file("known.png", Image.fromarray(easy.test.images[0])))
    context.close()
    logits, _ = run_session(open_session(exported.folder / "model.int8.onnx"), to_input(easy.test.images[:1]))
    scale = np.abs(logits).max()
    np.testing.assert_allclose(outputs["logits"], logits[0], atol=0.05 * scale)  # the rounding of integers may differ


# --- the classes of the model


def test_page_lists_the_classes_beside_the_prediction(page: Page, easy: Dataset) -> None:
    sentence = "The model predicts one of these 3 classes for every image, even for an image of another class: berry, "
    sentence += "leaf, sky."
    expect(page.locator("#classes")).to_contain_text(sentence)
    choose(page, as_file("known.png", Image.fromarray(easy.test.images[0])))
    expect(page.locator("#classes")).to_be_visible()
    expect(page.locator("#all-classes")).to_be_hidden()


def test_page_lists_twenty_of_many_classes_and_expands_the_others(browser: Browser, fp32: Path) -> None:
    names = [f"class {index}" for index in range(1000)]
    context = browser.new_context()
    content = json.loads((fp32 / "page.json").read_text(encoding="utf-8")) | {"classes": names}
    context.route("**/page.json", lambda route: route.fulfill(json=content))
    with serve(fp32) as address, open_page(context, address) as page:
        text = "The model predicts one of these 1,000 classes for every image, even for an image of another class: "
        text += f"{', '.join(names[:20])}, and 980 more."
        expect(page.locator("#classes")).to_contain_text(text)
        page.get_by_text("All classes").click()
        expect(page.get_by_text(", ".join(names), exact=True)).to_be_visible()
    context.close()


# --- decoding and resizing


def decode_content(tmp_path: Path, content: bytes) -> Any:
    (tmp_path / "given").write_bytes(content)
    return decode(tmp_path / "given", Preprocessing(16))


def difference_to_python(page: Page, tmp_path: Path, content: bytes) -> Any:
    """Absolute differences of the pixels that the model receives from Python's."""
    (tmp_path / "given").write_bytes(content)
    outputs = choose(page, {"name": f"file-{next(FILE_NUMBERS)}", "mimeType": "", "buffer": content})
    return np.abs(model_input(outputs).astype(int) - decode(tmp_path / "given", Preprocessing(16)))


@pytest.mark.parametrize("size", [(75, 40), (33, 35), (33, 120), (16, 40), (9, 12), (1200, 901), (1500, 1500)])
def test_images_are_cropped_and_resized_bit_for_bit_as_in_training(
    page: Page, tmp_path: Path, size: tuple[int, int]
) -> None:
    values = np.random.default_rng(0).integers(0, 512, (size[1], size[0], 3)).clip(0, 255).astype(np.uint8)
    assert difference_to_python(page, tmp_path, encode(Image.fromarray(values), "PNG")).max() == 0


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_images_are_fitted_bit_for_bit_as_in_training(
    browser: Browser, fp32: Path, tmp_path: Path, fit: Fit, interpolation: Interpolation
) -> None:
    """The page has the pixels, the answer and the displayed square of the preprocessing of the model."""
    preprocessing = Preprocessing(16, fit, interpolation)
    changes = {"fit": fit, "interpolation": interpolation}
    config = json.loads((fp32 / "page.json").read_text(encoding="utf-8")) | changes
    session = open_session(fp32 / "model.onnx")
    context = browser.new_context()
    context.route("**/page.json", lambda route: route.fulfill(json=config))
    with serve(fp32) as address, open_page(context, address) as page:
        for width, height in ((75, 25), (25, 75), (33, 35), (9, 12), (40, 5), (900, 601), (17, 17), (300, 1)):
            content = encode(Image.fromarray(photo(width, height)), "PNG")
            (tmp_path / "given").write_bytes(content)
            outputs = choose(page, {"name": f"{width}-{height}", "mimeType": "", "buffer": content})
            expected = decode(tmp_path / "given", preprocessing)
            np.testing.assert_array_equal(model_input(outputs), expected)
            logits, cam = run_session(session, to_input(expected[None]))
            np.testing.assert_allclose(outputs["logits"], logits[0], atol=1e-3)
            np.testing.assert_allclose(outputs["maps"], cam[0].reshape(3, -1), atol=1e-3)
            shown = page.evaluate("""() => { const shown = document.querySelector("#student .image");
                const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
                canvas.getContext("2d", { willReadFrequently: true }).drawImage(shown, 0, 0);
                return [shown.width, shown.height, ...canvas.getContext("2d").getImageData(0, 0, 1, 1).data]; }""")
            side = min((min if fit == "crop" else max)(width, height), 640)
            assert shown[:2] == [side, side]
            if fit == "pad" and min(width, height) < max(width, height) - 2:
                assert shown[2:] == [PAD_VALUE, PAD_VALUE, PAD_VALUE, 255]
    context.close()


def test_photos_of_all_proportions_have_the_pixels_and_the_answers_of_python(
    page: Page, fp32: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    session = open_session(fp32 / "model.onnx")
    for number in range(20):
        width, height = rng.integers(20, 900, 2).tolist()
        options = {"quality": 90, "subsampling": number % 3, "progressive": number % 2 == 0}
        content = encode(Image.fromarray(photo(width, height, seed=number)), "JPEG", **options)
        assert difference_to_python(page, tmp_path, content).mean() <= 0.1, (width, height)
        logits, _ = run_session(session, to_input(decode(tmp_path / "given", Preprocessing(16))[None]))
        assert np.argmax(page.evaluate("camkd.logits")) == logits.argmax(), (width, height)


def test_photos_of_a_folder_have_the_pixels_and_the_answers_of_python(
    page: Page, fp32: Path, tmp_path: Path, photos: list[Path]
) -> None:
    session = open_session(fp32 / "model.onnx")
    differences = []
    changed_answers = []
    for path in photos:
        differences.append(difference_to_python(page, tmp_path, path.read_bytes()).mean())
        logits, _ = run_session(session, to_input(decode(path, Preprocessing(16))[None]))
        if np.argmax(page.evaluate("camkd.logits")) != logits.argmax():
            changed_answers.append(path)
    assert max(differences) <= 1
    assert changed_answers == []


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_files_of_every_kind_have_the_pixels_of_python(page: Page, tmp_path: Path) -> None:
    for name, content in {**readable_files(), **files_with_broken_metadata(), **incomplete_files()}.items():
        difference = difference_to_python(page, tmp_path, content)
        assert difference.mean() < 0.6, name  # CMYK and transparent colors are rounded differently
        assert difference.max() <= 2, name


@pytest.mark.parametrize(
    ("image_format", "carrier"),
    [("JPEG", "exif"), ("PNG", "exif"), ("WEBP", "exif"), ("JPEG", "xmp"), ("PNG", "xmp"), ("WEBP", "xmp")],
)
def test_orientation_is_that_of_python(page: Page, tmp_path: Path, image_format: str, carrier: str) -> None:
    for orientation in UPRIGHT:
        content = oriented(photo(48, 32), image_format, orientation, carrier)
        assert difference_to_python(page, tmp_path, content).max() == 0, orientation


# --- heatmaps


def test_heatmap_has_the_colors_and_the_interpolation_of_python(page: Page, easy: Dataset) -> None:
    outputs = choose(page, as_file("known.png", Image.fromarray(easy.test.images[4])))
    top_class = int(np.argmax(outputs["logits"]))
    content = base64.b64decode(heatmap_url(page).partition(",")[2])
    drawn = np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))
    evidence = np.maximum(np.array(outputs["maps"][top_class], np.float32).reshape(outputs["grid"]), 0)
    resized = Image.fromarray(evidence / evidence.max()).resize((224, 224), Image.Resampling.BILINEAR)
    expected = matplotlib.colormaps["inferno"](np.asarray(resized))[..., :3] * 255
    assert np.abs(drawn[..., :3] - expected).mean() < 4  # the canvas holds the heatmap without the image below it
    assert np.ptp(drawn[..., 3].astype(int)) > 50
    screenshot = Image.open(io.BytesIO(page.locator("#student .frame").screenshot())).convert("RGB")
    assert len(screenshot.getcolors(1 << 20) or []) > 100


def test_script_has_the_colors_of_python(page: Page) -> None:
    """One row of as many cells as the canvas has pixels, so that nothing is interpolated."""
    values = np.linspace(0, 1, 224)
    drawn = page.evaluate(
        """async values => {
            const { drawMap } = await import("./heatmap.js");
            const { colormap } = await (await fetch("page.json")).json();
            const canvas = document.createElement("canvas");
            drawMap(canvas, values, [1, 224], colormap);
            return [...canvas.getContext("2d").getImageData(0, 0, 224, 1).data];
        }""",
        values.tolist(),
    )
    colors = np.array(drawn).reshape(-1, 4)[:, :3]
    assert np.abs(colors - colorize(values, EVIDENCE_COLORMAP)).max() <= 1  # the canvas stores colors times opacity


def test_heatmap_of_any_class_by_keyboard_and_by_list(page: Page, easy: Dataset) -> None:
    outputs = choose(page, as_file("known.png", Image.fromarray(easy.test.images[0])))
    ranked = [easy.classes[k] for k in np.argsort(outputs["logits"])[::-1]]
    buttons = page.locator("#top-classes button")
    assert [text.split()[0] for text in buttons.all_inner_texts()] == ranked
    before = heatmap_url(page)
    buttons.nth(1).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text(f"Evidence for {ranked[1]}: ")
    expect(buttons.nth(1)).to_have_attribute("aria-pressed", "true")
    assert heatmap_url(page) != before
    page.get_by_label("Heatmap of").select_option(ranked[2])
    expect(page.locator("#student figcaption")).to_contain_text(f"evidence for {ranked[2]}: ")
    page.get_by_label("Heatmap of").select_option("")
    assert heatmap_url(page) == before


def test_contrast_is_the_difference_of_two_maps(page: Page, easy: Dataset) -> None:
    outputs = choose(page, as_file("known.png", Image.fromarray(easy.test.images[0])))
    top, second, _ = (int(k) for k in np.argsort(outputs["logits"])[::-1])
    contrast = page.get_by_label("Contrast with")
    expect(contrast).to_have_value("")
    before = heatmap_url(page)
    contrast.focus()
    page.keyboard.press("ArrowDown")  # the first class
    shown = next(k for k in (top, second) if k != 0)
    expect(page.locator("#status")).to_contain_text(f"Evidence for {easy.classes[shown]} vs. {easy.classes[0]}: ")
    contrast.select_option(easy.classes[second])
    name = f"{easy.classes[top]} vs. {easy.classes[second]}"
    expect(page.locator("#student figcaption")).to_contain_text(f"evidence for {name}: ")
    difference = np.subtract(outputs["maps"][top], outputs["maps"][second])
    drawn = page.evaluate(
        """async ([values, grid]) => {
            const { drawMap } = await import("./heatmap.js");
            const { colormap } = await (await fetch("page.json")).json();
            const canvas = document.createElement("canvas");
            drawMap(canvas, Float32Array.from(values), grid, colormap);
            return canvas.toDataURL();
        }""",
        [difference.tolist(), outputs["grid"]],
    )
    assert heatmap_url(page) == drawn != before
    contrast.select_option("off")
    assert heatmap_url(page) == before


def test_class_is_never_contrasted_with_itself(page: Page, easy: Dataset) -> None:
    outputs = choose(page, as_file("known.png", Image.fromarray(easy.test.images[0])))
    top, second, third = (easy.classes[k] for k in np.argsort(outputs["logits"])[::-1])
    caption = page.locator("#student figcaption")
    page.get_by_label("Contrast with").select_option(top)
    expect(caption).to_contain_text(f"evidence for {second} vs. {top}: ")
    page.get_by_label("Heatmap of").select_option(third)
    expect(caption).to_contain_text(f"evidence for {third} vs. {top}: ")
    page.get_by_label("Contrast with").select_option(third)
    expect(caption).to_contain_text(f"evidence for {top} vs. {third}: ")
    page.get_by_label("Heatmap of").select_option(third)
    expect(caption).to_contain_text(f"evidence for {third}: ")
    expect(page.get_by_label("Contrast with")).to_have_value("")
    page.get_by_label("Contrast with").select_option(second)
    choose(page, as_file("other.png", Image.fromarray(easy.test.images[1])))
    expect(page.get_by_label("Contrast with")).to_have_value("")


def test_contrast_applies_to_the_teacher(page: Page, fp32: Path, easy: Dataset) -> None:
    config = json.loads((fp32 / "page.json").read_text(encoding="utf-8"))
    page.get_by_role("button", name=config["examples"][1]["true_class"], exact=True).first.click()
    expect(page.locator("#teacher")).to_be_visible()
    page.get_by_label("Heatmap of").select_option(easy.classes[0])
    page.get_by_label("Contrast with").select_option(easy.classes[2])
    expect(page.locator("#teacher figcaption")).to_contain_text(f"{easy.classes[0]} vs. {easy.classes[2]}: ")


def test_slider_changes_the_opacity(page: Page, easy: Dataset) -> None:
    choose(page, as_file("known.png", Image.fromarray(easy.test.images[0])))
    page.get_by_label("Heatmap opacity").focus()
    page.keyboard.press("Home")
    without_heatmap = page.locator("#student .frame").screenshot()
    expect(page.locator("#student .map")).to_have_css("opacity", "0")
    page.keyboard.press("End")
    expect(page.locator("#student .map")).to_have_css("opacity", "1")
    assert page.locator("#student .frame").screenshot() != without_heatmap


# --- examples and the teacher


def test_example_is_shown_with_the_map_of_the_teacher(page: Page, fp32: Path) -> None:
    config = json.loads((fp32 / "page.json").read_text(encoding="utf-8"))
    page.get_by_role("button", name=config["examples"][1]["true_class"], exact=True).first.click()
    expect(page.locator("#status")).to_contain_text("Example (")
    expect(page.locator("#teacher")).to_be_visible()
    expect(page.locator("#teacher figcaption")).to_contain_text("teacher: ")
    choose(page, as_file("own.png", Image.new("RGB", (16, 16), "red")))
    expect(page.locator("#teacher")).to_be_hidden()


def test_probabilities_and_maps_of_the_teacher_match_python(exported: Any, finished: Any) -> None:
    config = json.loads((exported.page / "page.json").read_text(encoding="utf-8"))
    teacher = camkd.load(finished.folder / "teacher")
    for example in config["examples"][:3]:
        x = to_input(np.asarray(Image.open(exported.page / example["file"]))[None])
        with torch.no_grad():
            prediction = camkd.predict(teacher, torch.from_numpy(x))
        assert prediction.cams is not None
        for k, values in example["teacher"]["maps"].items():
            np.testing.assert_allclose(values, prediction.cams[0, int(k)].flatten(), atol=1e-3)
            probability = float(prediction.logits.softmax(1)[0, int(k)])
            assert example["teacher"]["probabilities"][k] == pytest.approx(probability, abs=1e-3)


# --- inputs without an answer


def unreadable_files() -> list[tuple[dict[str, Any], str]]:
    whole = as_file("x.png", Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    huge = as_file("huge.png", Image.new("1", (10_000, 10_000)))
    return [
        (
            {"name": "text.png", "mimeType": "image/png", "buffer": b"no image"},
            "must be a JPEG, PNG, WebP, GIF, BMP or AVIF",
        ),
        ({"name": "empty.jpg", "mimeType": "image/jpeg", "buffer": b""}, "is empty (0 bytes). Choose another image."),
        ({**whole, "name": "half.png", "buffer": whole["buffer"][:5000]}, "is corrupt"),
        (huge, "must have at most 89,478,485 pixels, got 10000 x 10000. Resize the image."),
    ]


def expect_no_answer(page: Page, message: str) -> None:
    """Expect an error, and neither an image nor a prediction of an earlier input."""
    expect(page.get_by_role("alert")).to_contain_text(message)
    expect(page.locator("#result")).to_be_hidden()
    expect(page.locator("#status")).to_be_empty()
    assert page.evaluate("camkd") is None


def test_unreadable_file_replaces_the_earlier_answer_by_an_error(page: Page, easy: Dataset) -> None:
    for file, reason in unreadable_files():
        choose(page, as_file("known.png", Image.fromarray(easy.test.images[0])))
        expect(page.get_by_role("alert")).to_be_empty()
        expect(page.locator("#result")).to_be_visible()
        page.set_input_files("#file", file)
        expect_no_answer(page, f"{file['name']} {reason}")


def test_error_of_an_earlier_file_does_not_replace_a_later_answer(page: Page, easy: Dataset) -> None:
    """The first file is refused after the second is answered: its decoding waits for the answer."""
    page.evaluate("""() => {
        const decode = globalThis.createImageBitmap;
        const answered = new Promise(resolve => new MutationObserver(resolve).observe(
            document.querySelector('#status'), { childList: true }));
        let calls = 0;
        globalThis.createImageBitmap = async (...options) => {
            if (calls++) return decode(...options);
            await answered;
            setTimeout(() => { globalThis.refused = true; });
            throw new Error('late');
        };
    }""")
    page.set_input_files("#file", as_file("first.png", Image.fromarray(easy.test.images[0])))
    choose(page, as_file("second.png", Image.fromarray(easy.test.images[1])))
    page.wait_for_function("globalThis.refused")
    expect(page.get_by_role("alert")).to_be_empty()
    expect(page.locator("#result")).to_be_visible()


def test_camera_that_ends_leaves_no_answer(browser: Browser, address: str) -> None:
    context = browser.new_context(permissions=["camera"])
    with open_page(context, address) as page:
        page.evaluate("""() => {
            const devices = navigator.mediaDevices, open = devices.getUserMedia.bind(devices);
            devices.getUserMedia = async options => (globalThis.stream = await open(options));
        }""")
        page.get_by_role("button", name="Use the camera").click()
        expect(page.locator("#result")).to_be_visible()
        page.evaluate("stream.getVideoTracks()[0].dispatchEvent(new Event('ended'))")
        expect_no_answer(page, "The camera has stopped.")
        expect(page.get_by_role("button", name="Use the camera")).to_have_attribute("aria-pressed", "false")
    context.close()


def test_camera_without_permission_leaves_no_answer(page: Page, easy: Dataset) -> None:
    choose(page, as_file("known.png", Image.fromarray(easy.test.images[0])))
    page.evaluate("""() => {
        navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', 'NotAllowedError'); };
    }""")
    page.get_by_role("button", name="Use the camera").click()
    expect_no_answer(page, "The camera is not available (permission denied).")


def test_files_that_python_rejects_are_rejected(page: Page) -> None:
    reasons = dict.fromkeys(corrupt_files(), "is corrupt. Choose another image.")
    others = {**files_of_other_formats(), **files_of_no_image(), "TIFF": encode(Image.fromarray(photo()), "TIFF")}
    for name in others:
        got = "an unknown format" if name == "a corrupt or unknown header" else name
        reasons[name] = f"must be a JPEG, PNG, WebP, GIF, BMP or AVIF image, got {got}. Convert the file."
    for name, content in {**corrupt_files(), **others}.items():
        page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": content})
        expect(page.get_by_role("alert")).to_have_text(f"{name} {reasons[name]}")


def test_truncated_files_are_rejected_even_where_the_browser_reads_them(page: Page) -> None:
    """Chromium rejects these files by itself, Firefox decodes the part that is there."""
    check = """async content => {
        const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0));
        return (await import('./images.js')).hasJpegEnd(bytes);
    }"""
    # as the end of a thumbnail in the EXIF data
    jpeg = encode(Image.fromarray(photo()), "JPEG", exif=b"Exif\0\0\xff\xd9")
    for end, expected in ((len(jpeg), True), (len(jpeg) - 2, False), (len(jpeg) // 2, False), (30, False)):
        assert page.evaluate(check, base64.b64encode(jpeg[:end]).decode()) is expected, end


def test_jpeg_is_cut_where_python_refuses_it(page: Page, tmp_path: Path) -> None:
    for width, height, progressive in ((48, 40, False), (300, 200, False), (300, 200, True)):
        options = {"quality": 85, "progressive": progressive, "exif": b"Exif\0\0" + tiff_header(6)}
        content = encode(Image.fromarray(photo(width, height)), "JPEG", **options)
        for cut in (1, 2, 5, 20, 100, len(content) // 10, len(content) // 4, len(content) // 2):
            case = f"{width}-{progressive}-{cut}"
            try:
                decode_content(tmp_path, content[:-cut])
            except ValueError:
                page.set_input_files("#file", {"name": case, "mimeType": "", "buffer": content[:-cut]})
                expect(page.get_by_role("alert")).to_have_text(f"{case} is corrupt. Choose another image.")
            else:
                assert difference_to_python(page, tmp_path, content[:-cut]).max() <= 1, case


def test_gray_png_of_16_bits_is_scaled_by_the_value_range(browser: Browser, fp32: Path, tmp_path: Path) -> None:
    """Every filter of PNG, a transparent value, and values outside of the range."""
    value_range = (29_455.0, 29_663.0)
    rng = np.random.default_rng(0)
    smooth = photo(60, 40)[..., 0].astype(np.uint16) + 29_430
    noise = rng.integers(29_455, 29_664, (40, 48)).astype(np.uint16)
    transparent = png_chunk(b"tRNS", struct.pack(">H", int(noise[9, 9])))
    files = [encode(Image.fromarray(smooth), "PNG"), png(noise, 16), png(noise, 16, transparent), png(noise, 16)[:-12]]
    context = browser.new_context()
    config = json.loads((fp32 / "page.json").read_text(encoding="utf-8")) | {"value_range": value_range}
    context.route("**/page.json", lambda route: route.fulfill(json=config))
    with serve(fp32) as address, open_page(context, address) as page:
        for number, content in enumerate(files):
            (tmp_path / "given").write_bytes(content)
            outputs = choose(page, {"name": f"wide-{number}", "mimeType": "", "buffer": content})
            np.testing.assert_array_equal(
                model_input(outputs), decode(tmp_path / "given", Preprocessing(16, value_range=value_range))
            )
            assert len(np.unique(model_input(outputs))) > 50
        rotated = png(noise, 16, png_chunk(b"eXIf", tiff_header(6)))
        page.set_input_files("#file", {"name": "rotated", "mimeType": "", "buffer": rotated})
        expect(page.get_by_role("alert")).to_contain_text("rotated is a 16-bit PNG image with interlacing or EXIF")
    context.close()


def test_avif_has_the_pixels_of_python_in_every_orientation(page: Page, tmp_path: Path) -> None:
    if ".avif" not in Image.registered_extensions():
        pytest.skip("this Pillow writes no AVIF")
    for orientation in UPRIGHT:
        assert difference_to_python(page, tmp_path, oriented(photo(), "AVIF", orientation)).max() <= 2, orientation


def test_long_names_are_cut_in_the_middle(page: Page, easy: Dataset) -> None:
    cut = "IMG_" + "x" * 16 + "…" + "x" * 14 + ".jpeg"
    name = "IMG_" + "x" * 200 + ".jpeg"
    page.set_input_files("#file", as_file(name, Image.fromarray(easy.test.images[0])))
    expect(page.locator("#status")).to_contain_text(f"{cut}: ")
    page.set_input_files("#file", {"name": name, "mimeType": "image/jpeg", "buffer": b""})
    expect(page.get_by_role("alert")).to_contain_text(f"{cut} is empty")


# --- clipboard, drop and camera


@pytest.mark.parametrize(("event", "property_name"), [("paste", "clipboardData"), ("drop", "dataTransfer")])
def test_paste_and_drop(page: Page, easy: Dataset, event: str, property_name: str) -> None:
    content = base64.b64encode(as_file("", Image.fromarray(easy.test.images[2]))["buffer"]).decode()
    dispatch = """([event, propertyName, content, name]) => {
        const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0)), transfer = new DataTransfer();
        if (name) transfer.items.add(new File([bytes], name, { type: 'image/png' }));
        const Kind = event === 'paste' ? ClipboardEvent : DragEvent;
        document.body.dispatchEvent(new Kind(event, { [propertyName]: transfer, bubbles: true, cancelable: true }));
    }"""
    page.evaluate(dispatch, [event, property_name, content, "given.png"])
    expect(page.locator("#status")).to_contain_text("given.png: ")
    page.evaluate(dispatch, [event, property_name, content, ""])
    expect_no_answer(page, "contains no image file")


def test_camera_shows_predictions_and_frames_per_second(browser: Browser, address: str) -> None:
    context = browser.new_context(permissions=["camera"])
    with open_page(context, address) as page:
        page.get_by_role("button", name="Use the camera").click()
        expect(page.locator("#speed")).to_have_text(re.compile(r"\d+ frames/s, [\d.]+ ms in the model"))
        expect(page.locator("#student .map")).to_be_visible()
        page.get_by_role("button", name="Stop the camera").click()
        expect(page.get_by_role("button", name="Use the camera")).to_have_attribute("aria-pressed", "false")
        expect(page.locator("#speed")).to_be_empty()
    context.close()


# --- accessibility, small screens and offline use


def test_keyboard_navigation_and_accessible_names(page: Page) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    expect(page.get_by_label("Choose an image")).to_be_focused()
    for name in ("paste", "camera"):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == name
    page.keyboard.press("Tab")  # to the first example, as there is no result yet
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("Example (")
    expect(page.get_by_role("img", name=re.compile("evidence for .*: strongest")).first).to_be_visible()
    unnamed = page.evaluate("""() => [...document.querySelectorAll('button, input, select')]
        .filter(e => e.offsetParent && !(e.labels?.length || e.textContent.trim() || e.getAttribute('aria-label')))
        .map(e => e.outerHTML)""")
    assert unnamed == []


def test_page_fits_a_phone(browser: Browser, address: str) -> None:
    context = browser.new_context(viewport={"width": 340, "height": 700}, has_touch=True)
    with open_page(context, address) as page:
        page.locator("#examples button").first.tap()
        expect(page.locator("#result")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 340
        heights = page.evaluate("[...document.querySelectorAll('button, select')].map(e => e.offsetHeight)")
        assert min(height for height in heights if height) >= 44
    context.close()


def open_in_context(context: BrowserContext, address: str) -> Page:
    """Open a page, wait until it is ready and its service worker controls it."""
    page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    page.goto(address)
    expect(page.locator("#status")).to_have_text("Ready.")
    wait_for_worker(page)
    return page


def wait_for_worker(page: Page) -> None:
    """Wait until the newest service worker of a page is active and controls it."""
    page.evaluate("""async () => {
        const registration = await navigator.serviceWorker.ready;
        await registration.update();
        const worker = registration.installing ?? registration.waiting ?? registration.active;
        const changed = () => new Promise(done => worker.addEventListener('statechange', done, { once: true }));
        while (worker.state !== 'activated') await changed();
    }""")
    page.wait_for_function("navigator.serviceWorker.controller")


def shown_model(page: Page, image: np.ndarray[Any, Any]) -> tuple[list[str], list[float]]:
    """The classes of the model on a page, and its logits for an image."""
    expect(page.locator("#status")).to_have_text("Ready.")
    names = page.locator("#map-class option:not([value=''])").all_inner_texts()
    return names, choose(page, as_file("known.png", Image.fromarray(image)))["logits"]


def expected_model(folder: Path, image: np.ndarray[Any, Any]) -> tuple[list[str], Any]:
    config = json.loads((folder / "page.json").read_text(encoding="utf-8"))
    logits, _ = run_session(open_session(folder / "model.onnx"), to_input(image[None]))
    return config["classes"], pytest.approx(logits[0].tolist(), abs=0.05 * float(np.abs(logits).max()))


@pytest.mark.parametrize("worker", [True, False], ids=["service worker", "no service worker"])
def test_another_page_at_the_same_address_is_shown_at_once(
    browser: Browser, exported: Any, other_page: Path, easy: Dataset, worker: bool
) -> None:
    image = easy.test.images[0]
    assert expected_model(exported.page, image)[1] != expected_model(other_page, image)[1].expected
    context = browser.new_context(service_workers="allow" if worker else "block")
    with serve(exported.page) as address:
        page = open_in_context(context, address) if worker else context.new_page()
        page.goto(address)
        assert shown_model(page, image) == expected_model(exported.page, image)
    port = int(address.rstrip("/").rpartition(":")[2])
    with serve(other_page, port):
        for visit in (lambda: page.goto(address), lambda: page.reload(), lambda: context.new_page().goto(address)):
            visit()
            assert shown_model(context.pages[-1], image) == expected_model(other_page, image)
            assert context.pages[-1].locator("#examples img").count() == 8
    with serve(exported.page, port):  # back again
        page.reload()
        assert shown_model(page, image) == expected_model(exported.page, image)
    context.close()


def test_static_server_shows_another_page_at_once_and_offline(
    browser: Browser, exported: Any, other_page: Path, easy: Dataset
) -> None:
    image = easy.test.images[0]
    context = browser.new_context()
    with serve(exported.page, create=static_server) as address:
        page = open_in_context(context, address)
        page.reload()
        assert shown_model(page, image) == expected_model(exported.page, image)
    with serve(other_page, int(address.rstrip("/").rpartition(":")[2]), static_server):
        page.reload()
        assert shown_model(page, image) == expected_model(other_page, image)
        wait_for_worker(page)
    page.reload()  # without a server
    assert shown_model(page, image) == expected_model(other_page, image)
    context.close()


def test_page_that_was_exported_again_is_shown_at_once(
    browser: Browser, exported: Any, other_page: Path, easy: Dataset, tmp_path: Path
) -> None:
    image = easy.test.images[0]
    folder = shutil.copytree(exported.page, tmp_path / "page")
    context = browser.new_context()
    with serve(folder) as address:
        page = open_in_context(context, address)
        with commit_dir(folder) as temporary:
            shutil.copytree(other_page, temporary, dirs_exist_ok=True)
        page.get_by_role("button", name=easy.classes[1], exact=True).first.click()
        expect(page.locator("#status")).to_contain_text(f"Example ({easy.classes[1]})")  # the open page stays whole
        page.reload()
        assert shown_model(page, image) == expected_model(folder, image)
        wait_for_worker(page)
    page.reload()  # without a server
    assert shown_model(page, image) == expected_model(folder, image)
    context.close()


def test_page_never_combines_two_versions(browser: Browser, exported: Any, other_page: Path) -> None:
    """The connection ends after page.json of another version: the cached model of the first version is not used."""
    context = browser.new_context()
    with serve(exported.page) as address:
        page = open_in_context(context, address)
        context.route("**/page.json", lambda route: route.fulfill(path=other_page / "page.json"))
        context.route("**/model.onnx*", lambda route: route.abort())
        page.reload()
        expect(page.get_by_role("alert")).to_contain_text("The page cannot start")
    context.close()


def test_pages_of_one_server_have_caches_of_their_own(
    browser: Browser, exported: Any, other_page: Path, easy: Dataset, tmp_path: Path
) -> None:
    image = easy.test.images[0]
    (tmp_path / "page.json").touch()
    folders = {name: shutil.copytree(page, tmp_path / name) for name, page in (("a", exported.page), ("b", other_page))}
    context = browser.new_context()
    with serve(tmp_path) as address:
        pages = {name: open_in_context(context, f"{address}{name}/") for name in folders}
    for name, page in pages.items():  # without a server
        page.reload()
        assert shown_model(page, image) == expected_model(folders[name], image)
    context.close()


def test_page_works_offline_once_loaded(browser: Browser, fp32: Path, easy: Dataset) -> None:
    context = browser.new_context()
    with serve(fp32) as address:
        page = context.new_page()
        page.set_default_timeout(TIMEOUT)
        page.goto(address)
        page.evaluate("navigator.serviceWorker.ready.then(() => true)")
    context.set_offline(True)  # the server is stopped too
    page.reload()
    expect(page.locator("#status")).to_have_text("Ready.")
    choose(page, as_file("known.png", Image.fromarray(easy.test.images[0])))
    context.close()


def test_screenshot_of_the_documentation(browser: Browser, cifar10_folder: Path, runtime: Path, tmp_path: Path) -> None:
    """The page of the shipped model with a real image. CAMKD_SCREENSHOT keeps the screenshot."""
    try:
        camkd.load(SCREENSHOT_MODEL)
    except InputError as error:
        pytest.skip(f"{SCREENSHOT_MODEL} cannot be loaded: {error}")
    for split, source in product(("train", "val", "test"), sorted((cifar10_folder / "test").iterdir())):
        target = tmp_path / "subset" / split / source.name
        target.mkdir(parents=True)
        for path in sorted(source.iterdir())[:2]:
            shutil.copy(path, target / path.name)
    options = ["--data", str(tmp_path / "subset"), "--runtime", str(runtime)]
    assert main(["export", SCREENSHOT_MODEL, "--web", str(tmp_path / "page"), *options]) == 0
    context = browser.new_context(viewport={"width": 1000, "height": 760})
    with serve(tmp_path / "page") as address, open_page(context, address) as page:
        page.get_by_role("button", name="horse").click()
        expect(page.get_by_role("status")).to_contain_text("Example (horse): ")
        content = page.screenshot(path=SCREENSHOT, full_page=True)
    context.close()
    with Image.open(io.BytesIO(content)) as image:
        assert len(image.convert("RGB").getcolors(1 << 22) or []) > 1000


def test_index_html_has_the_policy_of_the_server(exported: Any) -> None:
    text = (exported.page / "index.html").read_text(encoding="utf-8")
    assert f'content="{CONTENT_SECURITY_POLICY}"' in text
    assert "unsafe-inline" not in text
    assert not re.search(r'<script(?![^>]*src=)|style="|onclick=|https?://', text)
