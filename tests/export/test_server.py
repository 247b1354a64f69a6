"""The server of a page: content types, headers, and this machine only."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from camkd.cli.main import main
from camkd.export.web.server import CONTENT_SECURITY_POLICY, page_server

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with files of each type, and a secret beside it."""
    folder = tmp_path / "page"
    folder.mkdir()
    for name in ("index.html", "page.json", "page.js", "a.mjs", "a.wasm"):
        (folder / name).write_text(name)
    (tmp_path / "secret.txt").write_text("secret")
    return folder


@pytest.fixture
def port(folder: Path) -> Iterator[int]:
    """The port of a running server of `folder`."""
    with page_server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def get(port: int, path: str, **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, response.headers, content


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/", "text/html"),
        ("/page.js", "text/javascript"),
        ("/a.mjs", "text/javascript"),
        ("/a.wasm", "application/wasm"),
        ("/page.json", "application/json"),
    ],
)
def test_content_types_and_security_headers(port: int, path: str, content_type: str) -> None:
    status, headers, content = get(port, path)
    assert (status, headers.get_content_type()) == (200, content_type)
    assert content.decode() == path.lstrip("/") or path == "/"
    assert headers["Content-Security-Policy"] == f"{CONTENT_SECURITY_POLICY}; frame-ancestors 'none'"
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("header", "value"),
    [("If-Modified-Since", "Fri, 01 Jan 2100 00:00:00 GMT"), ("If-None-Match", "*"), ("If-None-Match", '"1"')],
)
@pytest.mark.parametrize("path", ["/", "/page.json", "/page.js", "/a.wasm"])
def test_content_is_sent_whatever_the_browser_holds(port: int, path: str, header: str, value: str) -> None:
    """The browser's copy may be of another folder that was served at this address, with newer files."""
    status, headers, content = get(port, path, **{header: value})
    assert (status, content.decode()) == (200, path.lstrip("/") or "index.html")
    assert headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("path", ["/../secret.txt", "/%2e%2e/secret.txt", "//secret.txt", "/nothing.js"])
def test_files_outside_the_folder_are_not_served(port: int, path: str) -> None:
    assert get(port, path)[0] == 404


def test_closed_connection_is_not_an_error(folder: Path, port: int, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "large.wasm").write_bytes(bytes(1 << 26))
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET /large.wasm HTTP/1.0\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.0 200")
    assert get(port, "/page.js")[0] == 200
    assert capfd.readouterr().err == ""


def test_server_listens_on_localhost_only(folder: Path) -> None:
    with page_server(folder) as server:
        assert server.server_address[0] == "127.0.0.1"


def test_folder_without_a_page_is_an_input_error(tmp_path: Path, capsys: Captured) -> None:
    assert main(["web", str(tmp_path)]) == 2
    assert f"'{tmp_path}' must hold a page, got none" in capsys.readouterr().err


def test_unavailable_port_is_an_input_error(folder: Path, capsys: Captured) -> None:
    with page_server(folder) as server:
        port = server.server_address[1]
        assert main(["web", str(folder), "--port", str(port)]) == 2
        assert f"--port must be a free port, got {port} (" in capsys.readouterr().err
    assert main(["web", str(folder), "--port", "70000"]) == 2
    assert "got 70000" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_stops_the_server_with_status_0(folder: Path) -> None:
    """An alarm after 0.5 s raises KeyboardInterrupt, as Ctrl-C does."""
    code = (
        "import signal, sys; from camkd.cli.main import main; "
        "signal.signal(signal.SIGALRM, signal.default_int_handler); "
        f"signal.setitimer(signal.ITIMER_REAL, 0.5); sys.exit(main(['web', {str(folder)!r}, '--port', '0']))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stderr.startswith("http://127.0.0.1:")
