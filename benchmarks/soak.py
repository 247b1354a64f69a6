"""Soak test: training runs that are killed at random times, for hours.

    python benchmarks/soak.py --minutes 120 --out benchmarks/results/soak.json

A round is one ``camkd train`` (teacher, control, student, report) on 144 synthetic images, with a cache of its own. Its
process receives SIGKILL or SIGTERM at a random time, several times. It is restarted with --resume each time, and runs
to its end after the last signal. The three networks must then equal those of an undisturbed run bit for bit, and so
must metrics, loss curves and per-image predictions. No lock, temporary file or process may be left. The processes are
forked from a process that has imported everything, so that signals interrupt work rather than imports.

Between the rounds this process trains the same configurations itself, each in a new folder, and records its memory,
open files and threads. A quantity is flat if a straight line through its values of the last three quarters of the time
rises by less than 2 % of their mean (memory), or by less than 0.5 (files, threads). With fewer than 12 runs in that
time nothing counts as flat. Everything runs sequentially on one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from camkd.cli.main import main as camkd
from camkd.runs.folder import Run, collect_environment
from camkd.utils.files import write_json

NUM_IMAGES = {"train": 96, "val": 24, "test": 24}
OPTIONS = "--batch-size 12 --epochs 3 --lr 0.1 --teacher resnet8 --student resnet8 --figure-every 0"
CONFIGURATIONS = {
    "maps, strong views": "--method cam-kd --augment strong --precision fp32",
    "features, AdamW": "--method ce=0.5,hint=0.1,review=0.1,sp=100 --optimizer adamw --precision fp32",
    "views again, bf16": "--method cat+kd --augment-epochs 2 --on-nan skip --precision bf16",
}
"""Options of ``camkd train`` by name of the configuration."""

EXIT_CODES = {signal.SIGKILL: (-signal.SIGKILL,), signal.SIGTERM: (130, -signal.SIGTERM)}
"""Valid exit codes after each signal. Before training, SIGTERM ends a process at once; later with its state saved."""

FORK_SERVER = multiprocessing.get_context("forkserver")
ROLES = ("teacher", "control", "student")
MAX_SIGNALS = 4
MAX_RISE = {"memory": 0.02, "files": 0.5, "threads": 0.5}
"""Largest rise of a flat quantity in the last three quarters of the time, for memory relative to the mean."""

MIN_RUNS = 12
"""Number of runs in the last three quarters of the time below which nothing counts as flat."""


def write_images(folder: Path) -> None:
    """Write PNG files of three classes that differ in color, with a bright corner and noise."""
    rng = np.random.default_rng(0)
    for split, count in NUM_IMAGES.items():
        for number in range(count):
            image = rng.integers(0, 60, (16, 16, 3))
            image[:, :, number % 3] += 90
            image[:8, :8] += 60
            class_folder = folder / split / ("berry", "leaf", "sky")[number % 3]
            class_folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.astype(np.uint8)).save(class_folder / f"{number:03d}.png")


def train_arguments(configuration: str, images: Path, out: Path) -> list[str]:
    """Return the command line of a configuration, the same at each start."""
    options = f"{OPTIONS} {CONFIGURATIONS[configuration]}".split()
    return ["train", "--data", str(images), *options, "--out", str(out), "--resume"]


def run_command(arguments: list[str], cache: Path, log: Path) -> None:
    """Run a command in the current process, and write its output to ``log``."""
    os.setsid()  # a group of its own, so that its descendants can be found
    os.environ["CAMKD_CACHE"] = str(cache)
    torch.set_num_threads(1)
    with log.open("w") as stream, contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        sys.exit(camkd(arguments))


def without_times(value: Any) -> Any:
    """Remove durations and speeds from metrics."""
    if isinstance(value, list):
        return [without_times(item) for item in value]
    return {name: item for name, item in value.items() if "second" not in name}


def read_results(out: Path) -> dict[str, Any]:
    """Read what must not depend on interruptions: weights, loss curve, metrics and predictions of each role."""
    results: dict[str, Any] = {}
    for role in ROLES:
        run = Run(out / role)
        with np.load(run.per_image_file) as per_image:
            predictions = {name: per_image[name].tobytes() for name in per_image.files}
        results[role] = {
            "weights": (run.folder / "model.safetensors").read_bytes(),
            "curve": without_times(run.read_history()),
            "metrics": without_times(run.read_metrics()),
            "predictions": predictions,
        }
    return results


def hidden_files(folder: Path) -> list[str]:
    """List locks, temporary files and incomplete folders."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*"))


