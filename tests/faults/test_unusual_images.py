"""Unusual image files and models: 16 bits, metadata, incomplete files, TIFF, no images, tensors and other networks."""

from __future__ import annotations

import io
import json
import struct
import zlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import camkd
from camkd.cli.main import main
from camkd.config import TrainConfig
from camkd.data import decode as decode_module
from camkd.data.dataset import Dataset
from camkd.data.images import decode, decode_full, decode_with_remarks
from camkd.data.sources import open_data
from camkd.distill.cache.build import make_teacher_fn
from camkd.distill.objective import parse_objective
from camkd.evaluate import measure
from camkd.models.io import ModelInfo, save
from camkd.runs.folder import Run
from camkd.runs.loading import read_model_info
from camkd.train.loop import fit
from camkd.types import InputError, Prediction, Preprocessing
from support.image_files import (
    UPRIGHT,
    encode,
    files_with_broken_metadata,
    incomplete_files,
    oriented,
    photo,
    png,
)

LOW, HIGH = 29_455, 29_663
Values = np.ndarray[Any, Any]


def wide_values(label: int, number: int, low: int = LOW, high: int = HIGH) -> Values:
    """16-bit gray values: a gradient of all values, turned by the label, with a pattern of the number."""
    ramp = np.linspace(low, high, 256).round().reshape(16, 16)
    return np.roll(np.rot90(ramp, label), number).astype(np.uint16)


def write_classes(root: Path, suffix: str = ".png", count: int = 10) -> None:
    for label, name in enumerate(("left", "right")):
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(wide_values(label, number)).save(root / name / f"{number}{suffix}")


def open_folder(root: Path, cache: Path, **options: Any) -> Dataset:
    return open_data(root, size=16, workers=1, cache=cache, **options)


def scaled(values: Values, low: float, high: float) -> Values:
    """Reference: the rounded linear scaling, ``(H, W)``."""
    return np.floor(np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255 + 0.5).astype(int)


def stored_pixels(data: Dataset) -> dict[str, Values]:
    """Gray levels of each image by name, after a check that the channels are equal."""
    pixels = {}
    for split in data.splits.values():
        assert split.names is not None
        assert (split.images == split.images[..., :1]).all()
        pixels |= dict(zip(split.names, split.images[..., 0].astype(int), strict=True))
    return pixels


# --- 16 bits


@pytest.mark.fault("16-bit images")
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_values_of_16_bits_keep_their_differences(tmp_path: Path, suffix: str) -> None:
    write_classes(tmp_path / "scans", suffix)
    data = open_folder(tmp_path / "scans", tmp_path / "cache")
    assert data.value_range == (LOW, HIGH)
    assert any("29,455 became 0 and 29,663 became 255" in note for note in data.notes)
    for name, pixels in stored_pixels(data).items():
        label, number = name.split("/")
        values = wide_values(int(label == "right"), int(number.partition(".")[0]))
        assert np.abs(pixels - scaled(values, LOW, HIGH)).max() == 0
        assert len(np.unique(pixels)) == HIGH - LOW + 1


