"""Many pictures at once: the same rows whoever decodes them, and nothing left behind whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camkd.data import decode as decoders
from camkd.data.dataset import new_images, no_progress
from camkd.data.decode import Decoders
from camkd.data.sources import open_data
from camkd.types import InputError

COUNT = 3 * decoders.FILES_AT_ONCE + 5


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let other processes take over after the first few pictures, however quick they were."""
    monkeypatch.setattr(decoders, "SECONDS_ALONE", 0.0)


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Grey pictures, each lighter than the one before, in files with names of any kind."""
    folder = tmp_path / "été \udcff"
    folder.mkdir()
    found = [str(folder / f"{row}.png") for row in range(COUNT)]
    for row, path in enumerate(found):
        Image.new("L", (4, 4), row).save(path)
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    new_images(tmp_path / "x_images.npy", COUNT, 4)
    return tmp_path / "x_images.npy"


def fill(workers: int, file: Path, paths: list[str]) -> tuple[dict[int, str], list[tuple[int, int, str]], int]:
    """The reasons, what progress was told, and how many other processes there were."""
    heard: list[tuple[int, int, str]] = []
    with Decoders(workers) as crew:
        bad = crew.fill(file, paths, lambda *said: heard.append(said), "reading")
        others = len(crew._processes)
    return bad, heard, others


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(("workers", "others"), [(1, 0), (2, 2), (9, 3)])
def test_each_picture_lands_in_its_row(paths: list[str], file: Path, workers: int, others: int) -> None:
    bad, heard, seen = fill(workers, file, paths)
    assert (bad, seen) == ({}, others)
    np.testing.assert_array_equal(
        np.load(file), np.broadcast_to(np.arange(COUNT)[:, None, None, None], (COUNT, 4, 4, 3))
    )
    assert heard == [(min(COUNT, done), COUNT, "reading") for done in (64, 128, 192, 256)]


@pytest.mark.usefixtures("at_once")
def test_other_processes_tell_the_same_reasons(paths: list[str], file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(paths[100]).write_text("no")
    Path(paths[150]).unlink()
    Image.new("L", (5, 4)).save(paths[190])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 16)
    alone, together = (fill(workers, file, paths)[0] for workers in (1, 2))
    assert together == alone
    assert sorted(alone) == [100, 150, 190]


def test_little_is_done_here(paths: list[str], file: Path) -> None:
    assert fill(8, file, paths)[2] == 0


@pytest.mark.usefixtures("at_once")
def test_the_processes_stay_for_the_next_file_and_end_with_the_last(paths: list[str], file: Path) -> None:
    with Decoders(2) as crew:
        crew.fill(file, paths, no_progress, "reading")
        first = [process.python for process in crew._processes]
        crew.fill(file, paths[:1], no_progress, "reading")
        assert [process.python for process in crew._processes] == first
        assert all(python.poll() is None for python in first)
    assert all(python.poll() is not None for python in first)


@pytest.mark.usefixtures("at_once")
def test_a_process_that_dies_is_an_error_with_the_place(paths: list[str], file: Path) -> None:
    with Decoders(2) as crew:
        crew.fill(file, paths, no_progress, "reading")
        for process in crew._processes:
            process.python.kill()
        with pytest.raises(InputError, match=r"a process died \(status -9\) of one of \d+ pictures.*\.png'"):
            crew.fill(file, paths, no_progress, "reading")


SCRIPT = """
import os, signal, sys
from pathlib import Path
from camkd.data import decode as decoders
from camkd.data.sources import open_data

print("started", flush=True)
decoders.SECONDS_ALONE = 0.0

def progress(done, total, what):
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    print(what, done, children.read_text() if children.exists() else "", flush=True)
    if done > 64 and "stop" in sys.argv:
        sys.stdin.read()

signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored where a shell runs the tests behind itself
root, cache = map(Path, sys.argv[1:3])
data = open_data(root, size=4, workers=2, cache=cache, progress=progress)
print("finished", data.fingerprint)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, count in (("train", 100), ("test", 2), ("val", 2)):
        for row in range(2 * count):
            path = tmp_path / "pets" / split / "ab"[row % 2] / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4), row).save(path)
    return tmp_path / "pets"


def run(tmp_path: Path, root: Path, *more: str) -> subprocess.Popen[str]:
    (tmp_path / "script.py").write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(tmp_path / "script.py"), str(root), str(tmp_path / "cache"), *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_script_needs_no_guard(tmp_path: Path, root: Path) -> None:
    with run(tmp_path, root) as script:
        out, err = script.communicate()
    assert err == ""
    assert out.splitlines()[0] == "started"
    assert out.count("started") == 1
    alone = open_data(root, size=4, workers=1, cache=tmp_path / "here")
    assert out.splitlines()[-1] == f"finished {alone.fingerprint}"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to see the processes")
def test_ctrl_c_ends_the_processes_and_leaves_nothing(tmp_path: Path, root: Path) -> None:
    with run(tmp_path, root, "stop") as script:
        assert script.stdout
        said = [script.stdout.readline() for _ in range(3)]
        children = [int(child) for child in said[-1].split()[4:]]
        os.killpg(script.pid, signal.SIGINT)  # as a terminal does: everyone gets it
        _, err = script.communicate()
    assert len(children) == 2
    assert script.returncode == -signal.SIGINT
    assert err.count("Traceback") == 1
    assert err.endswith("KeyboardInterrupt\n")
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert not list((tmp_path / "cache" / "data").iterdir())
