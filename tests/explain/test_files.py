"""Picture files in, maps out: which files are read, what is written, and in which pixels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camkd.explain.explain import Explanation, ModelMaps
from camkd.explain.files import (
    PANELS,
    check_figure_size,
    decoded,
    find_image_files,
    iter_decoded,
    output_format,
    prediction_records,
    write_figure,
    write_maps,
    write_overlays,
    write_records,
)
from camkd.explain.plots import overlay
from camkd.types import InputError

CLASSES = ("cat", "dog", "owl")


def silent(done: int, total: int, what: str) -> None:
    pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A lying, a standing and a small picture, at three depths, and what is none."""
    root = tmp_path / "pictures"
    (root / "a" / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("wide.png", (60, 40)), ("a/tall.png", (30, 51)), ("a/deep/small.png", (8, 8))):
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8)).save(root / name)
    (root / "a" / "notes.txt").write_text("no picture")
    (root / ".hidden.png").write_bytes((root / "wide.png").read_bytes())
    (root / "a" / "again").symlink_to(root)
    return root


def looks_at(count: int, top: int = 1) -> Explanation:
    rng = np.random.default_rng(1)
    sure = rng.dirichlet(np.ones(3), count).astype(np.float32)
    maps = rng.standard_normal((count, top, 4, 4)).astype(np.float32)
    shown = np.argsort(-sure, 1)[:, :top]
    return Explanation(shown, {"teacher": ModelMaps(sure, maps), "student": ModelMaps(sure[::-1], 2 * maps)})


def test_folders_are_searched_to_their_depth_and_each_picture_counts_once(folder: Path) -> None:
    found = find_image_files([str(folder / "wide.png"), str(folder)])
    assert [str(path.relative_to(folder)) for path in found] == ["wide.png", "a/deep/small.png", "a/tall.png"]


def test_a_folder_without_pictures_is_refused(folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match=r"no pictures \(bmp, .*\) were found in '.*empty'"):
        find_image_files([str(folder), str(folder / "empty")])


def test_pictures_are_read_a_few_at_a_time(folder: Path) -> None:
    paths = find_image_files([str(folder)]) * 30
    told: list[tuple[int, int]] = []
    found = list(iter_decoded(paths, 16, lambda done, total, what: told.append((done, total))))
    assert [len(part) for part in found] == [32, 32, 26]
    assert told == [(32, 90), (64, 90), (90, 90)]
    np.testing.assert_array_equal(np.concatenate(found), decoded(paths, 16))


@pytest.mark.parametrize("content", [None, b"", b"no picture", b"\x89PNG\r\n\x1a\n broken"])
def test_picture_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "good.png")
    if content is not None:
        (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.png' cannot be read as a picture"):
        decoded([tmp_path / "good.png", tmp_path / "bad.png"], 16)


@pytest.mark.parametrize(
    ("name", "kind"), [("x.png", "png"), ("X.NPZ", "npz"), ("x.json", "json"), ("x", "folder"), ("v1.5", "folder")]
)
def test_the_name_says_what_is_written(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / "v1.5").mkdir()
    assert output_format(tmp_path / name) == kind


@pytest.mark.parametrize("name", ["x.jpg", "x.pngg", "file"])
def test_a_name_that_says_nothing_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"is no \.png, \.npz or \.json file"):
        output_format(tmp_path / name)


