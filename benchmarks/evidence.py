"""Does distillation help CAM-Net, and do maps help beyond logits? Paired seeds, one budget, one teacher, real pictures.

    python benchmarks/evidence.py --data data/cifar10-jpeg --teacher runs/cifar10-jpeg/teacher-wrn-16-4 --epochs 12

For every seed it runs ``camkd train`` (the control without a teacher, and the CAM-KD student) and ``camkd distill
--method kd``; runs with the same seed share initial weights, views and the teacher's answers. It goes on where it was
interrupted. Prints a Markdown table: mean and 95 % interval over seeds (Student's t), and paired differences; with
--json one object on stdout.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from camkd.cli import main as camkd
from camkd.runs import Run, environment

METHODS = {"plain": "control", "kd": "kd", "cam-kd": "student"}
FIGURES = ("accuracy", "val_accuracy", "ece", "teacher_agreement", "cam_cosine", "cam_pearson", "cam_iou")


def train(options: argparse.Namespace, seed: int) -> dict[str, dict[str, Any]]:
    """Train the three students of one seed and return their metrics by method."""
    folder = Path(options.out) / f"seed-{seed}"
    shared = ["--data", options.data, "--teacher", options.teacher, "--student", options.student, "--resume"]
    shared += ["--epochs", str(options.epochs), "--seed", str(seed), "--figure-every", "0"]
    for command in (["train", "--out", str(folder)], ["distill", "--method", "kd", "--out", str(folder / "kd")]):
        with contextlib.redirect_stdout(sys.stderr):
            status = camkd([command[0], *shared, *command[1:]])
        if status:
            raise SystemExit(status)
    return {method: Run(folder / place).read_metrics() for method, place in METHODS.items()}


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval by Student's t."""
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values)), float(half)


def summarise(results: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Means with intervals by method and figure, and paired differences of the accuracy with their p-values."""
    table = {m: {f: interval([seed[m][f] for seed in results]) for f in FIGURES} for m in METHODS}
    paired = {}
    for one, other in (("kd", "plain"), ("cam-kd", "plain"), ("cam-kd", "kd")):
        differences = [seed[one]["accuracy"] - seed[other]["accuracy"] for seed in results]
        paired[f"{one} - {other}"] = {
            "each": differences,
            "mean": interval(differences),
            "p": float(stats.ttest_1samp(differences, 0).pvalue),
        }
    return {"figures": table, "paired": paired}


def show(found: dict[str, Any]) -> None:
    """Print the summary as Markdown."""
    print(f"| method | {' | '.join(FIGURES)} |\n|---|{'---|' * len(FIGURES)}")
    for method, figures in found["figures"].items():
        print(f"| {method} | {' | '.join(f'{100 * m:.2f} ± {100 * h:.2f}' for m, h in figures.values())} |")
    print("\n| paired difference in accuracy | points | each seed | p |\n|---|---|---|---|")
    for name, row in found["paired"].items():
        mean, half = row["mean"]
        each = ", ".join(f"{100 * d:+.2f}" for d in row["each"])
        print(f"| {name} | {100 * mean:+.2f} ± {100 * half:.2f} | {each} | {row['p']:.3f} |")


def main() -> None:
    """Parse, train, summarise, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/cifar10-jpeg")
    parser.add_argument("--teacher", default="runs/cifar10-jpeg/teacher-wrn-16-4")
    parser.add_argument("--student", default="cam-net")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", default="runs/evidence")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = summarise([train(options, seed) for seed in range(options.seeds)])
    if options.json:
        print(json.dumps({**vars(options), "environment": environment(), **found}))
    else:
        show(found)


if __name__ == "__main__":
    main()
