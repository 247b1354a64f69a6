"""Find a folder or table that a run records by its path, after the run or the folder was moved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def relocated(path: str, run_folder: Path) -> Iterator[Path]:
    """Yield the existing paths that a recorded path may stand for, the recorded path first.

    A project that is moved as a whole keeps the relative location of its folders. So the last components of the path,
    most components first, are looked up in each parent folder of the run and in the current folder. The caller must
    compare the content, because a path does not identify it.

    Args:
        path: Path of a folder or table, as the run recorded it.
        run_folder: Folder of the run.

    Yields:
        Existing paths, each once.

    Example:
        >>> list(relocated("/old/project/pets", Path("/new/project/runs/student")))      # doctest: +SKIP
        [PosixPath('/new/project/pets')]
    """
    recorded = Path(path).expanduser()
    parts = recorded.parts[1:] if recorded.is_absolute() else recorded.parts
    parents = [*run_folder.resolve().parents][:-1]  # without the root
    moved = (parent.joinpath(*parts[start:]) for start in range(len(parts)) for parent in (*parents, Path.cwd()))
    seen = set()
    for candidate in (recorded, *moved):
        resolved = candidate.resolve()
        if resolved not in seen and candidate.exists():
            seen.add(resolved)
            yield candidate
