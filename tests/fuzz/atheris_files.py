"""Coverage-guided fuzzing of every file that camkd reads, for a bounded time, with a table at the end.

    python tests/fuzz/atheris_files.py --seconds 60            # of each target; `make fuzz`

Each target of `targets.py` runs in a process of its own until its time is over or something comes that is neither
read nor refused; what did that is kept under `build/fuzz/`. Needs atheris, and PYTHONPATH=tests.
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
KEPT = Path("build") / "fuzz"
LONGEST = 20  # seconds for one input
MEMORY = 3000  # MB


def fuzz(name: str, seconds: int, folder: Path) -> None:
    """Fuzz one target in this process, which libFuzzer ends."""
    with atheris.instrument_imports(include=INSTRUMENTED):
        from fuzz.targets import targets
    target, corpus = targets(folder / "files")[name], folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(target.seeds):
        (corpus / str(number)).write_bytes(seed)
    limits = [f"-max_total_time={seconds}", f"-timeout={LONGEST}", f"-rss_limit_mb={MEMORY}", "-print_final_stats=1"]
    KEPT.mkdir(parents=True, exist_ok=True)
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={KEPT}/", str(corpus)], target)
    atheris.Fuzz()


def all_of_them(seconds: int) -> int:
    """Fuzz all targets, one after another, and say what came of it."""
    from fuzz.targets import targets

    with tempfile.TemporaryDirectory() as folder:
        names = list(targets(Path(folder)))
    print(f"{'file':32} {'inputs':>10}")
    bad = 0
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--only", name, "--seconds", str(seconds), "--folder", folder]
            ended = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        tried = re.search(r"number_of_executed_units: *(\d+)", ended.stderr)
        print(f"{name:32} {int(tried[1]) if tried else 0:10,}  {'FAILED' if ended.returncode else 'sound'}", flush=True)
        if ended.returncode:
            bad += 1
            print(ended.stdout[-3000:], ended.stderr[-3000:], file=sys.stderr)
    return int(bad > 0)


def main() -> int:
    """Parse, fuzz."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--only", default=None, help="one target, in this process")
    parser.add_argument("--folder", type=Path, default=None, help="where its files lie")
    options = parser.parse_args()
    if options.only is None:
        return all_of_them(options.seconds)
    fuzz(options.only, options.seconds, options.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
