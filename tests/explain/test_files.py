"""Maps of image files: input files, output formats and pixels of figures and overlays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camkd.data.images import decode
from camkd.data.walker import IMAGE_TYPES
from camkd.explain.explain import Explanation, ModelMaps, draw_explanation
from camkd.explain.files import (
    MAX_PANELS,
    check_figure_size,
    decode_batches,
    find_image_files,
    output_format,
    prediction_records,
    write_figure,
    write_maps,
    write_overlays,
    write_records,
)
from camkd.explain.plots import overlay
from camkd.types import InputError, Preprocessing

PREPROCESSING = Preprocessing(16)
CLASSES = ("cat", "dog", "owl")


def no_progress(done: int, total: int, description: str) -> None:
    pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A landscape, a portrait and a small image at three depths, beside a text file, a hidden file and a link."""
    root = tmp_path / "images"
    (root / "a" / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, (width, height) in (("wide.png", (60, 40)), ("a/tall.png", (30, 51)), ("a/deep/small.png", (8, 8))):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(root / name)
    (root / "a" / "notes.txt").write_text("not an image")
    (root / ".hidden.png").write_bytes((root / "wide.png").read_bytes())
    (root / "a" / "again").symlink_to(root)
    return root


def random_explanation(count: int, top: int = 1) -> Explanation:
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet(np.ones(3), count).astype(np.float32)
    maps = rng.standard_normal((count, top, 4, 4)).astype(np.float32)
    class_ids = np.argsort(-probabilities, 1)[:, :top]
    teacher = ModelMaps(probabilities, maps)
    student = ModelMaps(probabilities[::-1], 2 * maps)
    return Explanation(class_ids, {"teacher": teacher, "student": student})


def student_maps(count: int, top: int = 1) -> np.ndarray:
    return random_explanation(count, top).maps_by_model["student"].maps


# --- input files


def test_folders_are_searched_recursively_without_duplicates(folder: Path) -> None:
    paths, skipped = find_image_files([str(folder / "wide.png"), str(folder)])
    assert [str(path.relative_to(folder)) for path in paths] == ["wide.png", "a/deep/small.png", "a/tall.png"]
    assert [str(path.relative_to(folder)) for path in skipped] == ["a/notes.txt"]


def test_folder_without_images_is_rejected(folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match="empty"):
        find_image_files([str(folder), str(folder / "empty")])


def test_message_of_a_folder_with_other_files_only_counts_them(tmp_path: Path) -> None:
    for name in ("a.heic", "b.HEIC", "c.jxl", "LICENSE", "d." + "x" * 90):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError) as caught:
        find_image_files([str(tmp_path)])
    assert str(caught.value) == (
        f"'{tmp_path}' must contain images ({IMAGE_TYPES}), got 2 .heic, 1 .jxl, "
        "1 .xxxxxxx…xxxxxxx, 1 without suffix. Choose images or a folder that contains images."
    )


def test_images_are_decoded_in_batches(folder: Path) -> None:
    paths = find_image_files([str(folder)])[0] * 30
    progress: list[tuple[int, int]] = []
    preprocessings = {"a": PREPROCESSING, "b": Preprocessing(8, "pad")}
    batches = list(decode_batches(paths, preprocessings, lambda done, total, _: progress.append((done, total))))
    assert [len(batch["a"]) for batch in batches] == [32, 32, 26]
    assert progress == [(32, 90), (64, 90), (90, 90)]
    for title, preprocessing in preprocessings.items():
        images = np.concatenate([batch[title] for batch in batches])
        np.testing.assert_array_equal(images, np.stack([decode(path, preprocessing) for path in paths]))


