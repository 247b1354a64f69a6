"""Serving a page, and the files of onnxruntime-web that it needs."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from camkd.cli.main import main
from camkd.export.web import runtime as module
from camkd.export.web.runtime import FILES, runtime_files, unpack
from camkd.export.web.server import POLICY, page_server
from camkd.types import InputError

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "page"
    place.mkdir()
    for name in ("index.html", "page.json", "page.js", "a.mjs", "a.wasm"):
        (place / name).write_text(name)
    (tmp_path / "secret.txt").write_text("secret")
    return place


@pytest.fixture
def port(folder: Path) -> Iterator[int]:
    with page_server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def ask(port: int, path: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", path)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, answer.headers, content


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html"),
        ("/page.js", "text/javascript"),
        ("/a.mjs", "text/javascript"),
        ("/a.wasm", "application/wasm"),
        ("/page.json", "application/json"),
    ],
)
def test_files_have_the_types_that_browsers_insist_on(port: int, path: str, kind: str) -> None:
    status, headers, content = ask(port, path)
    assert (status, headers.get_content_type()) == (200, kind)
    assert content.decode() == path.lstrip("/") or path == "/"
    assert headers["Content-Security-Policy"] == f"{POLICY}; frame-ancestors 'none'"
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", ["/../secret.txt", "/%2e%2e/secret.txt", "//secret.txt", "/nothing.js"])
def test_nothing_outside_the_folder_is_served(port: int, path: str) -> None:
    assert ask(port, path)[0] == 404


def test_who_leaves_early_is_not_an_error(folder: Path, port: int, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "large.wasm").write_bytes(bytes(1 << 26))
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET /large.wasm HTTP/1.0\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.0 200")
    assert ask(port, "/page.js")[0] == 200
    assert capfd.readouterr().err == ""


def test_only_this_machine_is_served(folder: Path) -> None:
    with page_server(folder) as server:
        assert server.server_address[0] == "127.0.0.1"


def test_what_cannot_be_served(folder: Path, tmp_path: Path, capsys: Captured) -> None:
    assert main(["web", str(tmp_path)]) == 2
    assert "has no page: make one with 'camkd export RUN --web" in capsys.readouterr().err
    with page_server(folder) as server:
        taken = server.server_address[1]
        assert main(["web", str(folder), "--port", str(taken)]) == 2
        assert f"port {taken} cannot be used" in capsys.readouterr().err
    assert main(["web", str(folder), "--port", "70000"]) == 2


def test_ctrl_c_ends_it_well(folder: Path) -> None:
    code = (
        "import signal, sys; from camkd.cli.main import main; "
        "signal.signal(signal.SIGALRM, signal.default_int_handler); "
        f"signal.setitimer(signal.ITIMER_REAL, 0.5); sys.exit(main(['web', {str(folder)!r}, '--port', '0']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("http://127.0.0.1:")


# --- the runtime


def test_the_files_come_from_a_folder_if_they_are_those_that_were_tested(runtime: Path, tmp_path: Path) -> None:
    assert [path.name for path in runtime_files(runtime)] == list(FILES)
    package = tmp_path / "package" / "dist"
    package.mkdir(parents=True)
    for path in runtime_files(runtime):
        shutil.copy(path, package)
    assert runtime_files(tmp_path) == [package / name for name in FILES]
    with (package / "ort.wasm.min.mjs").open("a") as stream:
        stream.write("//")
    with pytest.raises(InputError, match="has not the files of onnxruntime-web"):
        runtime_files(tmp_path)


def test_the_cache_is_used_and_mended(runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMKD_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "_fetch", lambda folder: shutil.copytree(runtime, folder, dirs_exist_ok=True))
    first = runtime_files(None)
    first[0].write_text("damaged")
    assert runtime_files(None)[0].read_bytes() == (runtime / first[0].name).read_bytes()
    monkeypatch.setattr(module, "_fetch", lambda folder: pytest.fail("fetched again"))
    assert runtime_files(None) == first


def test_another_package_is_not_unpacked(tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).write_text("evil")
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as package:
        for name in FILES:
            package.add(tmp_path / name, f"package/dist/{name}")
    with pytest.raises(InputError, match="sha512 differs"):
        unpack(tmp_path / "a.tgz", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_npm_it_is_said_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMKD_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="npm is not here: install Node"):
        runtime_files(None)


def test_npm_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error network is unreachable' >&2\nexit 1\n")
    npm.chmod(npm.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CAMKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(InputError, match="npm error network is unreachable"):
        runtime_files(None)
