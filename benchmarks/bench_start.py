"""How soon the command line answers where it needs no torch.

    python benchmarks/bench_start.py [--json]

Seconds from start to end of a process, the median of 7 after one that is not counted. To reach: 0.5.
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
ROUNDS, LIMIT = 7, 0.5


def seconds(command: str) -> float:
    """The median time of a command."""
    times = []
    for _ in range(ROUNDS + 1):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "camkd", *command.split()], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    found = {command: seconds(command) for command in COMMANDS}
    if options.json:
        print(json.dumps({"seconds": found, "limit": LIMIT, "environment": collect_environment()}))
        return
    for command, taken in found.items():
        print(f"camkd {command:20} {taken:5.2f} s{'' if taken <= LIMIT else '  NOT reached'}")


if __name__ == "__main__":
    main()
