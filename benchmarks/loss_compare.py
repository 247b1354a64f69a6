"""Does a change leave every loss curve as it was? The work tree against a revision, with one seed and one thread.

    python benchmarks/loss_compare.py [REVISION]          # or: make loss-compare BASE=REVISION; the default is HEAD

Both train the same teacher, control and student on drawn shapes, by CAM-KD, terms between pictures and hidden features,
in fp32. Every number in the histories that does not tell the time has to be the same bit for bit: exits with status 1
and the first one of each run that is not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMAND = (
    "train --data shapes --limit 1000 --teacher resnet8 --teacher-epochs 12 --student cam-net --epochs 2 "
    "--batch-size 60 --precision fp32 --terms ce=0.1,kd=0.9:T=4,cam=1:pool=4,sp=10,hint=0.1 --figure-every 0"
)
CLOCKS = ("seconds", "images_per_second")


def histories(source: Path, folder: Path) -> dict[str, list[dict[str, object]]]:
    """What each role's epochs were like, trained by the code in ``source``."""
    settings = {"PYTHONPATH": str(source / "src"), "CAMKD_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "camkd", *COMMAND.split(), "--out", str(folder / "run")]
    subprocess.run(words, cwd=folder, env={**os.environ, **settings}, check=True)
    found = {}
    for role in ("teacher", "control", "student"):
        lines = (folder / "run" / role / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        found[role] = [{k: v for k, v in json.loads(line).items() if k not in CLOCKS} for line in lines]
    return found


def differences(ours: dict[str, list[dict[str, object]]], theirs: dict[str, list[dict[str, object]]]) -> list[str]:
    """The first number of each role that is not the same, as a sentence."""
    said = []
    for role in sorted(ours.keys() | theirs.keys()):
        rows = zip(ours.get(role, []), theirs.get(role, []), strict=False)
        wrong = [
            f"{role}, epoch {number}: {name} is {row.get(name)} and was {base.get(name)}"
            for number, (row, base) in enumerate(rows, 1)
            for name in sorted(row.keys() | base.keys())
            if row.get(name) != base.get(name)
        ]
        if len(ours.get(role, [])) != len(theirs.get(role, [])):
            wrong.append(f"{role}: {len(ours.get(role, []))} epochs and there were {len(theirs.get(role, []))}")
        said += wrong[:1]
    return said


def main() -> int:
    """Train twice and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", nargs="?", default="HEAD", help="what the work tree is compared with")
    revision = parser.parse_args().revision
    with tempfile.TemporaryDirectory() as place:
        base, folders = Path(place, "base"), [Path(place, name) for name in ("ours", "theirs")]
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(base), revision], check=True)
        try:
            for folder in folders:
                folder.mkdir()
            found = [histories(source, folder) for source, folder in zip((ROOT, base), folders, strict=True)]
        finally:
            subprocess.run([*git, "remove", "--force", str(base)], check=True)
    said = differences(*found)
    epochs = sum(map(len, found[0].values()))
    print("\n".join(said) or f"identical to {revision}: {epochs} epochs of {len(found[0])} runs")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
