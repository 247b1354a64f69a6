"""Unusual machines: home folders, optimized bytecode, standard streams that fail, and other platforms."""

from __future__ import annotations

import json
import os
import pwd
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from camkd.data.dataset import cache_folder
from camkd.types import InputError
from camkd.utils import files
from camkd.utils.files import LOCK_SUFFIX, commit_dir, lock_folder, write_text
from support.cli import QUICK, Output, camkd

TRAIN = ["teacher", "--model", "resnet8", *QUICK]


def run(*arguments: str, environment: Mapping[str, str] | None = None, **options: Any) -> Output:
    """Run a command in a new process."""
    process = subprocess.run(
        [sys.executable, "-m", "camkd", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=options.pop("stderr", subprocess.PIPE),
        encoding=(environment or {}).get("PYTHONIOENCODING", "utf-8"),
        **options,
    )
    return Output(process.returncode, process.stdout, process.stderr)


def closed_pipe() -> int:
    """Return the writing end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


# --- home folders


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, and another working folder."""
    folder = tmp_path / "home"
    folder.mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path / "work")
    return folder


@pytest.mark.fault("~ in an option")
def test_leading_tilde_is_the_home_folder_in_every_option(home: Path, easy_folder: Path) -> None:
    (home / "images").symlink_to(easy_folder)
    (home / "config.yaml").write_text("data: ~/images\nout: ~/runs/teacher\n")
    assert camkd(*TRAIN, "--config=~/config.yaml").status == 0
    assert (home / "runs" / "teacher" / "metrics.json").exists()
    student = camkd(
        "distill", *QUICK, "--method=plain", "--data=~/images", "--teacher=~/runs/teacher", "--student=resnet8",
        "--out=~/runs/student",
    )  # fmt: skip
    assert student.status == 0, student.err
    assert camkd("evaluate", "~/runs/student").status == 0
    assert camkd("explain", "~/runs/student", "~/images/test/sky", "--out=~/maps").status == 0
    assert camkd("report", "~/runs/teacher", "~/runs/student", "--out=~/report.html").status == 0
    assert {path.name for path in home.iterdir()} == {"images", "config.yaml", "runs", "maps", "report.html"}
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.fault("~ in an option")
@pytest.mark.parametrize("option", ["--out", "--data"])
def test_unknown_home_folder_is_an_input_error(home: Path, option: str) -> None:
    error = camkd(*TRAIN, "--data", "shapes", f"{option}=~nobody-has-this-name/x").error
    assert f"{option} must start with an existing home folder, got '~nobody-has-this-name/x'" in error
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.fault("~ in an option")
def test_file_whose_name_starts_with_a_tilde_is_that_file(home: Path) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("~photo.png")
    result = camkd("explain", "cam-net-cifar10", "~photo.png", "--out", "maps.png")
    assert result.status == 0, result.err


@pytest.mark.fault("no home folder")
@pytest.mark.parametrize("cache", ["", "~nobody-has-this-name/cache"])
def test_missing_home_folder_is_an_input_error(monkeypatch: pytest.MonkeyPatch, cache: str) -> None:
    def fail(_: int) -> None:
        raise KeyError("no entry for this user")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", fail)
    monkeypatch.setenv("CAMKD_CACHE", cache)
    with pytest.raises(InputError, match=r"existing home folder, got '~.*'\. Set CAMKD_CACHE to a full path"):
        cache_folder()


@pytest.mark.slow
@pytest.mark.fault("no home folder")
def test_home_folder_that_cannot_be_written_prints_one_sentence() -> None:
    environment = {"HOME": "/proc/nowhere", "CAMKD_CACHE": "", "MPLCONFIGDIR": "", "XDG_CONFIG_HOME": ""}
    error = run(*TRAIN, "--data", "shapes", environment=environment).error
    assert "the cache folder '/proc/nowhere/.cache/camkd/data' must be writable" in error


# --- optimized bytecode


@pytest.mark.slow
@pytest.mark.fault("PYTHONOPTIMIZE=2")
def test_commands_run_without_docstrings(easy_folder: Path, tmp_path: Path) -> None:
    optimized = {"PYTHONOPTIMIZE": "2", "CAMKD_CACHE": str(tmp_path / "cache")}
    assert run("train", "--help", environment=optimized) == run("train", "--help")
    out = str(tmp_path / "run")
    commands = [
        [*TRAIN, "--data", str(easy_folder), "--out", out],
        ["evaluate", out],
        ["explain", out, str(easy_folder / "test" / "sky"), "--out", str(tmp_path / "maps.png")],
        ["report", out, "--out", str(tmp_path / "report.html")],
        ["list", "methods"],
    ]
    for command in commands:
        result = run(*command, environment=optimized)
        assert (result.status, "Traceback" in result.err) == (0, False), result.err


# --- standard streams


@pytest.mark.slow
@pytest.mark.fault("closed pipe")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["list", "methods"], ["list", "methods", "--json"]])
def test_closed_pipe_ends_the_command_silently(arguments: list[str], unbuffered: str) -> None:
    writer = closed_pipe()
    result = run(*arguments, environment={"PYTHONUNBUFFERED": unbuffered}, stdout=writer)
    os.close(writer)
    assert (result.status, result.err) == (1, "")


