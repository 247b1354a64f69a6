"""The examples are run as they stand, on few pictures."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from camkd.distill.losses.registry import TERMS

EXAMPLES = Path(__file__).parents[1] / "examples"


def main_of(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example as a module, which its dataclasses need to be in."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module.main


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_it_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 80


def test_own_network(
    easy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = main_of("own_network", monkeypatch)(str(easy_folder), str(tmp_path), epochs=40)
    assert set(found) == {"plain", "cam-kd"}
    assert "cam-kd: " in capsys.readouterr().out


def test_custom_term(easy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TERMS, "center", TERMS["cam"])  # so that it is taken away afterwards
    found = main_of("custom_term", monkeypatch)(str(easy_folder), str(tmp_path), epochs=40)
    assert set(found) == {"teacher", "control", "student"}
    assert "center" in (tmp_path / "student" / "metrics.jsonl").read_text()
    assert (tmp_path / "report.html").exists()


def test_heatmaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "heatmaps.py"), run_name="__main__")
    drawn = capsys.readouterr().out.split()[-4:]
    for path in drawn:
        with Image.open(path) as image:
            assert image.size == (256, 256)
    assert len(set(drawn)) == 4
