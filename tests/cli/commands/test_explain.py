"""The command ``explain``: heatmaps and predictions of image files."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from camkd.data.walker import IMAGE_TYPES
from support.cli import camkd


def test_figure_and_json(finished: Any, easy_folder: Path, tmp_path: Path) -> None:
    paths = [str(path) for path in sorted((easy_folder / "test").rglob("*.png"))[:2]]
    out = tmp_path / "cams.png"
    output = camkd("explain", str(finished.folder / "student"), *paths, "--out", str(out), "--json")
    assert output.json["out"] == str(out)
    assert list(output.json["images"]) == paths
    for models in output.json["images"].values():
        assert set(models) == {"teacher", "student"}
        for record in models.values():
            assert set(record["classes_shown"][0]) >= {"class", "confidence"}
    assert out.exists()
    assert all(path in output.err for path in paths)
    assert output.json["classes"] == ["berry", "leaf", "sky"]
    assert "The model predicts one of these 3 classes for every image" in output.err
    assert "another class: berry, leaf, sky." in output.err


def test_several_classes(finished: Any, easy_folder: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "overlays")
    folder = str(easy_folder / "test" / "sky")
    output = camkd("explain", str(finished.folder), folder, "--top", "2", "--out", out, "--json")
    *lines, classes_line, last_line = output.err.splitlines()
    assert len(lines) == len(output.json["images"]) == 8
    for line in lines:
        assert re.fullmatch(r".*/sky/\d+\.png: student \w+ \(\d+%\), \w+ \(\d+%\)", line)
    for models in output.json["images"].values():
        assert len(models["student"]["classes_shown"]) == 2
    assert "berry, leaf, sky" in classes_line
    assert out in last_line


def test_other_files_of_a_folder_are_counted_and_long_paths_are_cut(
    finished: Any, easy_folder: Path, tmp_path: Path
) -> None:
    image = tmp_path / "photos" / ("x" * 120 + ".png")
    image.parent.mkdir()
    shutil.copy(next((easy_folder / "test" / "sky").iterdir()), image)
    for name in ("a.heic", "b.jxl", "c.heic"):
        (image.parent / name).write_bytes(b"")
    out = str(tmp_path / "cams.png")
    output = camkd("explain", str(finished.folder), str(image.parent), "--out", out, "--json")
    skipped = f"skipped files that are not images ({IMAGE_TYPES}): 3 (2 .heic, 1 .jxl)"
    line, _, skipped_line, _ = output.err.splitlines()
    assert skipped_line == skipped
    assert re.fullmatch(r"/.*…x+\.png: .*", line)
    assert len(line.partition(": ")[0]) == 72
    assert list(output.json["images"]) == [str(image)]
    assert output.json["skipped"] == [str(image.parent / name) for name in ("a.heic", "b.jxl", "c.heic")]


def test_unknown_format_is_refused(finished: Any, tmp_path: Path) -> None:
    output = camkd("explain", str(finished.folder), "x.png", "--out", str(tmp_path / "maps.txt"))
    assert "must be a .png, .npz or .json file or a folder, got" in output.error
    assert "maps.txt" in output.error


def test_broken_image_is_refused(finished: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    out = tmp_path / "cams.png"
    output = camkd("explain", str(finished.folder), str(tmp_path / "broken.jpg"), "--out", str(out))
    assert "broken.jpg" in output.error
    assert not out.exists()


def test_contrast_is_named_in_terminal_and_json(finished: Any, easy_folder: Path, tmp_path: Path) -> None:
    folder = str(easy_folder / "test" / "sky")
    out = str(tmp_path / "overlays")
    output = camkd("explain", str(finished.folder), folder, "--out", out, "--against", "leaf", "berry", "--json")
    *lines, contrast, _, _ = output.err.splitlines()
    assert len(lines) == 8
    for line in lines:
        assert re.fullmatch(r".*/sky/\d+\.png: student \w+ \(\d+%\); map of sky vs. leaf or berry", line)
    assert contrast.endswith("minus the mean evidence for these 2 classes: leaf, berry.")
    assert output.json["against"] == ["leaf", "berry"]


def test_unknown_class_of_a_contrast_is_refused(finished: Any, tmp_path: Path) -> None:
    out = str(tmp_path / "cams.png")
    output = camkd("explain", str(finished.folder), "x.png", "--against", "cloud", "--out", out)
    assert "got 'cloud'. Choose from berry, leaf, sky." in output.error