@pytest.mark.slow
@pytest.mark.fault("closed pipe")
@pytest.mark.parametrize("is_open", [False, True])
def test_training_does_not_need_stderr(easy_folder: Path, tmp_path: Path, is_open: bool) -> None:
    """The reader of stderr has ended, or the shell has closed stderr (``2>&-``)."""
    writer = closed_pipe()
    command = [*TRAIN, "--data", str(easy_folder), "--out", str(tmp_path / "run"), "--json"]
    options: dict[str, Any] = {"stderr": writer} if is_open else {"stderr": None, "preexec_fn": lambda: os.close(2)}
    result = run(*command, **options)
    os.close(writer)
    assert result.status == 0
    assert json.loads(result.out)["accuracy"] == json.loads((tmp_path / "run" / "metrics.json").read_text())["accuracy"]


@pytest.mark.slow
@pytest.mark.fault("full disk under stdout")
def test_full_disk_under_stdout_is_one_sentence(tmp_path: Path) -> None:
    def limit_file_size() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    with (tmp_path / "out.json").open("w") as out:
        result = run("list", "methods", "--json", stdout=out, preexec_fn=limit_file_size)
    assert (result.status, result.err) == (
        1,
        "camkd: stdout must be writable, got: File too large. Free disk space, or print to another file.\n",
    )


@pytest.mark.slow
@pytest.mark.fault("stdout that is not UTF-8")
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_output_in_every_encoding(tmp_path: Path, encoding: str) -> None:
    image = tmp_path / "été 猫.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(image)
    environment = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    result = run("explain", "cam-net-cifar10", str(image), "--out", str(tmp_path / "x.png"), "--json",
                 environment=environment)  # fmt: skip
    assert (result.status, "Traceback" in result.err) == (0, False), result.err
    assert list(json.loads(result.out)["images"]) == [str(image)]
    table = run("list", "methods", environment=environment)
    assert (table.status, table.err) == (0, "")


# --- other platforms


@pytest.mark.fault("another platform")
def test_atomic_writes_and_locks_with_the_calls_of_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders are not flushed, and lock files are removed after their release."""
    fsync = os.fsync

    def fsync_of_windows(descriptor: int) -> None:
        assert os.path.isfile(f"/proc/self/fd/{descriptor}")
        fsync(descriptor)

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "fsync", fsync_of_windows)
    monkeypatch.delattr(os, "posix_fallocate")
    write_text(tmp_path / "a.txt", "content")
    files.reserve(tmp_path / "b.bin", 10)
    with commit_dir(tmp_path / "folder") as temporary:
        (temporary / "c.txt").write_text("content")
    with lock_folder(tmp_path / "folder"), pytest.raises(BlockingIOError, match=f"locked by process {os.getpid()} "):
        lock_folder(tmp_path / "folder").__enter__()
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert names == ["a.txt", "b.bin", "folder", "folder/c.txt"]


@pytest.mark.fault("another platform")
def test_locks_are_those_of_filelock(tmp_path: Path) -> None:
    """A process with another implementation of file locks waits for the same lock."""
    with FileLock(tmp_path / LOCK_SUFFIX), pytest.raises(BlockingIOError, match="locked by another process"):
        lock_folder(tmp_path).__enter__()


@pytest.mark.fault("another platform")
def test_paths_of_the_repository_differ_without_regard_to_case() -> None:
    root = Path(__file__).parents[2]
    result = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True)
    if result.returncode:
        pytest.skip("This is not a git checkout.")
    paths = [path.lower() for path in result.stdout.splitlines()]
    assert sorted(set(paths)) == sorted(paths)
    forbidden = [path for path in paths if set(path) & set('<>:"|?*\\') or path.endswith((".", " "))]
    assert forbidden == []


# --- text of options


@pytest.mark.fault("empty option")
@pytest.mark.parametrize(
    "arguments",
    [
        [*TRAIN, "--data", "shapes", "--limit", "30", "--out", ""],
        [*TRAIN, "--data", " "],
        ["explain", "cam-net-cifar10", "x.png", "--out", " "],
        ["cache", "prune", ""],
        ["export", "cam-net-cifar10", "--teacher", ""],
    ],
)
def test_empty_option_is_an_error(home: Path, arguments: list[str]) -> None:
    assert "must not be empty" in camkd(*arguments).error
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.fault("option that is not Unicode")
@pytest.mark.parametrize("option", ["--out", "--data"])
def test_undecodable_option_is_an_error(home: Path, option: str) -> None:
    error = camkd(*TRAIN, "--data", "shapes", "--limit", "30", option, os.fsdecode(b"run\xff")).error
    assert f"{option} must be Unicode text, got 'run\\udcff'" in error
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.fault("deleted working folder")
def test_deleted_working_folder_is_one_sentence(home: Path, easy_folder: Path) -> None:
    folder = Path.cwd() / "deleted"
    folder.mkdir()
    os.chdir(folder)
    folder.rmdir()
    result = camkd("explain", "cam-net-cifar10", str(easy_folder / "test" / "sky"), "--out", "maps.png")
    assert (result.status, result.err.splitlines()[-1]) == (
        1,
        "camkd: the current folder must exist, got a deleted folder. Change to another folder.",
    )