def test_a_figure_has_its_limits() -> None:
    check_figure_size(PANELS // 3, 2)
    with pytest.raises(InputError, match=r"201 pictures with 2 maps each .* give --out a folder"):
        check_figure_size(PANELS // 3 + 1, 2)


def test_overlays_are_in_the_pictures_own_pixels_and_cover_what_the_network_saw(folder: Path, tmp_path: Path) -> None:
    paths = find_image_files([str(folder)])
    maps = looks_at(3).by["student"].maps
    write_overlays(tmp_path / "out", paths, maps, silent)
    written = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert [str(path.relative_to(tmp_path / "out")) for path in written] == [
        "a/deep/small.png.png",
        "a/tall.png.png",
        "wide.png.png",
    ]
    squares = {"small.png": np.s_[:, :], "tall.png": np.s_[10:40, :], "wide.png": np.s_[:, 10:50]}
    for path, cam in zip(paths, maps, strict=True):
        drawn = np.asarray(Image.open(tmp_path / "out" / path.relative_to(folder).with_name(f"{path.name}.png")))
        image = np.asarray(Image.open(path))
        assert drawn.shape == image.shape
        seen = squares[path.name]
        side = min(image.shape[:2])
        np.testing.assert_array_equal(drawn[seen], overlay(image[seen], cam[0], (side, side)))
        beside = np.ones(image.shape[:2], bool)
        beside[seen] = False
        assert (drawn[beside] >= 255 * 0.55 - 1).all()  # pale, in greys
        assert (np.ptp(drawn[beside].astype(int), axis=-1) == 0).all()


def test_overlays_of_several_classes_are_numbered(folder: Path, tmp_path: Path) -> None:
    write_overlays(tmp_path / "out", [folder / "wide.png"], looks_at(1, top=2).by["student"].maps, silent)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["wide.png.1.png", "wide.png.2.png"]


def test_two_names_of_one_picture_have_an_overlay_each(folder: Path, tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        (tmp_path / name).symlink_to(folder / "wide.png")
    maps = looks_at(2).by["student"].maps
    write_overlays(tmp_path / "out", [tmp_path / "one.png", tmp_path / "two.png"], maps, silent)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one.png.png", "two.png.png"]


def test_no_overlay_is_left_where_a_picture_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    paths = [folder / "wide.png", tmp_path / "bad.png"]
    with pytest.raises(InputError, match=r"bad\.png"):
        write_overlays(tmp_path / "out", paths, looks_at(2).by["student"].maps, silent)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("top", [1, 2])
def test_the_figure_shows_a_pictures_own_pixels(folder: Path, tmp_path: Path, top: int) -> None:
    paths = find_image_files([str(folder)])
    write_figure(tmp_path / "cams.png", paths, looks_at(3, top), CLASSES)
    drawn = np.asarray(Image.open(tmp_path / "cams.png").convert("RGB"))
    small = np.asarray(Image.open(paths[0]))
    np.testing.assert_array_equal(drawn[44 : 44 + 192, 24 : 24 + 192], small.repeat(24, 0).repeat(24, 1))


def test_maps_as_arrays(folder: Path, tmp_path: Path) -> None:
    paths, looks = find_image_files([str(folder)]), looks_at(3, top=2)
    write_maps(tmp_path / "maps.npz", paths, looks, CLASSES)
    with np.load(tmp_path / "maps.npz") as found:  # without pickles
        assert found["pictures"].tolist() == [str(path) for path in paths]
        assert tuple(found["classes"]) == CLASSES
        np.testing.assert_array_equal(found["shown"], looks.class_ids)
        for title, one in looks.by.items():
            np.testing.assert_array_equal(found[f"{title}_maps"], one.maps)
            np.testing.assert_array_equal(found[f"{title}_probabilities"], one.probabilities)


def test_maps_as_json_say_what_the_records_say(folder: Path, tmp_path: Path) -> None:
    paths, looks = find_image_files([str(folder)]), looks_at(3, top=2)
    write_records(tmp_path / "maps.json", paths, looks, CLASSES)
    found = json.loads((tmp_path / "maps.json").read_text(encoding="utf-8"))["pictures"]
    for row, (path, said) in enumerate(prediction_records(paths, looks, CLASSES).items()):
        for title, one in looks.by.items():
            sure = one.probabilities[row]
            assert said[title]["class"] == CLASSES[sure.argmax()]
            assert said[title]["confidence"] == pytest.approx(float(sure.max()))
            assert [place["class"] for place in said[title]["shown"]] == [CLASSES[k] for k in looks.class_ids[row]]
            maps = [place.pop("map") for place in found[path][title]["shown"]]
            np.testing.assert_array_equal(np.float32(maps), one.maps[row])
            assert found[path][title] == said[title]
