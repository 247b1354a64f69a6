"""Atomic writes, temporary files of killed processes, and JSON."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from camkd.utils.files import (
    TEMP_SUFFIX,
    atomic_write,
    commit_dir,
    dump_checksummed,
    load_checksummed,
    load_json,
    lock_folder,
    remove_stale_temp,
    reserve,
    staged_dir,
    write_json,
    write_text,
)
from support.fault_injection import umask

# --- atomic_write


def test_atomic_write_replaces_the_file_on_exit(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path, "a rename must stay on one file system"
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_atomic_write_leaves_the_old_file_after_an_exception(tmp_path: Path, error: type[BaseException]) -> None:
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


def test_atomic_write_leaves_the_old_file_if_the_temporary_file_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), atomic_write(path) as temporary:
        temporary.unlink()
    assert path.read_text() == "old"


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_mode_follows_the_umask_and_the_umask_is_kept(tmp_path: Path, mask: int, mode: int) -> None:
    path = tmp_path / "notes.txt"
    path.touch(0o600)
    with umask(mask):
        write_text(path, "new")
        assert os.umask(mask) == mask
    assert path.stat().st_mode & 0o777 == mode


def test_parents_are_created_and_two_writers_use_two_temporary_files(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "notes.txt"
    with atomic_write(path) as first, atomic_write(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # the outer context exits last
    assert list(path.parent.iterdir()) == [path]


# --- text and JSON


def test_text_is_utf8_in_every_locale(tmp_path: Path) -> None:
    write_text(tmp_path / "text", "Übung 猫\n")
    assert (tmp_path / "text").read_bytes() == "Übung 猫\n".encode()


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"accuracy": 0.1 + 0.2, "classes": ["Übung", "猫"], "nothing": None, "count": 1 << 60}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == load_json(text) == value
    assert "猫" in text
    assert text.endswith("}\n")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_write_json_refuses_nan_and_infinity_and_keeps_the_old_file(tmp_path: Path, value: float) -> None:
    write_json(tmp_path / "a.json", {"accuracy": 1.0})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"accuracy": value})
    assert json.loads((tmp_path / "a.json").read_text()) == {"accuracy": 1.0}
    assert len(list(tmp_path.iterdir())) == 1


def test_load_json_refuses_deep_nesting() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        load_json("[" * 100_000)


def test_checksummed_json_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    text = dump_checksummed({"step": 30, "name": "猫"})
    path.write_text(text, encoding="utf-8")
    assert load_checksummed(path) == {"step": 30, "name": "猫"}
    for corrupt in (text.replace("30", "31"), '{"step": 30}', "[]"):
        path.write_text(corrupt, encoding="utf-8")
        with pytest.raises(ValueError, match="its checksum differs"):
            load_checksummed(path)


# --- reserve and lock_folder


def test_reserve_extends_a_file_with_zeros_and_never_shrinks_it(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"abc")
    reserve(path, 1000)
    assert path.read_bytes() == b"abc" + bytes(997)
    reserve(path, 10)
    assert path.stat().st_size == 1000


def test_locked_folder_raises_an_error_that_names_the_owner(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with lock_folder(folder):
        with pytest.raises(BlockingIOError, match=rf"locked by process {os.getpid()} on .*: '{folder}'"):
            lock_folder(folder).__enter__()
        assert (folder / ".lock").exists()
    assert list(folder.iterdir()) == []
    with lock_folder(folder):
        pass


# --- commit_dir


def test_commit_dir_adds_files_on_exit(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    folder.mkdir(parents=True)
    (folder / "old.txt").write_text("old")
    (folder / "other.txt").write_text("other")
    with commit_dir(folder) as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "a.txt").write_text("a")
        (temporary / "old.txt").write_text("new")
        assert (folder / "old.txt").read_text() == "old"
    files = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert files == {"old.txt": "new", "other.txt": "other", "deep/a.txt": "a"}
    assert list(folder.parent.iterdir()) == [folder]


def test_commit_dir_leaves_the_folder_unchanged_after_an_exception(tmp_path: Path) -> None:
    def fail() -> None:
        with commit_dir(tmp_path / "folder") as temporary:
            (temporary / "a.txt").write_text("a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


# --- temporary files of killed processes

WRITER = """
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from camkd.utils.files import atomic_write, commit_dir

root = Path(sys.argv[1])
with commit_dir(root / "folder") as folder, atomic_write(root / "no[te]s") as temporary:
    (folder / "deep").mkdir()
    (folder / "deep" / "a.txt").write_text("half")
    temporary.write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.fault("temporary files of a killed process")
def test_stale_temporary_files_are_removed_and_those_of_live_writers_kept(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    killed, alive = (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    )
    for writer in (killed, alive):
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
    assert len(list(tmp_path.glob(f".*{TEMP_SUFFIX}"))) == 4
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    write_text(tmp_path / "no[te]s", "complete")  # removes the stale file of the same name
    write_text(tmp_path / "folder.txt", "another name")
    assert len(list(tmp_path.glob(f".*{TEMP_SUFFIX}"))) == 3
    with commit_dir(tmp_path / "folder"):  # removes the stale folder of the same name
        pass
    assert len(list(tmp_path.glob(f".*{TEMP_SUFFIX}"))) == 2
    remove_stale_temp(tmp_path)
    alive.communicate()
    assert alive.returncode == 0
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")) == [
        "folder.txt",
        "folder/deep/a.txt",
    ]
    assert (tmp_path / "no[te]s").read_text() == "half"  # the live writer finished last


# --- errors


@pytest.mark.fault("read-only folder")
@pytest.mark.parametrize("folder", ["/sys", "/proc"])
@pytest.mark.parametrize("write", [atomic_write, staged_dir, commit_dir])
def test_error_of_a_folder_without_write_access_names_the_folder(folder: str, write: Callable[[Path], Any]) -> None:
    if not Path(folder).is_dir():
        pytest.skip(f"There is no {folder}.")
    with pytest.raises(OSError, match=f"'{folder}'$") as caught, write(Path(folder, "x.json")):
        pass
    assert caught.value.filename == folder


@pytest.mark.fault("read-only folder")
def test_errors_name_final_paths(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="directory") as caught, atomic_write(tmp_path / "taken") as temporary:
        temporary.write_text("content")
    assert caught.value.filename == str(tmp_path / "taken")
    (tmp_path / "out" / "a.txt").mkdir(parents=True)
    with pytest.raises(OSError, match="directory") as caught, commit_dir(tmp_path / "out") as temporary:
        (temporary / "a.txt").write_text("content")
    assert caught.value.filename == str(tmp_path / "out" / "a.txt")
    with pytest.raises(FileNotFoundError) as caught, staged_dir(tmp_path / "new") as temporary:
        (temporary / "missing" / "b.txt").write_text("content")
    assert caught.value.filename == str(tmp_path / "new" / "missing" / "b.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "taken"]
