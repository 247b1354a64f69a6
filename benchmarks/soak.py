"""Small runs that are killed at random moments, for hours: is anything lost, does anything grow?

    python benchmarks/soak.py --minutes 120 --out benchmarks/results/soak.json

A round is a `camkd train` (teacher, control, student, report) on 144 drawn pictures with a cache of its own. Its
process is sent SIGKILL or SIGTERM at a random moment, again and again, started again with --resume, and, after the last
of the round's signals, left to its end. Then its three networks have to have the bits of the same run undisturbed, and
the same metrics, curves and answers to each picture; and no lock, temporary file or process may be left. Processes are
forked from one that has imported everything and done nothing, so that signals meet work rather than imports.

Between the rounds this process itself trains the same lessons, each into a new folder, and notes its memory, open files
and threads. Flat means, over the last three quarters of the time: the straight line through the memory rises by less
than 2 % of its mean, and that through files and threads by less than half a one; with fewer than 12 runs in that time
nothing is said to be flat. All is done one after the other, on one thread.
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

PICTURES = {"train": 96, "val": 24, "test": 24}
COMMON = "--batch-size 12 --epochs 3 --lr 0.1 --teacher resnet8 --student resnet8 --figure-every 0"
LESSONS = {
    "maps, strong views": "--method cam-kd --augment strong --precision fp32",
    "features, AdamW": "--method ce=0.5,hint=0.1,review=0.1,sp=100 --optimizer adamw --precision fp32",
    "views again, bf16": "--method cat+kd --augment-epochs 2 --on-nan skip --precision bf16",
}
ENDS = {signal.SIGKILL: (-signal.SIGKILL,), signal.SIGTERM: (130, -signal.SIGTERM)}
"""How a process may end: by a request before it trains at once, later with its state saved."""

FORKS = multiprocessing.get_context("forkserver")
ROLES = ("teacher", "control", "student")
MOST_SIGNALS = 4
GROWTH = {"memory": 0.02, "files": 0.5, "threads": 0.5}
"""What a straight line may rise by in the last three quarters: of the mean, and in pieces."""
FEWEST = 12


def draw(folder: Path) -> None:
    """PNG files of three classes that differ in colour, all brighter in one corner, under noise."""
    dice = np.random.default_rng(0)
    for name, count in PICTURES.items():
        for number in range(count):
            image = dice.integers(0, 60, (16, 16, 3))
            image[:, :, number % 3] += 90
            image[:8, :8] += 60
            place = folder / name / ("berry", "leaf", "sky")[number % 3]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.astype(np.uint8)).save(place / f"{number:03d}.png")


def command(lesson: str, pictures: Path, out: Path) -> list[str]:
    """The arguments of a round's command, the same at each start."""
    return ["train", "--data", str(pictures), *f"{COMMON} {LESSONS[lesson]}".split(), "--out", str(out), "--resume"]


def work(arguments: list[str], cache: Path, says: Path) -> None:
    """What a process of a round does."""
    os.setsid()  # so that whatever it starts can be found
    os.environ["CAMKD_CACHE"] = str(cache)
    torch.set_num_threads(1)
    with says.open("w") as stream, contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        sys.exit(camkd(arguments))


def timeless(value: Any) -> Any:
    """Without what a clock said."""
    if isinstance(value, list):
        return [timeless(one) for one in value]
    return {name: one for name, one in value.items() if "second" not in name}


def outcome(out: Path) -> dict[str, Any]:
    """What has to be the same however often a round was disturbed."""
    found: dict[str, Any] = {}
    for role in ROLES:
        run = Run(out / role)
        with np.load(run.per_image_file) as pictures:
            answers = {name: pictures[name].tobytes() for name in pictures.files}
        found[role] = {
            "weights": (run.folder / "model.safetensors").read_bytes(),
            "curve": timeless(run.read_history()),
            "metrics": timeless(run.read_metrics()),
            "answers": answers,
        }
    return found