@pytest.mark.fault("16-bit images")
@pytest.mark.parametrize("kind", ["float", "int32", "negative"])
def test_tiff_of_32_bits_is_scaled(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    images = {}
    for name in ("a", "b"):
        (tmp_path / "scans" / name).mkdir(parents=True)
        for number in range(10):
            values = rng.normal(size=(16, 16))
            values = {"float": values / 100, "int32": 1e6 + 1000 * values, "negative": 300 * values}[kind]
            images[f"{name}/{number}.tiff"] = values.astype(np.float32 if kind == "float" else np.int32)
            Image.fromarray(images[f"{name}/{number}.tiff"]).save(tmp_path / "scans" / name / f"{number}.tiff")
    data = open_folder(tmp_path / "scans", tmp_path / "cache")
    assert data.value_range is not None
    for name, pixels in stored_pixels(data).items():
        assert np.abs(pixels - scaled(images[name], *data.value_range)).max() <= 1  # fp32
        assert len(np.unique(pixels)) > 50


@pytest.mark.fault("16-bit images")
def test_hot_pixel_takes_at_most_half_of_the_gray_levels(tmp_path: Path) -> None:
    (tmp_path / "scans" / "a").mkdir(parents=True)
    (tmp_path / "scans" / "b").mkdir()
    for name in ("a", "b"):
        for number in range(10):
            values = np.tile(wide_values(0, number), (3, 3))  # 2,304 pixels: one is less than 0.1 %
            values[5, 5] = 65_535
            values[6, 6] = 0
            Image.fromarray(values).save(tmp_path / "scans" / name / f"{number}.png")
    data = open_data(tmp_path / "scans", size=48, workers=1, cache=tmp_path / "cache")
    margin = (HIGH - LOW) / 2
    assert data.value_range == (LOW - margin, HIGH + margin)
    assert all(len(np.unique(image)) >= 100 for image in data.train.images)


@pytest.mark.fault("16-bit images")
def test_range_is_that_of_the_training_images(tmp_path: Path) -> None:
    for split, shift in (("train", 0), ("val", 5000), ("test", -5000)):
        for name in ("a", "b"):
            (tmp_path / "scans" / split / name).mkdir(parents=True)
            for number in range(3):
                values = wide_values(0, number).astype(int) + shift
                Image.fromarray(values.astype(np.uint16)).save(tmp_path / "scans" / split / name / f"{number}.png")
    data = open_folder(tmp_path / "scans", tmp_path / "cache")
    assert data.value_range == (LOW, HIGH)
    assert (data.val.images == 255).all()
    assert (data.test.images == 0).all()
    outside = "images are mostly black or white, because more than half of their values are outside of the value range"
    assert sum(outside in note for note in data.notes) == 1


@pytest.mark.fault("16-bit images")
def test_images_of_8_bits_beside_16_bits_stay_as_they_are(tmp_path: Path) -> None:
    write_classes(tmp_path / "scans")
    plain = photo(16, 16)
    Image.fromarray(plain).save(tmp_path / "scans" / "left" / "photo.png")
    data = open_folder(tmp_path / "scans", tmp_path / "cache")
    (image,) = (
        split.images[split.names.index("left/photo.png")]
        for split in data.splits.values()
        if split.names and "left/photo.png" in split.names
    )
    np.testing.assert_array_equal(image, plain)
    assert data.value_range == (LOW, HIGH)


@pytest.mark.fault("16-bit images")
@pytest.mark.slow
def test_worker_processes_measure_the_same_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_module, "IN_PROCESS_SECONDS", 0.0)
    monkeypatch.setattr(decode_module, "FILES_PER_TASK", 4)
    write_classes(tmp_path / "scans")
    in_process, with_workers = (
        open_data(tmp_path / "scans", size=16, workers=workers, cache=tmp_path / f"cache{workers}")
        for workers in (1, 2)
    )
    assert in_process.value_range == with_workers.value_range == (LOW, HIGH)
    assert in_process.fingerprint == with_workers.fingerprint


@pytest.mark.fault("16-bit images")
def test_color_images_of_16_bits_are_counted(tmp_path: Path) -> None:
    write_classes(tmp_path / "scans")
    values = np.random.default_rng(0).integers(0, 65536, (16, 16, 3))
    (tmp_path / "scans" / "left" / "color.png").write_bytes(png(values, 16))
    flat = np.repeat(wide_values(0, 0)[..., None], 3, 2)
    (tmp_path / "scans" / "left" / "flat.png").write_bytes(png(flat, 16))
    data = open_folder(tmp_path / "scans", tmp_path / "cache")
    note = "1 color images with 16 bits per channel were read with 8"
    assert f"{note}: left/color.png" in data.notes
    advice = "which leaves fewer than 32 of 256 levels; save them as 16-bit gray images"
    assert f"{note}, {advice}: left/flat.png" in data.notes


