"""Hostile or unusual folders and archives: file names, many classes, image shapes, tar members."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camkd.cli.main import main
from camkd.data.cifar import CIFAR10, PIXEL_BYTES, read_archive
from camkd.data.dataset import Dataset, no_progress
from camkd.data.files import open_listing
from camkd.data.images import decode
from camkd.data.scan import scan
from camkd.runs.folder import Run
from camkd.types import InputError, Preprocessing

ESCAPED = {
    b"a\nb": "a\\nb",
    b"a\x1b[2Jb": "a\\x1b[2Jb",
    b"a\xc2\x85b": "a\\x85b",
    "a\u2028b".encode(): "a\\u2028b",
    b"\xff": "\\xff",
    b"\xfe": "\\xfe",
}
"""File names that are displayed differently, with the displayed text."""

NAMES = (
    *ESCAPED, b"<img src=x onerror=alert(1)>", b"[red]x[bold]", b"=1+1", b"-rf *", "日本語 ñ".encode(), b"$(touch y)",
    "\u202eabc".encode(), b"';--", b"{{ 7*7 }}", b"x" * 200, b"C:\\x", b"nul",
)  # fmt: skip


def save_image(path: bytes | Path, red: int = 0) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (red, 255 - red, 90)).save(stream, "PNG")
    with open(path, "wb") as file:
        file.write(stream.getvalue())


def open_images(root: Path, cache: Path) -> Dataset:
    return open_listing(scan(root), size=8, limit=None, workers=1, bad_images="fail", cache=cache, progress=no_progress)


# --- file names


@pytest.fixture
def hostile_folder(tmp_path: Path) -> Path:
    """One class per name with ten images, whose file names contain the name too; the red channel is the class."""
    root = tmp_path / "odd é"
    for label, name in enumerate(NAMES):
        folder = os.path.join(os.fsencode(root), name)
        os.makedirs(folder)
        for number in range(10):
            save_image(os.path.join(folder, name[:50] + b"%d.png" % number), 10 * label)
    return root


@pytest.mark.fault("hostile file names")
def test_names_of_any_bytes_are_distinct_classes(hostile_folder: Path, tmp_path: Path) -> None:
    data = open_images(hostile_folder, tmp_path / "cache")
    assert len(set(data.classes)) == len(NAMES)
    for name in (*data.classes, *(data.train.names or ())):
        name.encode()  # valid UTF-8
        assert len(name.splitlines()) == 1
    for split in data.splits.values():
        for index, label in zip(split.images[:, 0, 0, 0] // 10, split.labels, strict=True):
            name = NAMES[index]
            assert data.classes[label] == ESCAPED.get(name, name.decode("utf-8", "replace"))
    assert open_images(hostile_folder, tmp_path / "cache").classes == data.classes


@pytest.mark.fault("hostile file names")
def test_two_classes_with_the_same_displayed_name_are_rejected(tmp_path: Path) -> None:
    for name in (b"\xff", b"\\xff", b"other"):
        folder = os.path.join(os.fsencode(tmp_path / "pets"), name)
        os.makedirs(folder)
        save_image(os.path.join(folder, b"0.png"))
    with pytest.raises(InputError, match=r"got two folders .* displayed as '\\xff'"):
        open_images(tmp_path / "pets", tmp_path / "cache")


@pytest.mark.fault("hostile file names")
@pytest.mark.slow
def test_names_are_text_in_the_report(hostile_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    options = ["--model", "resnet8", "--epochs", "1", "--batch-size", "64", "--precision", "fp32"]
    assert main(["teacher", "--data", str(hostile_folder), *options, "--out", str(out)]) == 0
    assert main(["report", str(out), "--out", str(out / "report.html")]) == 0
    captured = capsys.readouterr()
    assert "\x1b" not in captured.err + captured.out
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<img src=x onerror" not in page
    assert "{{ 7*7 }}" in page
    assert len(Run(out).read_metrics()["per_class"]) == len(NAMES)


# --- many classes


@pytest.mark.fault("10,000 classes with one image each")
@pytest.mark.slow
def test_ten_thousand_classes_with_one_image_each(tmp_path: Path) -> None:
    """The first five classes have two more images, for the other splits."""
    save_image(tmp_path / "one.png", 50)
    for number in range(10_000):
        folder = tmp_path / "many" / f"{number:05d}"
        folder.mkdir(parents=True)
        for copy in range(3 if number < 5 else 1):
            os.link(tmp_path / "one.png", folder / f"{copy}.png")
    data = open_images(tmp_path / "many", tmp_path / "cache")
    assert len(data.classes) == 10_000
    assert [len(split) for split in data.splits.values()] == [10_000, 5, 5]
    assert np.array_equal(np.sort(data.train.labels), np.arange(10_000))
    options = ["--size", "8", "--model", "resnet8", "--epochs", "1", "--precision", "fp32", "--figure-every", "0"]
    assert main(["teacher", "--data", str(tmp_path / "many"), *options, "--out", str(tmp_path / "run")]) == 0
    assert Run(tmp_path / "run").metrics_file.stat().st_size < 1_000_000
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "report.html")]) == 0
    assert (tmp_path / "report.html").stat().st_size < 5_000_000


# --- image shapes


@pytest.mark.fault("unusual image")
@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 900), (900, 1)])
def test_image_of_one_pixel_or_one_row(tmp_path: Path, width: int, height: int) -> None:
    Image.new("RGB", (width, height), (250, 5, 5)).save(tmp_path / "x.png")
    assert (decode(tmp_path / "x.png", Preprocessing(8)) == (250, 5, 5)).all()


# --- archives

RECORD = b"\1" + bytes(PIXEL_BYTES)
ARCHIVE = replace(CIFAR10, train_files=("train.bin",), test_files=("test.bin",), classes_file="names.txt")
MEMBERS = {"train.bin": RECORD * 3, "test.bin": RECORD, "names.txt": b"cat\ndog"}


def write_archive(path: Path, change: Callable[[tarfile.TarInfo], bytes | None]) -> Path:
    """Write `MEMBERS`. ``change`` may modify the header of a member, and may return other content for the member."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in MEMBERS.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            new_content = change(info)
            tar.addfile(info, io.BytesIO(content if new_content is None else new_content))
    return path


