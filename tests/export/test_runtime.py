"""The files of onnxruntime-web: checksums, cache and npm."""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
from pathlib import Path

import pytest

from camkd.export.web import runtime as runtime_module
from camkd.export.web.runtime import FILES, PACKAGE_SHA512, extract_runtime, runtime_files
from camkd.types import InputError


@pytest.mark.slow
def test_files_in_a_folder_are_used_if_their_checksums_match(runtime: Path, tmp_path: Path) -> None:
    assert [path.name for path in runtime_files(runtime)] == list(FILES)
    folder = tmp_path / "package" / "dist"
    folder.mkdir(parents=True)
    for path in runtime_files(runtime):
        shutil.copy(path, folder)
    assert runtime_files(tmp_path) == [folder / name for name in FILES]
    with (folder / "ort.wasm.min.mjs").open("a") as stream:
        stream.write("//")
    with pytest.raises(InputError, match=rf"onnxruntime-web.*got '{tmp_path}'"):
        runtime_files(tmp_path)


@pytest.mark.slow
def test_cache_is_used_and_repaired(runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMKD_CACHE", str(tmp_path))
    monkeypatch.setattr(
        runtime_module, "_download", lambda folder: shutil.copytree(runtime, folder, dirs_exist_ok=True)
    )
    paths = runtime_files(None)
    paths[0].write_text("corrupt")
    assert runtime_files(None)[0].read_bytes() == (runtime / paths[0].name).read_bytes()
    monkeypatch.setattr(runtime_module, "_download", lambda folder: pytest.fail("downloaded again"))
    assert runtime_files(None) == paths


def test_another_package_is_not_extracted(tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).write_text("evil")
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as package:
        for name in FILES:
            package.add(tmp_path / name, f"package/dist/{name}")
    with pytest.raises(InputError, match="sha512") as caught:
        extract_runtime(tmp_path / "a.tgz", tmp_path / "out")
    assert PACKAGE_SHA512 in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_missing_npm_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMKD_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"got no npm\. Install Node"):
        runtime_files(None)


@pytest.mark.slow
def test_failure_of_npm_is_an_input_error_with_its_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error network is unreachable' >&2\nexit 1\n")
    npm.chmod(npm.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CAMKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(InputError, match="got: npm error network is unreachable"):
        runtime_files(None)