@pytest.mark.fault("16-bit images")
@pytest.mark.slow
def test_range_of_a_model_is_applied_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Training, evaluation on other images, heatmaps and the metadata of an exported file use one range."""
    write_classes(tmp_path / "scans", count=20)
    options = ["--size", "16", "--model", "resnet8", "--epochs", "2", "--precision", "fp32", "--figure-every", "0"]
    run = tmp_path / "run"
    assert main(["teacher", "--data", str(tmp_path / "scans"), *options, "--out", str(run)]) == 0
    info = read_model_info(run)
    assert info.value_range == (LOW, HIGH)
    (tmp_path / "new" / "left").mkdir(parents=True)
    (tmp_path / "new" / "right").mkdir()
    for name in ("left", "right"):  # a narrow part of the values
        image = Image.fromarray(wide_values(0, 0, 29_500, 29_550))
        image.save(tmp_path / "new" / name / "0.png")
    capsys.readouterr()
    assert main(["evaluate", str(run), "--data", str(tmp_path / "new"), "--json"]) == 0
    assert "29,455 became 0 and 29,663 became 255" in capsys.readouterr().err
    path = tmp_path / "new" / "left" / "0.png"
    assert main(["explain", str(run), str(path), "--out", str(tmp_path / "maps.json")]) == 0
    answer = json.loads((tmp_path / "maps.json").read_text())["images"][str(path)]["teacher"]["confidence"]
    expected = scaled(wide_values(0, 0, 29_500, 29_550), LOW, HIGH)
    Image.fromarray(np.repeat(expected[..., None], 3, 2).astype(np.uint8)).save(tmp_path / "8-bits.png")
    assert main(["explain", str(run), str(tmp_path / "8-bits.png"), "--out", str(tmp_path / "same.json")]) == 0
    same = json.loads((tmp_path / "same.json").read_text())["images"][str(tmp_path / "8-bits.png")]["teacher"]
    assert answer == same["confidence"]
    onnx = pytest.importorskip("onnx")
    assert main(["export", str(run), "--out", str(tmp_path / "device")]) == 0
    graph = onnx.load(tmp_path / "device" / "model.onnx")
    assert {prop.key: prop.value for prop in graph.metadata_props}["value_range"] == "[29455.0, 29663.0]"


@pytest.mark.fault("16-bit images")
@pytest.mark.slow
def test_float_images_without_splits_are_evaluated_with_the_range_of_the_model(tmp_path: Path) -> None:
    for root, count in (("scans", 20), ("new", 1)):
        for label, name in enumerate(("left", "right")):
            (tmp_path / root / name).mkdir(parents=True)
            for number in range(count):
                values = (wide_values(label, number) / 65_535).astype(np.float32)
                Image.fromarray(values).save(tmp_path / root / name / f"{number}.tif")
    options = ["--size", "16", "--model", "resnet8", "--epochs", "1", "--precision", "fp32", "--figure-every", "0"]
    run = str(tmp_path / "run")
    assert main(["teacher", "--data", str(tmp_path / "scans"), *options, "--out", run]) == 0
    assert main(["evaluate", run, "--data", str(tmp_path / "new")]) == 0
    assert main(["evaluate", run]) == 0


@pytest.mark.fault("16-bit images")
def test_float_image_needs_the_range_of_a_model(tmp_path: Path) -> None:
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match=r"must have 16-bit integer values .*, got values from 0 to 1$"):
        decode(tmp_path / "x.tif", Preprocessing(8))
    assert decode(tmp_path / "x.tif", Preprocessing(8, value_range=(0.0, 1.0))).max() == 255


@pytest.mark.fault("16-bit images")
def test_missing_values_of_a_float_image_are_black(tmp_path: Path) -> None:
    values = np.full((8, 8), 0.5, np.float32)
    values[0, :3] = [np.nan, np.inf, -np.inf]
    Image.fromarray(values).save(tmp_path / "x.tif")
    assert decode(tmp_path / "x.tif", Preprocessing(8, value_range=(0.0, 1.0)))[0, :4, 0].tolist() == [0, 255, 0, 128]


NARROW_NOTE = (
    "gray images of more than 8 bits were scaled to 8 bits, which leaves fewer than 32 of 256 levels; spread their "
    "values as those of the training images"
)
OUTSIDE_NOTE = "images are mostly black or white, because more than half of their values are outside of the value range"


@pytest.mark.fault("16-bit images")
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_narrow_gray_test_images_beside_training_images_of_8_bits_are_counted(tmp_path: Path, suffix: str) -> None:
    for name in ("left", "right"):
        for split in ("train", "val", "test"):
            (tmp_path / "scans" / split / name).mkdir(parents=True)
        for split in ("train", "val"):
            Image.fromarray(photo(16, 16)).save(tmp_path / "scans" / split / name / "a.png")
        Image.fromarray(wide_values(0, 0)).save(tmp_path / "scans" / "test" / name / f"a{suffix}")
    data = open_folder(tmp_path / "scans", tmp_path / "cache")
    assert data.value_range is None
    assert len(np.unique(data.test.images)) <= 2
    assert f"2 {NARROW_NOTE}: test/left/a{suffix}, test/right/a{suffix}" in data.notes


@pytest.mark.fault("16-bit images")
def test_narrow_gray_training_image_beside_wide_ones_is_counted(tmp_path: Path) -> None:
    write_classes(tmp_path / "scans")
    for name in ("left", "right"):
        Image.fromarray(wide_values(0, 0, 0, 65_535)).save(tmp_path / "scans" / name / "wide.png")
    data = open_folder(tmp_path / "scans", tmp_path / "cache")
    assert any(note.startswith(f"20 {NARROW_NOTE}: ") for note in data.notes)


@pytest.mark.fault("16-bit images")
def test_gray_images_that_lose_no_levels_have_no_note(tmp_path: Path) -> None:
    """Masks of two values, and gray values of 8 bits that were multiplied by 257."""
    values = np.zeros((16, 16), np.uint16)
    values[4:8] = 65_535
    few = (np.arange(256).reshape(16, 16) // 16 * 16 * 257).astype(np.uint16)
    for name, image in (("mask", values), ("few", few)):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
        assert decode_with_remarks(tmp_path / f"{name}.png", Preprocessing(16))[1] == []


@pytest.mark.fault("16-bit images")
@pytest.mark.parametrize(("num_inside", "remarks"), [(1, [OUTSIDE_NOTE]), (127, [OUTSIDE_NOTE]), (128, [])])
@pytest.mark.parametrize("outside", [0, 65_535])
def test_mostly_clipped_image_has_a_remark(tmp_path: Path, num_inside: int, remarks: list[str], outside: int) -> None:
    values = np.full(256, outside, np.uint16)
    values[:num_inside] = np.linspace(LOW, HIGH, num_inside)
    Image.fromarray(values.reshape(16, 16)).save(tmp_path / "x.png")
    assert decode_with_remarks(tmp_path / "x.png", Preprocessing(16, value_range=(LOW, HIGH)))[1] == remarks


@pytest.mark.fault("16-bit images")
def test_transparent_values_are_not_counted_as_clipped(tmp_path: Path) -> None:
    values = np.full((16, 16), 65_535, np.uint16)
    values[:2] = np.linspace(LOW, HIGH, 32).reshape(2, 16)
    image = Image.fromarray(values)
    image.save(tmp_path / "x.png", transparency=65_535)
    assert decode_with_remarks(tmp_path / "x.png", Preprocessing(16, value_range=(LOW, HIGH)))[1] == []


@pytest.mark.fault("16-bit images")
def test_incomplete_image_outside_of_the_range_has_both_remarks(tmp_path: Path) -> None:
    content = encode(Image.fromarray(wide_values(0, 0)), "PNG")
    (tmp_path / "x.png").write_bytes(content[:-12])
    remarks = decode_with_remarks(tmp_path / "x.png", Preprocessing(16, value_range=(0.0, 1000.0)))[1]
    assert remarks == ["images without the end of their file were read", OUTSIDE_NOTE]


@pytest.mark.fault("16-bit images")
@pytest.mark.parametrize(("value_range", "note"), [(None, NARROW_NOTE), ((0.0, 1000.0), OUTSIDE_NOTE)])
@pytest.mark.parametrize("command", ["explain", "evaluate", "export"])
def test_commands_name_images_that_do_not_fit_the_range_of_a_model(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    value_range: tuple[float, float] | None,
    note: str,
) -> None:
    if command == "export":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    for split in ("train", "val", "test"):
        for name in ("left", "right"):
            folder = tmp_path / "new" / split / name
            folder.mkdir(parents=True)
            Image.fromarray(photo(16, 16)).save(folder / "plain.png")
            if split == "test":
                Image.fromarray(wide_values(0, 0)).save(folder / "narrow.png")
                (folder / "cut.png").write_bytes(encode(Image.fromarray(photo(16, 16)), "PNG")[:-12])
    info = ModelInfo("resnet8", ("left", "right"), 16, 1, 1, "teacher", "plain", "x", "f", 0, value_range=value_range)
    save(camkd.build("resnet8", 2, 16), tmp_path / "model", info)
    new, out = str(tmp_path / "new"), str(tmp_path / "out")
    options = {"explain": [new, "--out", out], "evaluate": ["--data", new], "export": ["--data", new, "--out", out]}
    assert main([command, str(tmp_path / "model"), *options[command]]) == 0
    shown = " ".join(capsys.readouterr().err.split())
    assert f"2 {note}: " in shown
    assert "2 images without the end of their file were read: " in shown


@pytest.mark.fault("16-bit images")
@pytest.mark.slow
def test_training_on_8_bits_names_narrow_gray_test_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val", "test"):
        for name in ("left", "right"):
            (tmp_path / "scans" / split / name).mkdir(parents=True)
            image = wide_values(0, 0) if split == "test" else photo(16, 16)
            Image.fromarray(image).save(tmp_path / "scans" / split / name / "a.png")
    options = ["--size", "16", "--model", "resnet8", "--epochs", "1", "--precision", "fp32", "--figure-every", "0"]
    assert main(["teacher", "--data", str(tmp_path / "scans"), *options, "--out", str(tmp_path / "run")]) == 0
    assert f"2 {NARROW_NOTE}: " in " ".join(capsys.readouterr().err.split())


# --- metadata


@pytest.mark.fault("broken or large metadata")
@pytest.mark.parametrize("name", files_with_broken_metadata())
def test_image_with_broken_metadata_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "x").write_bytes(files_with_broken_metadata()[name])
    rgb = Image.fromarray(photo())
    jpeg = io.BytesIO(encode(rgb, "JPEG", quality=90))
    expected = photo() if name.startswith("PNG") else np.asarray(Image.open(jpeg))
    np.testing.assert_array_equal(decode_full(tmp_path / "x"), expected)


@pytest.mark.fault("broken or large metadata")
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation_beside_strange_tags_is_applied(tmp_path: Path, orientation: int) -> None:
    """A resolution that is text, and a directory beyond the end of the data."""
    entries = [struct.pack("<HHIHH", 0x112, 3, 1, orientation, 0), struct.pack("<HHI4s", 0x11A, 2, 4, b"abc\0")]
    entries.append(struct.pack("<HHII", 0x8769, 4, 1, 0x7FFFFFFF))
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    rgb = Image.fromarray(photo())
    plain = io.BytesIO(encode(rgb, "JPEG", quality=90))
    (tmp_path / "x.jpg").write_bytes(encode(rgb, "JPEG", quality=90, exif=exif))
    expected = UPRIGHT[orientation](np.asarray(Image.open(plain)))
    np.testing.assert_array_equal(decode_full(tmp_path / "x.jpg"), expected)


# --- missing last bytes


@pytest.mark.fault("image without its last bytes")
@pytest.mark.parametrize("name", incomplete_files())
def test_image_without_its_last_bytes_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "x").write_bytes(incomplete_files()[name])
    progressive = "progressive" in name
    whole = encode(Image.fromarray(photo()), "JPEG", quality=90, progressive=progressive)
    expected = photo() if name.startswith("PNG") else np.asarray(Image.open(io.BytesIO(whole)))
    shown = decode_full(tmp_path / "x")
    np.testing.assert_array_equal(shown[:24], expected[:24])
    if "6 bytes" not in name:
        np.testing.assert_array_equal(shown, expected)


@pytest.mark.fault("image without its last bytes")
def test_images_without_their_last_bytes_are_counted(tmp_path: Path) -> None:
    write_classes(tmp_path / "scans")
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "scans" / "left" / name).write_bytes(incomplete_files()["JPEG without its end"])
    data = open_folder(tmp_path / "scans", tmp_path / "cache")
    assert "2 images without the end of their file were read: left/a.jpg, left/b.jpg" in data.notes


@pytest.mark.fault("image without its last bytes")
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}], ids=str)
@pytest.mark.parametrize("size", [(32, 32), (48, 40), (300, 200)])
@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.8])
def test_jpeg_of_which_more_is_missing_is_refused(
    tmp_path: Path, size: tuple[int, int], options: dict[str, Any], fraction: float
) -> None:
    content = encode(Image.fromarray(photo(*size)), "JPEG", quality=85, **options)
    (tmp_path / "x.jpg").write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(ValueError, match=r"truncated|header is corrupt"):
        decode(tmp_path / "x.jpg", Preprocessing(8))


# --- TIFF


@pytest.mark.fault("TIFF")
@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_orientation_of_tiff_is_applied(tmp_path: Path, orientation: int, compression: str | None) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(photo()).save(tmp_path / "x.tif", exif=exif, compression=compression)
    np.testing.assert_array_equal(decode_full(tmp_path / "x.tif"), UPRIGHT[orientation](photo()))
    np.testing.assert_array_equal(
        decode_full(_write(tmp_path / "y.tif", oriented(photo(), "TIFF", orientation))), UPRIGHT[orientation](photo())
    )


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.fault("TIFF")
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "LA"])
def test_tiff_of_every_mode_and_compression(tmp_path: Path, mode: str, compression: str | None) -> None:
    if compression == "jpeg" and mode in ("1", "P"):
        pytest.skip("TIFF does not allow it")
    image = Image.fromarray(photo(channels=4) if mode == "RGBA" else photo()).convert(mode)
    image.save(tmp_path / "x.tif", compression=compression)
    expected: Values = np.asarray(image.convert("RGB")).astype(float)
    if mode == "RGBA":
        alpha = np.asarray(image).astype(float)[..., 3:] / 255
        expected = expected * alpha + 255 * (1 - alpha)
    difference = np.abs(decode_full(tmp_path / "x.tif") - expected)
    assert difference.max() <= (60 if compression == "jpeg" else 1)


@pytest.mark.fault("TIFF")
def test_first_page_of_a_tiff_is_read(tmp_path: Path) -> None:
    other = Image.new("L", (3, 3))
    Image.fromarray(photo()).save(tmp_path / "x.tif", save_all=True, append_images=[other, other])
    np.testing.assert_array_equal(decode_full(tmp_path / "x.tif"), photo())


@pytest.mark.fault("TIFF")
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"])
def test_corrupt_tiff_is_refused_or_read_without_a_message(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], compression: str | None
) -> None:
    """libtiff writes messages of its own to stderr."""
    content = encode(Image.fromarray(photo()), "TIFF", compression=compression)
    rng = np.random.default_rng(0)
    for _ in range(100):
        corrupt = np.frombuffer(content, np.uint8).copy()
        corrupt[rng.integers(8, len(corrupt), 4)] = rng.integers(0, 256, 4)
        with suppress(ValueError):
            assert decode(_write(tmp_path / "x.tif", corrupt.tobytes()), Preprocessing(8)).shape == (8, 8, 3)
    assert capfd.readouterr().err == ""


@pytest.mark.fault("TIFF")
def test_tiff_of_too_many_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (20, 10)).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match=r"at most 100 pixels, got 20 x 10"):
        decode(tmp_path / "x.tif", Preprocessing(8))


def tiff(values: Values, *, photometric: int = 1, order: str = "<", compression: int = 1, kind: int = 1) -> bytes:
    """Encode values ``(H, W)`` or ``(H, W, C)`` as one uncompressed strip."""
    height, width, *channels = values.shape
    num_channels = channels[0] if channels else 1
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    bits = 8 * values.dtype.itemsize
    first = 8 + len(data)
    bits_at = first + 2 + 12 * 9 + 4
    entries = [(256, 4, 1, width), (257, 4, 1, height)]
    entries.append((258, 3, 1, bits) if num_channels == 1 else (258, 3, num_channels, bits_at))
    entries += [(259, 3, 1, compression), (262, 3, 1, photometric), (273, 4, 1, 8), (277, 3, 1, num_channels)]
    entries += [(279, 4, 1, len(data)), (339, 3, 1, kind)]
    directory = struct.pack(f"{order}H", len(entries))
    for tag, field, count, value in entries:
        packed = struct.pack(f"{order}HH", value, 0) if (field, count) == (3, 1) else struct.pack(f"{order}I", value)
        directory += struct.pack(f"{order}HHI", tag, field, count) + packed
    magic = b"II*\0" if order == "<" else b"MM\0*"
    sizes = struct.pack(f"{order}{num_channels}H", *[bits] * num_channels)
    return magic + struct.pack(f"{order}I", first) + data + directory + bytes(4) + sizes


@pytest.mark.fault("TIFF")
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_whose_zero_is_white_is_inverted(tmp_path: Path, order: str, dtype: type) -> None:
    values = (np.arange(256).reshape(16, 16) * (257 if dtype is np.uint16 else 1)).astype(dtype)
    plain = decode_full(_write(tmp_path / "a.tif", tiff(values, order=order)))
    inverted = decode_full(_write(tmp_path / "b.tif", tiff(values, photometric=0, order=order)))
    np.testing.assert_array_equal(plain[..., 0], np.arange(256).reshape(16, 16))
    np.testing.assert_array_equal(inverted, 255 - plain)


@pytest.mark.fault("TIFF")
def test_range_of_inverted_tiff_is_that_of_the_shown_values(tmp_path: Path) -> None:
    for label, name in enumerate(("left", "right")):
        (tmp_path / "scans" / name).mkdir(parents=True)
        for number in range(10):
            content = tiff(65_535 - wide_values(label, number), photometric=0)
            (tmp_path / "scans" / name / f"{number}.tif").write_bytes(content)
    data = open_folder(tmp_path / "scans", tmp_path / "cache")
    assert data.value_range == (LOW, HIGH)
    expected = scaled(wide_values(0, 0), LOW, HIGH)
    np.testing.assert_array_equal(stored_pixels(data)["left/0.tif"], expected)


@pytest.mark.fault("TIFF")
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff(np.zeros((8, 8)), kind=3), "64-bit float samples cannot be read; save it with 8 or 16 bits"),
        (tiff(np.zeros((8, 8)), kind=3, order=">"), "64-bit float samples cannot be read"),
        (tiff(np.zeros((8, 8), np.float16), kind=3), "16-bit float samples cannot be read"),
        (tiff(np.zeros((8, 8), np.uint64)), "64-bit integer samples cannot be read"),
        (tiff(np.zeros((8, 8), np.complex64), kind=6), "64-bit complex float samples cannot be read"),
        (tiff(np.zeros((8, 8, 3), np.float32), kind=3, photometric=2), "3 32-bit float samples per pixel cannot"),
        (tiff(np.zeros((8, 8), np.uint8), compression=34712), "compression 34712 cannot be read; save it without"),
    ],
)
def test_tiff_of_samples_that_cannot_be_read_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^TIFF with {reason}"):
        decode(_write(tmp_path / "x.tif", content), Preprocessing(8))


# --- files that are not images


@pytest.mark.fault("file that is not an image")
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"the file is empty \(0 bytes\)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "got a Git LFS pointer"),
        (b"version https://hawser.github.com/spec/v1\noid sha256:0\nsize 9\n", "got a Git LFS pointer"),
        (b"version http://git-media.io/v/2\noid sha256:0\nsize 9\n", "got a Git LFS pointer"),
        (b"/annex/objects/SHA256E-s9--0.jpg\n", "got a git-annex pointer"),
        (b"../.git/annex/objects/Xq/7k/SHA256E-s9--0.jpg/SHA256E-s9--0.jpg", "got a git-annex pointer"),
        (b".git/annex/objects/Xq/7k/SHA256E-s9--0.jpg/SHA256E-s9--0.jpg", "got a git-annex pointer"),
        (b"..\\.git\\annex\\objects\\Xq\\7k\\SHA256E-s9--0.jpg", "got a git-annex pointer"),
        (b"../.git/modules/data/annex/objects/Xq/7k/SHA256E-s9--0.jpg", "got a git-annex pointer"),
        (b"\n<!DOCTYPE html>\n<html><svg></svg></html>", "got an HTML page"),
        (b'{"error": "not found"}', "got a text file"),
        (bytes(4096), "got only zero bytes"),
        (b"\x1f\x8b" + zlib.compress(b"x"), "got an archive"),
    ],
)
def test_file_that_is_not_an_image_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    write_classes(tmp_path / "scans")
    (tmp_path / "scans" / "left" / "bad.jpg").write_bytes(content)
    with pytest.raises(InputError, match=rf"left/bad\.jpg: .*{reason}"):
        open_folder(tmp_path / "scans", tmp_path / "cache")


# --- tensors and networks of another kind


class Probabilities(nn.Module):
    """A network that ends in softmax."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.network = camkd.build("resnet8", classes, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).softmax(1)