def has_no_descendants(process: BaseProcess) -> bool:
    """Return whether all descendants of an ended process end within five seconds."""
    assert process.pid
    for _ in range(50):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


class Soak:
    """Run the rounds of the soak test, and collect the results.

    Args:
        folder: An empty folder.
        seed: Seed of the random signals.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.rng = random.Random(seed)
        self.images = folder / "images"
        self.cache = folder / "cache"
        self.log = folder / "log"
        self.started = time.monotonic()
        self.expected: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, float] = {}
        self.counts: dict[str, Counter[str]] = {configuration: Counter() for configuration in CONFIGURATIONS}
        self.failures: list[str] = []
        self.samples: list[dict[str, float]] = []
        os.environ["CAMKD_CACHE"] = str(self.cache)
        write_images(self.images)

    def start(self, configuration: str, folder: Path) -> BaseProcess:
        """Start a configuration in a process of its own."""
        arguments = train_arguments(configuration, self.images, folder / "run")
        process = FORK_SERVER.Process(target=run_command, args=(arguments, folder / "cache", self.log))
        process.start()
        return process

    def log_tail(self) -> str:
        """Return the end of the output of the last process."""
        return self.log.read_text()[-2000:]

    def run_undisturbed(self, configuration: str) -> None:
        """Run a configuration without signals, and keep its results and its time."""
        folder = self.folder / "undisturbed"
        started = time.monotonic()
        process = self.start(configuration, folder)
        process.join()
        if process.exitcode:
            raise SystemExit(f"'{configuration}' must end with status 0, got {process.exitcode}:\n{self.log_tail()}")
        self.seconds[configuration] = time.monotonic() - started
        self.expected[configuration] = read_results(folder / "run")
        shutil.rmtree(folder)

    def run_round(self, configuration: str) -> None:
        """Interrupt a run several times, let it end, and compare its results."""
        folder = self.folder / "round"
        for _ in range(self.rng.randint(1, MAX_SIGNALS)):
            if not self.interrupt(configuration, folder):
                break
        process = self.start(configuration, folder)
        process.join()
        differences = [self.log_tail()] if process.exitcode else self.differences(configuration, process, folder)
        for difference in differences:
            self.add_failure(configuration, difference)
        self.counts[configuration].update(runs=1, lost=int(bool(differences)))
        minutes = (time.monotonic() - self.started) / 60
        counts = dict(self.counts[configuration])
        print(f"{minutes:6.1f} minutes  {configuration}: {counts}", file=sys.stderr, flush=True)
        shutil.rmtree(folder)

    def interrupt(self, configuration: str, folder: Path) -> bool:
        """Start a run and send a signal at a random time.

        Returns:
            Whether the run was interrupted before its end.
        """
        number = self.rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
        process = self.start(configuration, folder)
        process.join(self.rng.uniform(0, self.seconds[configuration]))
        if process.exitcode == 0:
            return False
        assert process.pid
        os.kill(process.pid, number)
        process.join()
        if process.exitcode == 0:  # the run ended before the signal
            return False
        self.counts[configuration][number.name] += 1
        if process.exitcode not in EXIT_CODES[number]:
            self.add_failure(configuration, f"status {process.exitcode} after {number.name}: {self.log_tail()}")
        if not has_no_descendants(process):
            self.add_failure(configuration, f"processes are left after {number.name}")
        return True

    def differences(self, configuration: str, process: BaseProcess, folder: Path) -> list[str]:
        """List differences from the undisturbed run, and files and processes that are left."""
        differences = [f"left behind: {name}" for name in hidden_files(folder)]
        results = read_results(folder / "run")
        expected = self.expected[configuration]
        for role in ROLES:
            differences += [
                f"{role}: other {name}" for name in expected[role] if results[role][name] != expected[role][name]
            ]
        return differences if has_no_descendants(process) else [*differences, "processes are left"]

    def add_failure(self, configuration: str, failure: str) -> None:
        """Record and print a failure."""
        self.failures.append(f"{configuration}: {failure}")
        print(self.failures[-1], file=sys.stderr, flush=True)

    def run_in_this_process(self, configuration: str) -> None:
        """Train a configuration in this process, and record memory, open files and threads afterwards."""
        out = self.folder / "in-process"
        output = io.StringIO()
        shutil.rmtree(self.cache, ignore_errors=True)
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            status = camkd(train_arguments(configuration, self.images, out))
        if status:
            self.add_failure(configuration, f"in one process: status {status}: {output.getvalue()[-2000:]}")
        elif read_results(out) != self.expected[configuration]:
            self.add_failure(configuration, "in one process: other results")
        shutil.rmtree(out, ignore_errors=True)
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.samples.append(
            {
                "seconds": time.monotonic() - self.started,
                "memory": pages * os.sysconf("SC_PAGE_SIZE"),
                "files": len(os.listdir("/proc/self/fd")),
                "threads": len(os.listdir("/proc/self/task")),
            }
        )

    def growth(self) -> dict[str, dict[str, float | bool]]:
        """Return range and rise of each quantity in the last three quarters of the time.

        The rise is that of the least-squares line.
        """
        start_seconds = self.samples[-1]["seconds"] / 4
        samples = [sample for sample in self.samples if sample["seconds"] >= start_seconds]
        seconds = np.array([sample["seconds"] for sample in samples])
        growth: dict[str, dict[str, float | bool]] = {}
        for name, max_rise in MAX_RISE.items():
            values = np.array([sample[name] for sample in samples])
            rise = slope(seconds, values) * float(np.ptp(seconds))
            relative_rise = rise / values.mean() if name == "memory" else rise
            growth[name] = {
                "first": float(values[0]),
                "least": float(values.min()),
                "most": float(values.max()),
                "last": float(values[-1]),
                "rise": rise,
                "flat": bool(relative_rise < max_rise) and len(samples) >= MIN_RUNS,
            }
        return growth


def slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Return the slope of the least-squares line; 0 for one point."""
    return float(np.polyfit(x - x.mean(), y, 1)[0]) if len(x) > 1 else 0.0


