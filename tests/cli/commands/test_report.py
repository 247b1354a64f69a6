"""The command ``report``: the page of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.cli import camkd


def test_report(finished: Any, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    output = camkd("report", str(finished.folder), "--out", str(out), "--json")
    assert output.json == {"out": str(out)}
    assert output.err == f"report: {out}\n"
    assert "<html" in out.read_text(encoding="utf-8")