def train(model: nn.Module, data: Dataset, folder: Path) -> None:
    config = TrainConfig(epochs=1, batch_size=16, precision="fp32", device="cpu")
    fit(model, data, parse_objective("plain"), config, Run(folder))


@pytest.mark.fault("tensor or network of another kind")
def test_images_of_0_to_255_are_refused(easy: Dataset) -> None:
    model = camkd.build("resnet8", 3, 16)
    with pytest.raises(InputError, match=r"x must be RGB in 0\.\.1, got values up to 255\. Divide the images by 255\."):
        camkd.predict(model, torch.full((2, 3, 16, 16), 255.0))


@pytest.mark.fault("tensor or network of another kind")
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_dataset_of_other_numbers_is_refused(easy: Dataset, tmp_path: Path, dtype: type) -> None:
    train_split = replace(easy.train, images=easy.train.images.astype(dtype))
    with pytest.raises(InputError, match=rf"must be RGB in 0\.\.255, .*, got {np.dtype(dtype).name} of shape"):
        train(camkd.build("resnet8", 3, 16), replace(easy, train=train_split), tmp_path / "run")


@pytest.mark.fault("tensor or network of another kind")
def test_labels_that_start_at_1_are_refused(easy: Dataset, tmp_path: Path) -> None:
    train_split = replace(easy.train, labels=easy.train.labels + 1)
    with pytest.raises(InputError, match="labels of a split must be 0 to 2 for 3 classes, got 1 to 3"):
        train(camkd.build("resnet8", 3, 16), replace(easy, train=train_split), tmp_path / "run")