def left_behind(folder: Path) -> list[str]:
    """Locks, temporary files and places that are not whole."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*"))


def alone(process: BaseProcess) -> bool:
    """Whether a process that has ended has left none, within five seconds."""
    assert process.pid
    for _ in range(50):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


class Soak:
    """All rounds, and what came of them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.dice = folder, random.Random(seed)
        self.pictures, self.cache = folder / "pictures", folder / "cache"
        self.begun = time.monotonic()
        self.expected: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, float] = {}
        self.tallies: dict[str, Counter[str]] = {lesson: Counter() for lesson in LESSONS}
        self.lost: list[str] = []
        self.samples: list[dict[str, float]] = []
        os.environ["CAMKD_CACHE"] = str(self.cache)
        draw(self.pictures)

    def start(self, lesson: str, place: Path) -> BaseProcess:
        """A lesson in a process of its own, in ``place``."""
        arguments = command(lesson, self.pictures, place / "run")
        process = FORKS.Process(target=work, args=(arguments, place / "cache", self.folder / "said"))
        process.start()
        return process

    def said(self) -> str:
        """The end of what the last process said."""
        return (self.folder / "said").read_text()[-2000:]

    def undisturbed(self, lesson: str) -> None:
        """What a lesson ends with when nothing happens, and how long it takes."""
        place, begun = self.folder / "undisturbed", time.monotonic()
        process = self.start(lesson, place)
        process.join()
        if process.exitcode:
            raise SystemExit(f"undisturbed, '{lesson}' ended with status {process.exitcode}:\n{self.said()}")
        self.seconds[lesson] = time.monotonic() - begun
        self.expected[lesson] = outcome(place / "run")
        shutil.rmtree(place)

    def round(self, lesson: str) -> None:
        """Disturb a run a few times, let it end and compare."""
        place = self.folder / "round"
        for _ in range(self.dice.randint(1, MOST_SIGNALS)):
            if not self.disturb(lesson, place):
                break
        process = self.start(lesson, place)
        process.join()
        wrong = [self.said()] if process.exitcode else self.wrong(lesson, process, place)
        for one in wrong:
            self.lose(lesson, one)
        self.tallies[lesson].update(runs=1, lost=int(bool(wrong)))
        minutes = (time.monotonic() - self.begun) / 60
        print(f"{minutes:6.1f} minutes  {lesson}: {dict(self.tallies[lesson])}", file=sys.stderr, flush=True)
        shutil.rmtree(place)

    def disturb(self, lesson: str, place: Path) -> bool:
        """Start, send a signal at a random moment; whether the run had not come to its end before."""
        number = self.dice.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
        process = self.start(lesson, place)
        process.join(self.dice.uniform(0, self.seconds[lesson]))
        if process.exitcode == 0:
            return False
        assert process.pid
        os.kill(process.pid, number)
        process.join()
        if process.exitcode == 0:  # it was just about to end
            return False
        self.tallies[lesson][number.name] += 1
        if process.exitcode not in ENDS[number]:
            self.lose(lesson, f"status {process.exitcode} after {number.name}: {self.said()}")
        if not alone(process):
            self.lose(lesson, f"processes are left after {number.name}")
        return True

    def wrong(self, lesson: str, process: BaseProcess, place: Path) -> list[str]:
        """What differs from the undisturbed run, and what should not be there."""
        wrong = [f"left behind: {name}" for name in left_behind(place)]
        found, expected = outcome(place / "run"), self.expected[lesson]
        for role in ROLES:
            wrong += [f"{role}: other {name}" for name in expected[role] if found[role][name] != expected[role][name]]
        return wrong if alone(process) else [*wrong, "processes are left"]

    def lose(self, lesson: str, what: str) -> None:
        self.lost.append(f"{lesson}: {what}")
        print(self.lost[-1], file=sys.stderr, flush=True)

    def within(self, lesson: str) -> None:
        """Train a lesson in this process, and note what the process holds afterwards."""
        out, said = self.folder / "within", io.StringIO()
        shutil.rmtree(self.cache, ignore_errors=True)
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            status = camkd(command(lesson, self.pictures, out))
        if status:
            self.lose(lesson, f"in one process: status {status}: {said.getvalue()[-2000:]}")
        elif outcome(out) != self.expected[lesson]:
            self.lose(lesson, "in one process: other results")
        shutil.rmtree(out, ignore_errors=True)
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.samples.append(
            {
                "seconds": time.monotonic() - self.begun,
                "memory": pages * os.sysconf("SC_PAGE_SIZE"),
                "files": len(os.listdir("/proc/self/fd")),
                "threads": len(os.listdir("/proc/self/task")),
            }
        )

    def growth(self) -> dict[str, dict[str, float | bool]]:
        """What this process held in the last three quarters of the time, and the rise of a straight line through it."""
        since = self.samples[-1]["seconds"] / 4
        late = [sample for sample in self.samples if sample["seconds"] >= since]
        seconds = np.array([sample["seconds"] for sample in late])
        found = {}
        for name, most in GROWTH.items():
            values = np.array([sample[name] for sample in late])
            rise = slope(seconds, values) * float(np.ptp(seconds))
            share = rise / values.mean() if name == "memory" else rise
            found[name] = {
                "first": float(values[0]),
                "least": float(values.min()),
                "most": float(values.max()),
                "last": float(values[-1]),
                "rise": rise,
                "flat": bool(share < most) and len(late) >= FEWEST,
            }
        return found


def slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Of the straight line of least squares; 0 where there is one point."""
    return float(np.polyfit(x - x.mean(), y, 1)[0]) if len(x) > 1 else 0.0


def table(soak: Soak, growth: dict[str, dict[str, float | bool]]) -> str:
    """What a person reads at the end."""
    rows = [f"{'run':22} {'runs':>5} {'SIGKILL':>8} {'SIGTERM':>8} {'lost':>5}"]
    for lesson, tally in soak.tallies.items():
        rows.append(f"{lesson:22} {tally['runs']:5} {tally['SIGKILL']:8} {tally['SIGTERM']:8} {tally['lost']:5}")
    verdict = "GROWS" if len(soak.samples) > FEWEST * 4 / 3 else "too few runs to tell"
    rows.append(f"\n{'one process':22} {'first':>8} {'least':>8} {'most':>8} {'last':>8} {'rise':>8}")
    for name, row in growth.items():
        unit = 1e6 if name == "memory" else 1
        numbers = " ".join(f"{row[key] / unit:8.1f}" for key in ("first", "least", "most", "last", "rise"))
        rows.append(f"{name + (' (MB)' if unit > 1 else ''):22} {numbers} {'flat' if row['flat'] else verdict}")
    rows.append(f"{len(soak.samples)} runs in that process; {len(soak.lost)} times something was lost or left")
    return "\n".join(rows)


def found(soak: Soak, options: argparse.Namespace) -> dict[str, Any]:
    """What is written."""
    return {
        "minutes": (time.monotonic() - soak.begun) / 60,
        "seed": options.seed,
        "environment": collect_environment(),
        "flat_means": GROWTH,
        "seconds_undisturbed": soak.seconds,
        "rounds": soak.tallies,
        "lost": soak.lost,
        "one_process": soak.growth(),
        "samples": soak.samples,
    }


def main() -> int:
    """Soak, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="a JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    FORKS.set_forkserver_preload(
        ["camkd.cli.commands.train", "camkd.experiments.pipeline", "camkd.cli.progress", "matplotlib.pyplot"]
    )
    with tempfile.TemporaryDirectory(prefix="camkd-soak-") as folder:
        soak = Soak(Path(folder), options.seed)
        for lesson in LESSONS:
            soak.undisturbed(lesson)
        for lesson in itertools.cycle(LESSONS):
            soak.round(lesson)
            soak.within(lesson)
            if options.out:  # as far as it has come
                write_json(options.out, found(soak, options))
            if time.monotonic() - soak.begun > options.minutes * 60:
                break
    print(table(soak, soak.growth()))
    return int(bool(soak.lost) or not all(row["flat"] for row in soak.growth().values()))


if __name__ == "__main__":
    sys.exit(main())