def format_table(soak: Soak, growth: dict[str, dict[str, float | bool]]) -> str:
    """Return the results as a table."""
    lines = [f"{'run':22} {'runs':>5} {'SIGKILL':>8} {'SIGTERM':>8} {'lost':>5}"]
    for configuration, counts in soak.counts.items():
        numbers = f"{counts['runs']:5} {counts['SIGKILL']:8} {counts['SIGTERM']:8} {counts['lost']:5}"
        lines.append(f"{configuration:22} {numbers}")
    verdict = "GROWS" if len(soak.samples) > MIN_RUNS * 4 / 3 else "too few runs"
    lines.append(f"\n{'one process':22} {'first':>8} {'least':>8} {'most':>8} {'last':>8} {'rise':>8}")
    for name, row in growth.items():
        unit = 1e6 if name == "memory" else 1
        title = f"{name} (MB)" if name == "memory" else name
        numbers = " ".join(f"{row[key] / unit:8.1f}" for key in ("first", "least", "most", "last", "rise"))
        lines.append(f"{title:22} {numbers} {'flat' if row['flat'] else verdict}")
    lines.append(f"{len(soak.samples)} runs in one process; {len(soak.failures)} failures")
    return "\n".join(lines)


def collect_results(soak: Soak, seed: int) -> dict[str, Any]:
    """Return the content of the results file."""
    return {
        "minutes": (time.monotonic() - soak.started) / 60,
        "seed": seed,
        "environment": collect_environment(),
        "flat_means": MAX_RISE,
        "seconds_undisturbed": soak.seconds,
        "rounds": soak.counts,
        "lost": soak.failures,
        "one_process": soak.growth(),
        "samples": soak.samples,
    }


def main() -> int:
    """Run the soak test, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="a JSON file, rewritten after each round")
    options = parser.parse_args()
    torch.set_num_threads(1)
    FORK_SERVER.set_forkserver_preload(
        ["camkd.cli.commands.train", "camkd.experiments.pipeline", "camkd.cli.progress", "matplotlib.pyplot"]
    )
    with tempfile.TemporaryDirectory(prefix="camkd-soak-") as folder:
        soak = Soak(Path(folder), options.seed)
        for configuration in CONFIGURATIONS:
            soak.run_undisturbed(configuration)
        for configuration in itertools.cycle(CONFIGURATIONS):
            soak.run_round(configuration)
            soak.run_in_this_process(configuration)
            if options.out:
                write_json(options.out, collect_results(soak, options.seed))
            if time.monotonic() - soak.started > options.minutes * 60:
                break
    growth = soak.growth()
    print(format_table(soak, growth))
    return int(bool(soak.failures) or not all(row["flat"] for row in growth.values()))


if __name__ == "__main__":
    sys.exit(main())
