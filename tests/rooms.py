"""The rooms of docs/architecture.md and the arrows between them, from the code; `python tests/rooms.py` draws them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "camkd"
PAGE = ROOT / "docs" / "architecture.md"
DIAGRAM = ROOT / "docs" / "images" / "rooms.svg"

LETTER, HEIGHT, GAP, STEP, MARGIN, WIDTH = 7.2, 26, 14, 74, 46, 1120
"""Sizes of the diagram, in its own units; ``STEP`` from one room to the next."""


def rooms_of(page: str) -> dict[str, int]:
    """Read the rooms table: `train.py` or `data` -> room number."""
    rooms: dict[str, int] = {}
    for number, names in re.findall(r"^\| *(\d+) *\|([^|]*)\|", page, re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", re.sub(r"\([^)]*\)", "", names)):
            assert name not in rooms, f"{name} stands in the rooms table twice"
            rooms[name.rstrip("/")] = int(number)
    return rooms


def modules_of(source: Path) -> dict[str, Path]:
    """Every Python file of the package: dotted name -> path."""
    found = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(name: str, modules: dict[str, Path]) -> Iterator[tuple[str, int]]:
    """Yield (camkd module, line) for each import in a file, also inside functions and TYPE_CHECKING."""
    package = name if modules[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(modules[name].read_text(encoding="utf-8"))):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:  # `from camkd import files` is the file, `from camkd import load` the package
                member = f"{base}.{alias.name}"
                targets.append(member if member in modules else base)
        for target in targets:
            if target.split(".")[0] == "camkd":
                yield target, node.lineno


def room(name: str, modules: dict[str, Path]) -> str:
    """The entry of the rooms table a module belongs to: its file, or the package folder it lies in."""
    parts = name.split(".")
    is_file = len(parts) == 2 and modules[name].name != "__init__.py"
    return f"{parts[1]}.py" if is_file else parts[1]


def arrows_of(source: Path) -> set[tuple[str, str]]:
    """Which entry of the rooms table imports which other one."""
    modules = modules_of(source)
    found = set()
    for name in modules:
        for target, _ in imports_of(name, modules):
            if "camkd" not in (name, target) and target in modules:
                found.add((room(name, modules), room(target, modules)))
    return {(here, there) for here, there in found if here != there}


def direct(arrows: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Those that no chain of others replaces (the transitive reduction), so that a person can follow them."""
    below: dict[str, set[str]] = {}

    def reach(name: str) -> set[str]:
        if name not in below:
            below[name] = set()
            for here, there in arrows:
                if here == name:
                    below[name] |= {there} | reach(there)
        return below[name]

    return {
        (here, there)
        for here, there in arrows
        if not any(there in reach(other) for start, other in arrows if start == here and other != there)
    }


def diagram(rooms: Mapping[str, int], arrows: set[tuple[str, str]]) -> str:
    """An SVG with a row for each room, a box for each file or package in it, and the direct arrows, which go down."""
    floors = [[name for name in rooms if rooms[name] == number] for number in sorted(set(rooms.values()), reverse=True)]
    spots: dict[str, tuple[float, float, float]] = {}
    for floor, names in enumerate(floors):
        widths = [LETTER * len(name) + 18 for name in names]
        x = MARGIN + (WIDTH - MARGIN - sum(widths) - GAP * (len(names) - 1)) / 2
        for name, width in zip(names, widths, strict=True):
            spots[name] = (x, 14 + floor * STEP, width)
            x += width + GAP
    height = 28 + (len(floors) - 1) * STEP + HEIGHT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="Rooms">',
        "<style>text{font:12px ui-monospace,monospace;fill:#1c2026}.n{fill:#8a919c}"
        "rect{fill:#eef1f5;stroke:#b9c0ca;rx:5}path{fill:none;stroke:#127a5c;stroke-opacity:.5}.f{fill:#fff;stroke:none}</style>",
        f'<rect class="f" width="{WIDTH}" height="{height}"/>',
    ]
    for here, there in sorted(arrows):
        (x, y, width), (to, bottom, wide) = spots[here], spots[there]
        start, end, y = x + width / 2, to + wide / 2, y + HEIGHT
        bend = (bottom - y) / 2
        curve = f"M{start:.0f} {y}C{start:.0f} {y + bend:.0f} {end:.0f} {bottom - bend:.0f} {end:.0f} {bottom}"
        lines.append(f'<path d="{curve}"><title>{here} imports {there}</title></path>')
    for floor, names in enumerate(floors):
        lines.append(f'<text class="n" x="10" y="{31 + floor * STEP}">{rooms[names[0]]}</text>')
    for name, (x, y, width) in spots.items():
        lines.append(f'<rect x="{x:.0f}" y="{y}" width="{width:.0f}" height="{HEIGHT}"/>')
        lines.append(f'<text x="{x + width / 2:.0f}" y="{y + 17}" text-anchor="middle">{name}</text>')
    return "\n".join([*lines, "</svg>", ""])


def drawn() -> str:
    """The diagram of the code as it is."""
    return diagram(rooms_of(PAGE.read_text(encoding="utf-8")), direct(arrows_of(SOURCE)))


if __name__ == "__main__":
    DIAGRAM.write_text(drawn(), encoding="utf-8")