def move_to(folder: str) -> Callable[[tarfile.TarInfo], None]:
    def change(info: tarfile.TarInfo) -> None:
        info.name = f"{folder}/{info.name}"

    return change


def replace_test_by(member_type: bytes) -> Callable[[tarfile.TarInfo], bytes | None]:
    def change(info: tarfile.TarInfo) -> bytes | None:
        if info.name != "test.bin":
            return None
        info.type = member_type
        info.linkname = "/etc/passwd"
        info.size = 0
        return b""

    return change


@pytest.mark.fault("hostile archive")
@pytest.mark.parametrize("folder", ["..", "../../..", "/etc", "/", "a/../../b", "\\\\server\\share"])
def test_folder_in_the_archive_is_ignored(tmp_path: Path, folder: str) -> None:
    path = write_archive(tmp_path / "a.tar.gz", move_to(folder))
    assert len(read_archive(path, ARCHIVE).test) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["a.tar.gz"]


@pytest.mark.fault("hostile archive")
@pytest.mark.parametrize(
    "member_type", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
)
def test_links_devices_and_folders_are_not_files(tmp_path: Path, member_type: bytes) -> None:
    with pytest.raises(InputError, match=r"got an archive without test\.bin"):
        read_archive(write_archive(tmp_path / "a.tar.gz", replace_test_by(member_type)), ARCHIVE)


@pytest.mark.fault("hostile archive")
def test_member_that_exceeds_the_memory_is_rejected(tmp_path: Path) -> None:
    bomb = tarfile.TarInfo("train.bin")
    bomb.size = 1 << 40
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(bomb.tobuf()))
    with pytest.raises(InputError, match=rf"train\.bin must have at most .*, got {1 << 40:,}"):
        read_archive(tmp_path / "a.tar.gz", ARCHIVE)