@pytest.mark.fault("tensor or network of another kind")
def test_network_that_ends_in_softmax_is_refused(easy: Dataset, tmp_path: Path) -> None:
    for action in (
        lambda: camkd.predict(Probabilities(), torch.rand(2, 3, 16, 16)),
        lambda: train(Probabilities(), easy, tmp_path / "run"),
        lambda: measure(Probabilities(), easy, None),
        lambda: make_teacher_fn(Probabilities(), 16, TrainConfig(device="cpu"))(torch.rand(2, 3, 16, 16)),
    ):
        with pytest.raises(InputError, match="Probabilities must return logits, got probabilities, which add up to 1"):
            action()


@pytest.mark.fault("tensor or network of another kind")
@pytest.mark.parametrize("outputs", [2, 5])
def test_network_with_another_number_of_outputs_is_refused(easy: Dataset, tmp_path: Path, outputs: int) -> None:
    model = camkd.build("resnet8", outputs, 16)
    with pytest.raises(InputError, match=f"must return 3 logits, one for each class of the data, got {outputs}"):
        train(model, easy, tmp_path / "run")
    with pytest.raises(InputError, match=f"must have the 3 classes of the data, got {outputs} outputs"):
        measure(model, easy, None)
    student, teacher = Prediction(torch.zeros(4, outputs)), Prediction(torch.zeros(4, 3))
    with pytest.raises(InputError, match=rf"got \(4, {outputs}\) and \(4, 3\)"):
        parse_objective("kd=1")(student, teacher, torch.zeros(4, dtype=torch.long), 0.5)


@pytest.mark.fault("tensor or network of another kind")
def test_number_of_labels_must_be_that_of_the_images() -> None:
    student = Prediction(torch.zeros(4, 3))
    with pytest.raises(InputError, match=r"labels must be class indices \(4,\) .* got \(3,\)"):
        parse_objective("ce=1")(student, None, torch.zeros(3, dtype=torch.long), 0.5)
