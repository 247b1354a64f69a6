"""A reader sees the old content or the new one, never half of it."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from camkd.utils.files import TEMP_SUFFIX, atomic_write, commit_dir, remove_stale_temp, write_json, write_text
from support.fault_injection import umask


def test_the_new_content_takes_the_place_of_the_old_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path, "a rename must stay on one file system"
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_exception_the_old_file_is_whole_and_nothing_else_lies_there(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "notes.txt"

    def fail() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []
    path.write_text("old")
    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_removed_its_file_is_an_error_and_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), atomic_write(path) as temporary:
        temporary.unlink()
    assert path.read_text() == "old"


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_mode_follows_the_umask_and_the_umask_stays(tmp_path: Path, mask: int, mode: int) -> None:
    path = tmp_path / "notes.txt"
    path.touch(0o600)
    with umask(mask):
        write_text(path, "new")
        assert os.umask(mask) == mask
    assert path.stat().st_mode & 0o777 == mode


def test_folders_are_made_and_two_writers_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "notes.txt"
    with atomic_write(path) as first, atomic_write(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # the outer block ended last
    assert list(path.parent.iterdir()) == [path]


def test_text_is_utf8_whatever_the_locale(tmp_path: Path) -> None:
    write_text(tmp_path / "text", "Übung 猫\n")
    assert (tmp_path / "text").read_bytes() == "Übung 猫\n".encode()


def test_json_comes_back_as_it_was(tmp_path: Path) -> None:
    value = {"accuracy": 0.1 + 0.2, "classes": ["Übung", "猫"], "nothing": None, "count": 1 << 60}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert "猫" in text
    assert text.endswith("}\n")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_refuses_what_is_no_number_and_keeps_the_old_file(tmp_path: Path, value: float) -> None:
    write_json(tmp_path / "a.json", {"accuracy": 1.0})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"accuracy": value})
    assert json.loads((tmp_path / "a.json").read_text()) == {"accuracy": 1.0}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_is_filled_whole(tmp_path: Path) -> None:
    place = tmp_path / "new" / "folder"
    place.mkdir(parents=True)
    (place / "old.txt").write_text("old")
    (place / "other.txt").write_text("other")
    with commit_dir(place) as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "a.txt").write_text("a")
        (temporary / "old.txt").write_text("new")
        assert (place / "old.txt").read_text() == "old"
    files = {str(path.relative_to(place)): path.read_text() for path in place.rglob("*") if path.is_file()}
    assert files == {"old.txt": "new", "other.txt": "other", "deep/a.txt": "a"}
    assert list(place.parent.iterdir()) == [place]


def test_a_folder_that_fails_is_as_it_was(tmp_path: Path) -> None:
    def fill_a_part() -> None:
        with commit_dir(tmp_path / "folder") as temporary:
            (temporary / "a.txt").write_text("a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill_a_part()
    assert list(tmp_path.iterdir()) == []


WRITES = """
import sys
from pathlib import Path
from camkd.utils.files import filling, replacing

with filling(Path(sys.argv[1]) / "folder") as folder, replacing(Path(sys.argv[1]) / "no[te]s") as temporary:
    (folder / "deep").mkdir()
    (folder / "deep" / "a.txt").write_text("half")
    temporary.write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.mark.fault("remains of a killed process")
def test_what_a_killed_process_left_half_written_goes_with_the_next_write_and_what_another_writes_stays(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", WRITES, str(tmp_path)]
    writers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in ("dies", "lives")
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
    dies, lives = writers
    assert len(list(tmp_path.glob(f".*{TEMP_SUFFIX}"))) == 4
    dies.send_signal(signal.SIGKILL)
    dies.communicate()
    write_text(tmp_path / "no[te]s", "mine")
    write_text(tmp_path / "folder.txt", "another's name")
    assert len(list(tmp_path.glob(f".*{TEMP_SUFFIX}"))) == 3
    with commit_dir(tmp_path / "folder"):
        pass
    assert len(list(tmp_path.glob(f".*{TEMP_SUFFIX}"))) == 2
    remove_stale_temp(tmp_path)
    lives.communicate()
    assert lives.returncode == 0
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")) == [
        "folder.txt",
        "folder/deep/a.txt",
    ]
    assert (tmp_path / "no[te]s").read_text() == "half"  # the later of the two
