"""The command ``web``: serve an exported page."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from camkd.cli.commands.common import Command
from camkd.cli.streams import print_message


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=str, help="folder written by 'camkd export RUN --web FOLDER'")
    parser.add_argument("--port", type=int, default=8765, help="port on 127.0.0.1 (0: any free port)")


def _run(options: Namespace) -> dict[str, Any]:
    from camkd.export.web.server import page_server

    with page_server(Path(options.folder), options.port) as server:
        address = f"http://{server.server_address[0]!s}:{server.server_address[1]}/"
        print_message(f"{address} (Ctrl-C to stop)")
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    return {"address": address}


WEB = Command("Serve an exported page on this machine.", _add_options, _run)
