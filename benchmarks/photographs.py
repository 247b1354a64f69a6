"""Photographs: teachers of several image sizes, and small students that are distilled from them.

    HF_HOME=FOLDER HF_HUB_OFFLINE=1 python benchmarks/photographs.py data/clothing-224 runs/photographs

runs `camkd teacher` and `camkd compare` commands, one after the other, and writes their time and result to
``OUT/results.json`` after each command. A command whose result exists is not run again, and an interrupted command is
resumed. ``--only`` selects commands by a part of their name, ``--list`` prints the commands.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from camkd.utils.files import write_json

TEACHER = "timm:tf_efficientnet_lite0.in1k"
BEST = "ce=0.1+lskd=9:T=2+cam=1:pool=4"
"""Method that was chosen on the validation images."""

METHODS = f"plain,kd,cam-kd,{BEST}"


def commands(data: str, out: Path, seeds: int) -> dict[str, list[str]]:
    """Return the arguments of each command by its name.

    A head is trained once: the loss is convex, so its minimum does not depend on a seed.
    """
    result: dict[str, list[str]] = {}
    for size in (64, 96, 128, 224):
        options = ["--data", data, "--model", TEACHER, "--size", str(size)]
        result[f"head-{size}"] = ["teacher", *options, "--train", "head", "--out", str(out / f"head-{size}")]
        for seed in range(seeds if size in (128, 224) else 0):
            name = f"head-all-{size}-{seed}"
            fine_tuning = ["--train", "head,all", "--epochs", "3", "--seed", str(seed), "--out", str(out / name)]
            result[name] = ["teacher", *options, *fine_tuning]
    for size in (64, 96):
        for teacher in (224, size):
            name = f"students-{size}-from-{teacher}"
            methods = METHODS if teacher == 224 else "kd,cam-kd"
            result[name] = [
                *("compare", "--data", data, "--size", str(size), "--teacher", str(out / f"head-{teacher}")),
                *("--methods", methods, "--seeds", str(seeds), "--epochs", "40", "--augment-epochs", "8"),
                *("--processes", "2", "--out", str(out / name)),
            ]
    return result


def run(arguments: list[str]) -> dict[str, Any]:
    """Run a command of ``camkd``, and return its time in seconds and its result."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "camkd", *arguments, "--resume", "--json"], stdout=subprocess.PIPE, text=True, check=True
    )
    return {"arguments": arguments, "seconds": time.perf_counter() - start, "result": json.loads(done.stdout)}


def main() -> None:
    """Run the selected commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    selected = {
        name: arguments
        for name, arguments in commands(options.data, options.out, options.seeds).items()
        if options.only in name
    }
    if options.list:
        for arguments in selected.values():
            print("camkd", *arguments)
        return
    file = options.out / "results.json"
    results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"commands": {}}
    results["machine"] = {
        "platform": platform.platform(),
        "processor": platform.processor(),
        **{name: version(name) for name in ("camkd", "torch", "timm")},
    }
    for name, arguments in selected.items():
        if name not in results["commands"]:
            print(name, flush=True)
            results["commands"][name] = run(arguments)
            options.out.mkdir(parents=True, exist_ok=True)
            write_json(file, results)


if __name__ == "__main__":
    main()
