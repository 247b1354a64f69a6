"""Compare every loss curve with that of another revision, bit for bit.

    python benchmarks/loss_compare.py [REVISION]          # or: make loss-compare BASE=REVISION; the default is HEAD

The working tree and the revision each train a teacher, a control and a student on synthetic shapes, with one seed, on
one thread, in fp32. The loss has the terms of CAM-KD, a term between the images of a batch and a term on features. Each
number of ``metrics.jsonl`` except times must be equal. Otherwise the script prints the first difference of each run and
exits with status 1.

The command uses only options that old revisions have too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COMMAND = (
    "train --data shapes --limit 1000 --teacher resnet8 --teacher-epochs 12 --student cam-net --epochs 2 "
    "--batch-size 60 --precision fp32 --terms ce=0.1,kd=0.9:T=4,cam=1:pool=4,sp=10,hint=0.1 --figure-every 0"
)
ROLES = ("teacher", "control", "student")
TIMES = ("seconds", "images_per_second")

History = list[dict[str, Any]]
"""The lines of ``metrics.jsonl`` without `TIMES`."""


def train(source: Path, folder: Path) -> dict[str, History]:
    """Train with the code of a source tree.

    Args:
        source: The source tree.
        folder: An empty folder for the cache and the runs.

    Returns:
        The history of each role.
    """
    settings = {"PYTHONPATH": str(source / "src"), "CAMKD_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "camkd", *COMMAND.split(), "--out", str(folder / "run")]
    subprocess.run(command, cwd=folder, env={**os.environ, **settings}, check=True)
    histories = {}
    for role in ROLES:
        lines = (folder / "run" / role / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        histories[role] = [{name: value for name, value in row.items() if name not in TIMES} for row in rows]
    return histories


def first_difference(role: str, history: History, base_history: History) -> str | None:
    """Return the first difference of two histories in one sentence, or None if they are equal."""
    for epoch, (row, base_row) in enumerate(zip(history, base_history, strict=False), 1):
        for name in sorted(row.keys() | base_row.keys()):
            if row.get(name) != base_row.get(name):
                return f"{role}, epoch {epoch}: {name} is {row.get(name)}, was {base_row.get(name)}."
    if len(history) != len(base_history):
        return f"{role}: {len(history)} epochs, were {len(base_history)}."
    return None


def main() -> int:
    """Train twice, compare, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", nargs="?", default="HEAD", help="the git revision to compare the working tree with")
    revision = parser.parse_args().revision
    git_worktree = ["git", "-C", str(ROOT), "worktree"]
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary, "base")
        folder = Path(temporary, "tree-runs")
        base_folder = Path(temporary, "base-runs")
        subprocess.run([*git_worktree, "add", "--quiet", "--detach", str(base), revision], check=True)
        try:
            folder.mkdir()
            base_folder.mkdir()
            histories = train(ROOT, folder)
            base_histories = train(base, base_folder)
        finally:
            subprocess.run([*git_worktree, "remove", "--force", str(base)], check=True)
    candidates = [first_difference(role, histories[role], base_histories[role]) for role in ROLES]
    differences = [difference for difference in candidates if difference]
    num_epochs = sum(map(len, histories.values()))
    print("\n".join(differences) or f"identical to {revision}: {num_epochs} epochs of {len(ROLES)} runs")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
