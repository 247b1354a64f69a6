"""Coverage-guided fuzzing of every kind of file that camkd reads, for a limited time, with a table at the end.

    python tests/fuzz/atheris_files.py --seconds 60            # per target; `make fuzz`

Each target of `targets.py` runs in its own process until the time is over or a reader raises an exception that is not
allowed. The input that caused it is saved under `build/fuzz/`. Requires atheris and PYTHONPATH=tests.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

INSTRUMENTED = ["camkd", "PIL", "tarfile", "gzip", "zipfile", "yaml", "json"]
FAILURES = Path("build") / "fuzz"
INPUT_TIMEOUT = 20
"""Longest time of one input in seconds."""

MEMORY_LIMIT = 3000
"""Memory limit in MB."""


def fuzz_one(name: str, seconds: int, folder: Path) -> None:
    """Fuzz one target in this process. libFuzzer ends the process."""
    with atheris.instrument_imports(include=INSTRUMENTED):
        from fuzz.targets import make_targets
    target = make_targets(folder / "files")[name]
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(target.seeds):
        (corpus / str(number)).write_bytes(seed)
    limits = [
        f"-max_total_time={seconds}",
        f"-timeout={INPUT_TIMEOUT}",
        f"-rss_limit_mb={MEMORY_LIMIT}",
        "-print_final_stats=1",
    ]
    FAILURES.mkdir(parents=True, exist_ok=True)
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={FAILURES}/", str(corpus)], target)
    atheris.Fuzz()


def fuzz_all(seconds: int) -> int:
    """Fuzz all targets in turn, print the table, and return the exit status."""
    from fuzz.targets import make_targets

    with tempfile.TemporaryDirectory() as folder:
        names = list(make_targets(Path(folder)))
    print(f"{'file':32} {'inputs':>10}")
    num_failed = 0
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--only", name, "--seconds", str(seconds), "--folder", folder]
            result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        match = re.search(r"number_of_executed_units: *(\d+)", result.stderr)
        num_inputs = int(match[1]) if match else 0
        print(f"{name:32} {num_inputs:10,}  {'FAILED' if result.returncode else 'passed'}", flush=True)
        if result.returncode:
            num_failed += 1
            print(result.stdout[-3000:], result.stderr[-3000:], file=sys.stderr)
    return int(num_failed > 0)


def main() -> int:
    """Parse the options and fuzz."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="time per target")
    parser.add_argument("--only", default=None, help="fuzz one target in this process")
    parser.add_argument("--folder", type=Path, default=None, help="folder for the files of this target")
    options = parser.parse_args()
    if options.only is None:
        return fuzz_all(options.seconds)
    fuzz_one(options.only, options.seconds, options.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
