"""HTTP server of an exported page, for this machine only.

Different folders may be served at the same address, one after the other. So every response has the content of the file,
never "304 Not Modified", and browsers do not store it. The service worker of the page keeps a copy for offline use.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from camkd.types import InputError

HOST = "127.0.0.1"

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'"
)
"""Content-Security-Policy without requests to other servers. ``index.html`` contains the same policy."""


class _Handler(SimpleHTTPRequestHandler):
    """Serve the files of a page with security headers and without a log."""

    extensions_map = {  # noqa: RUF012  # as in the base class
        **SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
        ".json": "application/json",
    }

    def send_head(self) -> Any:
        for name in ("If-Modified-Since", "If-None-Match"):  # about a file of the folder that was served before
            del self.headers[name]
        return super().send_head()

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", f"{CONTENT_SECURITY_POLICY}; frame-ancestors 'none'")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def copyfile(self, source: Any, outputfile: Any) -> None:
        with suppress(ConnectionError):  # the client closed the connection
            super().copyfile(source, outputfile)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def page_server(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """Create a server for an exported page on 127.0.0.1.

    Args:
        folder: Folder written by ``camkd export RUN --web FOLDER``.
        port: Port of the server. 0: any free port.

    Returns:
        The server, bound to the port.

    Raises:
        InputError: If ``folder`` holds no page, or the port is not available.

    Example:
        >>> with page_server(Path("page"), 8765) as server:      # doctest: +SKIP
        ...     server.serve_forever()
    """
    if not (folder / "page.json").exists():
        raise InputError(
            f"{str(folder)!r} must hold a page, got none. Write one with 'camkd export RUN --web {folder}'."
        )
    try:
        return ThreadingHTTPServer((HOST, port), partial(_Handler, directory=str(folder)))
    except (OSError, OverflowError) as error:
        raise InputError(f"--port must be a free port, got {port} ({error}). Choose another port.") from error
