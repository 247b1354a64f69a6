"""Folders and archives that somebody made to do harm, or without thinking of us."""

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
from camkd.data.cifar import CIFAR10, PIXELS, read
from camkd.data.dataset import Dataset, no_progress
from camkd.data.folder import open_folder
from camkd.data.images import decode
from camkd.runs.folder import Run
from camkd.types import InputError

SHOWN = {
    b"a\nb": "a\\nb",
    b"a\x1b[2Jb": "a\\x1b[2Jb",
    b"a\xc2\x85b": "a\\x85b",
    "a\u2028b".encode(): "a\\u2028b",
    b"\xff": "\\xff",
    b"\xfe": "\\xfe",
}
"""Names as they are shown, where that is not as they are."""

NAMES = (
    *SHOWN, b"<img src=x onerror=alert(1)>", b"[red]x[bold]", b"=1+1", b"-rf *", "日本語 ñ".encode(), b"$(touch y)",
    "\u202eabc".encode(), b"';--", b"{{ 7*7 }}", b"x" * 200, b"C:\\x", b"nul",
)  # fmt: skip


def picture(path: bytes | Path, shade: int = 0) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 255 - shade, 90)).save(stream, "PNG")
    with open(path, "wb") as file:
        file.write(stream.getvalue())


def opened(root: Path, cache: Path) -> Dataset:
    return open_folder(root, size=8, limit=None, workers=1, bad_images="fail", cache=cache, progress=no_progress)


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A class of each name, ten pictures in each, whose files have such names too; the shade is the class."""
    root = tmp_path / "odd é"
    for label, name in enumerate(NAMES):
        folder = os.path.join(os.fsencode(root), name)
        os.makedirs(folder)
        for number in range(10):
            picture(os.path.join(folder, name[:50] + b"%d.png" % number), 10 * label)
    return root


@pytest.mark.fault("hostile names")
def test_names_of_any_bytes_are_classes_of_their_own(odd: Path, tmp_path: Path) -> None:
    data = opened(odd, tmp_path / "cache")
    assert len(set(data.classes)) == len(NAMES)
    for name in (*data.classes, *(data.train.names or ())):
        name.encode()  # it can be written
        assert len(name.splitlines()) == 1
    for split in data.splits.values():
        shades = split.images[:, 0, 0, 0] // 10
        for shade, label in zip(shades, split.labels, strict=True):
            raw = NAMES[shade]
            assert data.classes[label] == SHOWN.get(raw, raw.decode("utf-8", "replace"))
    assert opened(odd, tmp_path / "cache").classes == data.classes


@pytest.mark.fault("hostile names")
def test_two_classes_that_are_written_alike_are_refused(tmp_path: Path) -> None:
    for name in (b"\xff", b"\\xff", b"other"):
        folder = os.path.join(os.fsencode(tmp_path / "pets"), name)
        os.makedirs(folder)
        picture(os.path.join(folder, b"0.png"))
    with pytest.raises(InputError, match=r"two class folders that are both written '\\xff': rename one"):
        opened(tmp_path / "pets", tmp_path / "cache")


@pytest.mark.fault("hostile names")
@pytest.mark.slow
def test_names_reach_the_report_as_text(odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    options = ["--model", "resnet8", "--epochs", "1", "--batch-size", "64", "--precision", "fp32"]
    assert main(["teacher", "--data", str(odd), *options, "--out", str(out)]) == 0
    assert main(["report", str(out), "--out", str(out / "report.html")]) == 0
    said = capsys.readouterr()
    assert "\x1b" not in said.err + said.out
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<img src=x onerror" not in page
    assert "{{ 7*7 }}" in page
    assert len(Run(out).read_metrics()["per_class"]) == len(NAMES)


@pytest.mark.fault("10,000 classes, a picture each")
@pytest.mark.slow
def test_ten_thousand_classes_with_a_picture_each(tmp_path: Path) -> None:
    """Of which the first have one more for each of the other splits."""
    picture(tmp_path / "one.png", 50)
    for number in range(10_000):
        folder = tmp_path / "many" / f"{number:05d}"
        folder.mkdir(parents=True)
        for copy in range(3 if number < 5 else 1):
            os.link(tmp_path / "one.png", folder / f"{copy}.png")
    data = opened(tmp_path / "many", tmp_path / "cache")
    assert len(data.classes) == 10_000
    assert [len(split) for split in data.splits.values()] == [10_000, 5, 5]
    assert np.array_equal(np.sort(data.train.labels), np.arange(10_000))
    options = ["--size", "8", "--model", "resnet8", "--epochs", "1", "--precision", "fp32", "--figure-every", "0"]
    assert main(["teacher", "--data", str(tmp_path / "many"), *options, "--out", str(tmp_path / "run")]) == 0
    assert Run(tmp_path / "run").metrics.stat().st_size < 1_000_000
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "report.html")]) == 0
    assert (tmp_path / "report.html").stat().st_size < 5_000_000


@pytest.mark.fault("odd pictures")
@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 900), (900, 1)])
def test_a_picture_of_one_pixel_or_row(tmp_path: Path, width: int, height: int) -> None:
    Image.new("RGB", (width, height), (250, 5, 5)).save(tmp_path / "x.png")
    assert (decode(tmp_path / "x.png", 8) == (250, 5, 5)).all()


# --- archives

RECORD = b"\1" + bytes(PIXELS)
SMALL = replace(CIFAR10, train=("train.bin",), test=("test.bin",), classes="names.txt")
WHOLE = {"train.bin": RECORD * 3, "test.bin": RECORD, "names.txt": b"cat\ndog"}


def packed(path: Path, change: Callable[[tarfile.TarInfo], bytes | None]) -> Path:
    """The archive, each member as ``change`` made it; without content where that is what it says."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in WHOLE.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            given = change(info)
            tar.addfile(info, io.BytesIO(content if given is None else given))
    return path


def renamed(to: str) -> Callable[[tarfile.TarInfo], None]:
    def change(info: tarfile.TarInfo) -> None:
        info.name = f"{to}/{info.name}"

    return change


def typed(kind: bytes) -> Callable[[tarfile.TarInfo], bytes | None]:
    def change(info: tarfile.TarInfo) -> bytes | None:
        if info.name != "test.bin":
            return None
        info.type, info.linkname, info.size = kind, "/etc/passwd", 0
        return b""

    return change


@pytest.mark.fault("hostile archives")
@pytest.mark.parametrize("place", ["..", "../../..", "/etc", "/", "a/../../b", "\\\\server\\share"])
def test_where_an_archive_wants_its_files_is_nothing_to_us(tmp_path: Path, place: str) -> None:
    path = packed(tmp_path / "a.tar.gz", renamed(place))
    assert len(read(path, SMALL).test) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["a.tar.gz"]


@pytest.mark.fault("hostile archives")
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_links_devices_and_the_like_are_no_files(tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(InputError, match=r"has no test\.bin, so it is another archive than expected"):
        read(packed(tmp_path / "a.tar.gz", typed(kind)), SMALL)


@pytest.mark.fault("hostile archives")
def test_an_archive_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    bomb = tarfile.TarInfo("train.bin")
    bomb.size = 1 << 40
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(bomb.tobuf()))
    with pytest.raises(InputError, match=rf"train\.bin has {1 << 40:,} bytes"):
        read(tmp_path / "a.tar.gz", SMALL)
