"""The command ``report``: the HTML report of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from camkd.cli.commands.common import Command
from camkd.cli.streams import print_message


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument("runs", type=str, nargs="+", help="run folders, or output folders of 'camkd train'")
    parser.add_argument(
        "--out", type=str | None, default=None, help="HTML file (default: report.html in the first folder)"
    )


def _run(options: Namespace) -> dict[str, Any]:
    from camkd.report.report import write_report

    out = Path(options.out or Path(options.runs[0]) / "report.html")
    write_report([Path(run) for run in options.runs], out)
    print_message(f"report: {out}")
    return {"out": str(out)}


REPORT = Command("Write the HTML report of run folders.", _add_options, _run)
