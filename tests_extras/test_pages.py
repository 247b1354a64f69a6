"""Run the Python code of docs/maps.md and the example with a teacher of timm."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]


def test_maps() -> None:
    text = (ROOT / "docs" / "maps.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    for code in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(compile(code, "maps.md", "exec"), names)
    assert names["prediction"].cams.shape == (2, 1, 4, 4)  # type: ignore[attr-defined]


def test_timm_teacher(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(120):
        class_folder = tmp_path / "images" / ("berry", "leaf", "sky")[number % 3]
        class_folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 60, (32, 32, 3))
        pixels[:, :, number % 3] += 120
        Image.fromarray(pixels.astype(np.uint8)).save(class_folder / f"{number:03d}.png")
    example = runpy.run_path(str(ROOT / "examples" / "timm_teacher.py"))["main"]
    out = tmp_path / "out"
    assert example(str(tmp_path / "images"), "timm:resnet18", str(out), epochs=20, size=32) > 0.5
    assert (out / "report.html").exists()
    example(str(tmp_path / "images"), "timm:resnet18", str(out), epochs=20, size=32)  # reads the finished runs
