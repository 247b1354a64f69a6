"""The arrows of docs/architecture.md: imports go down only, no cycles, and the light files stay light."""

from __future__ import annotations

import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import version
from pathlib import Path

import pytest

from rooms import DIAGRAM, PAGE, SOURCE, direct, drawn, imports_of, modules_of, room, rooms_of

PUBLIC = ["InputError", "Prediction", "__version__", "build", "load", "predict"]
LIGHT = ["cli", "catalogue", "config", "data", "files", "methods", "recipes", "tables", "types"]


def offences(source: Path, rooms: dict[str, int]) -> list[str]:
    """Each import that does not go to a lower room or stay in its own package folder, as a sentence."""
    modules = modules_of(source)
    found = []
    for name in modules:
        if name == "camkd":  # the public face may import from every room
            continue
        if room(name, modules) not in rooms:
            found.append(f"{name} is in no room of docs/architecture.md")
            continue
        here = room(name, modules)
        for target, line in imports_of(name, modules):
            where = f"{name}:{line} imports {target}"
            if target == "camkd":
                found.append(f"{where}, the public face above every room; import from the file that defines it")
            elif target not in modules:
                found.append(f"{where}, which does not exist")
            elif (there := room(target, modules)) not in rooms:
                found.append(f"{where}, which is in no room")
            elif there != here and rooms[there] >= rooms[here]:
                found.append(f"{where}: from room {rooms[here]} to room {rooms[there]}")
    return list(dict.fromkeys(found))


def cycle(source: Path) -> list[str]:
    """Modules that import each other in a circle; empty when there are none."""
    modules = modules_of(source)
    graph = {name: {target for target, _ in imports_of(name, modules)} for name in modules}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_the_rooms_table_is_read() -> None:
    rooms = rooms_of(PAGE.read_text(encoding="utf-8"))
    assert rooms["__main__.py"] == max(rooms.values())
    assert rooms["types.py"] == min(rooms.values()) == 0
    assert rooms["data"] < rooms["train.py"]
    assert "sources.py" not in rooms, "what stands in parentheses lies inside the package folder before it"


def test_imports_go_down_only() -> None:
    assert offences(SOURCE, rooms_of(PAGE.read_text(encoding="utf-8"))) == []


def test_the_diagram_is_that_of_the_code() -> None:
    assert DIAGRAM.read_text(encoding="utf-8") == drawn(), "python tests/rooms.py draws it anew"


def test_arrows_that_others_replace_are_not_drawn() -> None:
    assert direct({("a", "b"), ("b", "c"), ("a", "c"), ("a", "d"), ("c", "d")}) == {("a", "b"), ("b", "c"), ("c", "d")}


def test_no_import_cycles() -> None:
    assert cycle(SOURCE) == []


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("low.py", "from camkd.high import x", "camkd.low:1 imports camkd.high: from room 0 to room 2"),
        ("low.py", "from .high import x", "camkd.low:1 imports camkd.high: from room 0 to room 2"),
        ("low.py", "from . import high", "camkd.low:1 imports camkd.high: from room 0 to room 2"),
        ("low.py", "import camkd.high", "camkd.low:1 imports camkd.high: from room 0 to room 2"),
        (
            "low.py",
            "def f():\n    import camkd.high",
            "camkd.low:2 imports camkd.high: from room 0 to room 2",
        ),
        ("low.py", "from .high import x, y", "camkd.low:1 imports camkd.high: from room 0 to room 2"),
        ("low.py", "from .level import x", "camkd.low:1 imports camkd.level: from room 0 to room 0"),
        ("mid/a.py", "from ..high import x", "camkd.mid.a:1 imports camkd.high: from room 1 to room 2"),
        ("mid/__init__.py", "from ..high import x", "camkd.mid:1 imports camkd.high: from room 1 to room 2"),
        ("low.py", "from .mid.a import x", "camkd.low:1 imports camkd.mid.a: from room 0 to room 1"),
        ("low.py", "from camkd import load", "camkd.low:1 imports camkd, the public face"),
        ("low.py", "from .gone import x", "camkd.low:1 imports camkd.gone, which does not exist"),
        ("stray.py", "", "camkd.stray is in no room"),
        ("high.py", "from . import low\nfrom .mid import a\nfrom .mid.a import x\nimport torch", None),
        ("mid/a.py", "from .b import x\nfrom ..low import y", None),
        ("__init__.py", "from .high import x", None),
    ],
)
def test_the_check_sees(tmp_path: Path, file: str, line: str, complaint: str | None) -> None:
    source = tmp_path / "camkd"
    (source / "mid").mkdir(parents=True)
    for name in ["__init__.py", "high.py", "low.py", "level.py", "mid/__init__.py", "mid/a.py", "mid/b.py"]:
        (source / name).touch()
    (source / file).write_text(line)
    page = "| room | file | what |\n|---|---|---|\n| 2 | `high.py` | |\n| 1 | `mid/` (`a.py`) | |\n"
    found = offences(source, rooms_of(page + "| 0 | `low.py`, `level.py` | |\n"))
    if complaint is None:
        assert found == []
    else:
        assert len(found) == 1
        assert found[0].startswith(complaint)


def test_the_check_sees_a_cycle_inside_a_package(tmp_path: Path) -> None:
    source = tmp_path / "camkd"
    (source / "mid").mkdir(parents=True)
    (source / "mid" / "a.py").write_text("from .b import x")
    (source / "mid" / "b.py").write_text("def f():\n    from . import a")
    assert set(cycle(source)) == {"camkd.mid.a", "camkd.mid.b"}


@pytest.mark.parametrize("name", LIGHT)
def test_imports_without_torch(name: str) -> None:
    """In a new interpreter, so that also what the file imports is seen: `--help` and the lists answer at once."""
    code = f"import sys, camkd.{name}; print([m for m in ('torch', 'scipy', 'matplotlib') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_the_public_names() -> None:
    import camkd

    assert sorted(camkd.__all__) == PUBLIC
    assert all(hasattr(camkd, name) for name in PUBLIC)


def test_the_version_is_the_installed_one() -> None:
    import camkd

    assert camkd.__version__ == version("camkd"), "pyproject.toml and __init__.py differ, or install again"
    changes = (PAGE.parents[1] / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(\d.*?)\] - \d{4}-\d\d-\d\d$", changes, re.MULTILINE)
    assert newest is not None
    assert newest[1] == camkd.__version__, "a version has its entry in the changelog"