@pytest.mark.parametrize("content", [None, b"", b"not an image", b"\x89PNG\r\n\x1a\n broken"])
def test_unreadable_image_is_named(tmp_path: Path, content: bytes | None) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "good.png")
    if content is not None:
        (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.png' must be a readable image file"):
        list(decode_batches([tmp_path / "good.png", tmp_path / "bad.png"], {"a": PREPROCESSING}, no_progress))


# --- output formats


@pytest.mark.parametrize(
    ("name", "kind"), [("x.png", "png"), ("X.NPZ", "npz"), ("x.json", "json"), ("x", "folder"), ("v1.5", "folder")]
)
def test_output_format_follows_from_the_path(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / "v1.5").mkdir()
    assert output_format(tmp_path / name) == kind


@pytest.mark.parametrize("name", ["x.jpg", "x.pngg", "file"])
def test_unknown_output_format_is_rejected(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"got {tmp_path / name}"):
        output_format(tmp_path / name)


def test_output_format_message() -> None:
    with pytest.raises(InputError) as caught:
        output_format(Path("x.jpg"))
    assert str(caught.value) == (
        "`--out` must be a .png, .npz or .json file or a folder, got x.jpg. "
        "Choose another file name, or a folder for overlays."
    )


def test_figure_has_a_largest_number_of_panels() -> None:
    check_figure_size(MAX_PANELS // 3, 2)
    with pytest.raises(InputError, match="got 603: 201 images with 2 maps each"):
        check_figure_size(MAX_PANELS // 3 + 1, 2)


# --- overlays


def test_overlays_have_the_resolution_of_the_image(folder: Path, tmp_path: Path) -> None:
    paths, _ = find_image_files([str(folder)])
    maps = student_maps(3)
    write_overlays(tmp_path / "out", paths, maps, no_progress, PREPROCESSING)
    files = sorted(path for path in (tmp_path / "out").rglob("[!.]*") if path.is_file())
    assert [str(path.relative_to(tmp_path / "out")) for path in files] == [
        "a/deep/small.png.png",
        "a/tall.png.png",
        "wide.png.png",
    ]
    center_squares = {"small.png": np.s_[:, :], "tall.png": np.s_[10:40, :], "wide.png": np.s_[:, 10:50]}
    for path, cam in zip(paths, maps, strict=True):
        file = tmp_path / "out" / path.relative_to(folder).with_name(f"{path.name}.png")
        pixels = np.asarray(Image.open(file))
        image = np.asarray(Image.open(path))
        assert pixels.shape == image.shape
        square = center_squares[path.name]
        side = min(image.shape[:2])
        np.testing.assert_array_equal(pixels[square], overlay(image[square], cam[0], (side, side)))
        outside = np.ones(image.shape[:2], bool)
        outside[square] = False
        assert (pixels[outside] >= 255 * 0.55 - 1).all(), "must be pale"
        assert (np.ptp(pixels[outside].astype(int), axis=-1) == 0).all(), "must be gray"


def test_overlays_of_several_classes_are_numbered(folder: Path, tmp_path: Path) -> None:
    write_overlays(tmp_path / "out", [folder / "wide.png"], student_maps(1, top=2), no_progress, PREPROCESSING)
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == ["wide.png.1.png", "wide.png.2.png"]


def test_two_links_to_one_image_have_separate_overlays(folder: Path, tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        (tmp_path / name).symlink_to(folder / "wide.png")
    write_overlays(
        tmp_path / "out", [tmp_path / "one.png", tmp_path / "two.png"], student_maps(2), no_progress, PREPROCESSING
    )
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == ["one.png.png", "two.png.png"]


def test_no_overlay_is_written_if_an_image_is_unreadable(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"bad\.png"):
        write_overlays(
            tmp_path / "out",
            [folder / "wide.png", tmp_path / "bad.png"],
            student_maps(2),
            no_progress,
            PREPROCESSING,
        )
    assert not (tmp_path / "out").exists()


# --- figures and numbers


@pytest.mark.parametrize("top", [1, 2])
def test_figure_shows_the_original_pixels(folder: Path, tmp_path: Path, top: int) -> None:
    paths, _ = find_image_files([str(folder)])
    write_figure(tmp_path / "cams.png", paths, random_explanation(3, top), CLASSES, PREPROCESSING)
    figure = np.asarray(Image.open(tmp_path / "cams.png").convert("RGB"))
    small = np.asarray(Image.open(paths[0]))
    np.testing.assert_array_equal(figure[44 : 44 + 192, 24 : 24 + 192], small.repeat(24, 0).repeat(24, 1))


def test_figure_names_the_classes_below_the_panels(folder: Path, tmp_path: Path) -> None:
    paths, _ = find_image_files([str(folder)])
    heights = []
    for classes in (CLASSES, [f"class number {index}" for index in range(20)], ["MMMM WWWW"] * 20):
        write_figure(tmp_path / "cams.png", paths, random_explanation(3), classes, PREPROCESSING)
        figure = np.asarray(Image.open(tmp_path / "cams.png").convert("L"))
        panels_end = 44 + 2 * (192 + 46)
        footnote = figure[panels_end + 54 :] < 128
        assert footnote.any()
        assert not footnote[-4:].any(), "the text ends inside the figure"
        assert not footnote[:, -20:].any(), "the text ends inside the figure"
        heights.append(len(figure))
    assert min(heights[1:]) > heights[0]


def test_figure_of_test_images_has_no_footnote(tmp_path: Path) -> None:
    images = np.zeros((3, 8, 8, 3), np.uint8)
    draw_explanation(images, random_explanation(3), CLASSES, tmp_path / "cams.png", true_classes=["cat"] * 3)
    with Image.open(tmp_path / "cams.png") as figure:
        assert figure.height == 44 + 2 * (192 + 46) + 62


def test_npz_holds_images_classes_probabilities_and_maps(folder: Path, tmp_path: Path) -> None:
    paths, _ = find_image_files([str(folder)])
    explanation = random_explanation(3, top=2)
    write_maps(tmp_path / "maps.npz", paths, explanation, CLASSES)
    with np.load(tmp_path / "maps.npz") as arrays:  # without pickles
        assert arrays["images"].tolist() == [str(path) for path in paths]
        assert tuple(arrays["classes"]) == CLASSES
        np.testing.assert_array_equal(arrays["class_ids"], explanation.class_ids)
        assert arrays["against"].tolist() == []
        for title, model_maps in explanation.maps_by_model.items():
            np.testing.assert_array_equal(arrays[f"{title}_maps"], model_maps.maps)
            np.testing.assert_array_equal(arrays[f"{title}_probabilities"], model_maps.probabilities)


def test_prediction_records_hold_the_prediction_and_the_classes_shown(folder: Path) -> None:
    paths, _ = find_image_files([str(folder)])
    explanation = random_explanation(3, top=2)
    for row, record in enumerate(prediction_records(paths, explanation, CLASSES).values()):
        for title, model_maps in explanation.maps_by_model.items():
            probabilities = model_maps.probabilities[row]
            assert record[title]["class"] == CLASSES[probabilities.argmax()]
            assert record[title]["confidence"] == pytest.approx(float(probabilities.max()))
            expected = [
                {"class": CLASSES[k], "confidence": float(probabilities[k])} for k in explanation.class_ids[row]
            ]
            assert record[title]["classes_shown"] == expected


def test_json_holds_the_prediction_records_and_the_maps(folder: Path, tmp_path: Path) -> None:
    paths, _ = find_image_files([str(folder)])
    explanation = random_explanation(3, top=2)
    write_records(tmp_path / "maps.json", paths, explanation, CLASSES)
    content = json.loads((tmp_path / "maps.json").read_text(encoding="utf-8"))
    assert content["classes"] == list(CLASSES)
    assert content["against"] == []
    stored = content["images"]
    records = prediction_records(paths, explanation, CLASSES)
    assert list(stored) == list(records) == [str(path) for path in paths]
    for row, (path, record) in enumerate(records.items()):
        for title, model_maps in explanation.maps_by_model.items():
            maps = [entry.pop("map") for entry in stored[path][title]["classes_shown"]]
            np.testing.assert_array_equal(np.float32(maps), model_maps.maps[row])
            assert stored[path][title] == record[title]


def test_numbers_name_the_classes_of_a_contrast(folder: Path, tmp_path: Path) -> None:
    paths = find_image_files([str(folder)])
    explanation = random_explanation(3)._replace(against=(2, 0))
    write_maps(tmp_path / "maps.npz", paths, explanation, CLASSES)
    write_records(tmp_path / "maps.json", paths, explanation, CLASSES)
    with np.load(tmp_path / "maps.npz") as arrays:
        assert arrays["classes"][arrays["against"]].tolist() == ["owl", "cat"]
    assert json.loads((tmp_path / "maps.json").read_text(encoding="utf-8"))["against"] == ["owl", "cat"]
