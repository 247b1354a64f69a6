"""Light modules import no torch, and the public names are one list. `lint-imports` checks the layers."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PUBLIC = ["InputError", "Prediction", "__version__", "build", "load", "predict"]
LIGHT = [
    "cli.listing",
    "cli.main",
    "cli.recipes",
    "cli.tables",
    "config",
    "data",
    "distill.methods",
    "types",
    "utils.files",
    "utils.units",
]


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_import_no_heavy_library(name: str) -> None:
    """Import the module in a new interpreter: `--help` and the lists must start without torch."""
    code = f"import sys, camkd.{name}; print([m for m in ('torch', 'scipy', 'matplotlib') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_the_public_names() -> None:
    import camkd

    assert sorted(camkd.__all__) == PUBLIC
    assert all(hasattr(camkd, name) for name in PUBLIC)


@pytest.mark.slow
def test_every_package_is_an_attribute_of_the_root() -> None:
    """`import camkd; camkd.cams.form(...)` works without a second import."""
    code = "import camkd; print(camkd.cams.form.__name__, camkd.data.open_data.__name__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["form", "open_data"]


def test_four_modules_at_the_root() -> None:
    root = ROOT / "src" / "camkd"
    assert sorted(path.name for path in root.glob("*.py")) == ["__init__.py", "__main__.py", "config.py", "types.py"]


def test_the_version_is_the_installed_one() -> None:
    import camkd

    assert camkd.__version__ == version("camkd"), "pyproject.toml and __init__.py differ, or install again"
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(\d.*?)\] - \d{4}-\d\d-\d\d$", changes, re.MULTILINE)
    assert newest is not None
    assert newest[1] == camkd.__version__, "a version has its entry in the changelog"
