"""Time of commands that need no torch, from start to end of the process.

    python benchmarks/bench_start.py [--json]

A result is the median of 7 runs, after one to warm up. The target is 0.5 seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

from camkd.runs.folder import collect_environment

COMMANDS = ("--help", "train --help", "list models", "list data", "cache --help")
ROUNDS = 7
TARGET = 0.5
"""Target in seconds."""


def median_seconds(command: str) -> float:
    """Return the median time of a command."""
    seconds = []
    for _ in range(ROUNDS + 1):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "camkd", *command.split()], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    results = {command: median_seconds(command) for command in COMMANDS}
    if options.json:
        print(json.dumps({"seconds": results, "limit": TARGET, "environment": collect_environment()}))
        return
    for command, seconds in results.items():
        print(f"camkd {command:20} {seconds:5.2f} s{'' if seconds <= TARGET else '  over the target'}")


if __name__ == "__main__":
    main()
