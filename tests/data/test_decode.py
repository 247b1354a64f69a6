"""The decoder pool: results are independent of the number of workers, and no process is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camkd.data import decode
from camkd.data.dataset import no_progress
from camkd.data.decode import DecoderPool
from camkd.data.sources import open_data
from camkd.data.store import create_image_file
from camkd.types import InputError, Preprocessing

SIZE = 4
COUNT = 3 * decode.FILES_PER_TASK + 5


@pytest.fixture
def start_workers_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the workers after the first task, however fast it was."""
    monkeypatch.setattr(decode, "IN_PROCESS_SECONDS", 0.0)


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Image files with unusual names; image ``i`` has the gray level ``i``."""
    folder = tmp_path / "été \udcff"
    folder.mkdir()
    paths = [str(folder / f"{row}.png") for row in range(COUNT)]
    for row, path in enumerate(paths):
        Image.new("L", (4, 4), row).save(path)
    return paths


@pytest.fixture
def file(tmp_path: Path) -> Path:
    create_image_file(tmp_path / "x_images.npy", COUNT, SIZE)
    return tmp_path / "x_images.npy"


def decode_all(workers: int, file: Path, paths: list[str]) -> tuple[dict[int, str], list[tuple[int, int, str]], int]:
    """Return the errors, the calls of the progress callback and the number of worker processes."""
    calls: list[tuple[int, int, str]] = []
    with DecoderPool(workers) as pool:
        errors = pool.decode_into(
            file,
            dict(enumerate(paths)),
            Preprocessing(SIZE),
            lambda *arguments: calls.append(arguments),
            "reading",
        ).errors
        num_processes = len(pool._workers)
    return errors, calls, num_processes


@pytest.mark.slow
@pytest.mark.usefixtures("start_workers_early")
@pytest.mark.parametrize(("workers", "expected_processes"), [(2, 2), (9, 3)])
def test_workers_decode_each_image_into_its_row(
    paths: list[str], file: Path, workers: int, expected_processes: int
) -> None:
    errors, calls, num_processes = decode_all(workers, file, paths)
    assert errors == {}
    assert num_processes == expected_processes
    assert (np.load(file) == np.arange(COUNT)[:, None, None, None]).all()
    assert calls == [(min(COUNT, done), COUNT, "reading") for done in (64, 128, 192, 256)]


@pytest.mark.usefixtures("start_workers_early")
def test_one_worker_is_the_current_process(paths: list[str], file: Path) -> None:
    errors, calls, num_processes = decode_all(1, file, paths)
    assert errors == {}
    assert num_processes == 0
    assert (np.load(file) == np.arange(COUNT)[:, None, None, None]).all()
    assert calls == [(min(COUNT, done), COUNT, "reading") for done in (64, 128, 192, 256)]


@pytest.mark.slow
@pytest.mark.usefixtures("start_workers_early")
def test_workers_report_the_same_errors(paths: list[str], file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(paths[100]).write_text("not an image")
    Path(paths[150]).unlink()
    Image.new("L", (5, 4)).save(paths[190])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 16)
    expected, errors = (decode_all(workers, file, paths)[0] for workers in (1, 2))
    assert errors == expected
    assert sorted(errors) == [100, 150, 190]


def test_few_images_start_no_worker(paths: list[str], file: Path) -> None:
    assert decode_all(8, file, paths)[2] == 0


@pytest.mark.slow
@pytest.mark.usefixtures("start_workers_early")
def test_workers_are_reused_and_end_with_the_pool(paths: list[str], file: Path) -> None:
    with DecoderPool(2) as pool:
        pool.decode_into(file, dict(enumerate(paths)), Preprocessing(SIZE), no_progress, "reading")
        processes = [worker.process for worker in pool._workers]
        pool.decode_into(file, {0: paths[0]}, Preprocessing(SIZE), no_progress, "reading")
        assert [worker.process for worker in pool._workers] == processes
        assert all(process.poll() is None for process in processes)
    assert all(process.poll() is not None for process in processes)


@pytest.mark.slow
@pytest.mark.usefixtures("start_workers_early")
def test_killed_worker_raises_an_error(paths: list[str], file: Path) -> None:
    with DecoderPool(2) as pool:
        pool.decode_into(file, dict(enumerate(paths)), Preprocessing(SIZE), no_progress, "reading")
        for worker in pool._workers:
            worker.process.kill()
        with pytest.raises(InputError, match=r"must exit with status 0, got -9 while it decoded \d+ images.*\.png'"):
            pool.decode_into(file, dict(enumerate(paths)), Preprocessing(SIZE), no_progress, "reading")


SCRIPT = """
import os, signal, sys
from pathlib import Path
from camkd.data import decode
from camkd.data.sources import open_data

print("started", flush=True)
decode.IN_PROCESS_SECONDS = 0.0

def progress(done, total, description):
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    print(description, done, children.read_text() if children.exists() else "", flush=True)
    if done > 64 and "wait" in sys.argv:
        sys.stdin.read()

signal.signal(signal.SIGINT, signal.default_int_handler)  # SIGINT is ignored in a background job of a shell
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


def start_script(tmp_path: Path, root: Path, *arguments: str) -> subprocess.Popen[str]:
    (tmp_path / "script.py").write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(tmp_path / "script.py"), str(root), str(tmp_path / "cache"), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_script_needs_no_main_guard(tmp_path: Path, root: Path) -> None:
    with start_script(tmp_path, root) as script:
        out, err = script.communicate()
    assert err == ""
    assert out.splitlines()[0] == "started"
    assert out.count("started") == 1
    expected = open_data(root, size=4, workers=1, cache=tmp_path / "other_cache")
    assert out.splitlines()[-1] == f"finished {expected.fingerprint}"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to list child processes")
def test_ctrl_c_ends_the_workers_and_leaves_no_files(tmp_path: Path, root: Path) -> None:
    with start_script(tmp_path, root, "wait") as script:
        assert script.stdout
        lines = [script.stdout.readline() for _ in range(3)]
        children = [int(child) for child in lines[-1].split()[4:]]
        os.killpg(script.pid, signal.SIGINT)  # like Ctrl-C in a terminal: every process of the group
        _, err = script.communicate()
    assert len(children) == 2
    assert script.returncode == -signal.SIGINT
    assert err.count("Traceback") == 1
    assert err.endswith("KeyboardInterrupt\n")
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert not list((tmp_path / "cache" / "data").iterdir())
