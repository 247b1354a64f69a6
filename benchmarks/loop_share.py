"""Time of the parts of a training step, measured in the training loop itself.

A section of ``bench_input.py``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from camkd.config import DataConfig, DistillConfig, RunConfig, TrainConfig
from camkd.data import open_data
from camkd.data.views import Views
from camkd.distill.cache import Store
from camkd.distill.cache.build import build_teacher_cache
from camkd.distill.objective import Objective, parse_objective
from camkd.distill.teacher import load_teacher
from camkd.models import build, profile
from camkd.models.io import ModelInfo, save
from camkd.runs.folder import Run
from camkd.train.callbacks import Callback
from camkd.train.ema import EMA
from camkd.train.loop import fit

STEPS = 40
"""Training steps per epoch."""

EPOCHS = 4
MAX_OUTSIDE_PERCENT = 5.0
"""Target: percentage of a step outside the model's forward and backward pass."""

CASES = (("cam-net", "plain"), ("cam-net", "cam-kd"), ("resnet8", "plain"), ("resnet8", "cam-kd"))
PARTS: tuple[tuple[str, Any, str], ...] = (
    ("backward", torch.Tensor, "backward"),
    ("views", Views, "__getitem__"),
    ("cache", Store, "read"),
    ("objective", Objective, "__call__"),
    ("clipping", nn.utils, "clip_grad_norm_"),
    ("optimizer", torch.optim.SGD, "step"),
    ("optimizer", torch.optim.AdamW, "step"),
    ("averaging", EMA, "on_optimizer_step"),
)
"""Name of a part, and the owner and name of the function that is timed."""


class PartTimer(Callback):
    """Add up the seconds spent in parts of the loop, per epoch. Of the model, only the training mode counts.

    Args:
        model: The trained model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.seconds: Counter[str] = Counter()
        self.epochs: list[dict[str, float]] = []
        self.parts = [("forward", type(model), "forward"), *PARTS]

    def on_epoch_end(self, row: dict[str, Any], model: nn.Module) -> None:
        self.epochs.append({**self.seconds, "step": row["seconds"]})
        self.seconds.clear()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time the parts while the block runs."""
        with ExitStack() as stack:
            for name, owner, attribute in self.parts:
                timed = self._timed(name, getattr(owner, attribute))
                stack.enter_context(patch.object(owner, attribute, timed))
            yield

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            if name == "forward" and not arguments[0].training:  # validation is not part of a step
                return function(*arguments, **options)
            started = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds[name] += time.perf_counter() - started

        return timed


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure the time of each part, with a filled teacher cache.

    Args:
        options: The number of ``rounds``.
        folder: An empty folder.

    Returns:
        For each case the percentage of a step outside forward and backward, and milliseconds per step by part.
    """
    os.environ["CAMKD_CACHE"] = str(folder / "cache")
    data = open_data("shapes")
    train_split = data.train.take(np.arange(STEPS * 128) % len(data.train))
    data = replace(data, train=train_split, val=data.val.take(np.arange(100)))
    classes = data.classes
    size = 32
    teacher_model = build("resnet8", len(classes), size)
    cost = profile(teacher_model, size)
    info = ModelInfo("resnet8", classes, size, cost.params, cost.macs, "teacher", "plain", "shapes", "", 0)
    save(teacher_model, folder / "teacher", info)
    teacher = load_teacher(folder / "teacher", data, "cpu")
    epochs: dict[str, list[dict[str, float]]] = {}
    train_config = TrainConfig(epochs=EPOCHS, augment_epochs=1, device="cpu")
    for number in range(options.rounds):
        for student, method in CASES:
            config = RunConfig(DataConfig("shapes"), train_config, DistillConfig(method=method), student)
            objective = parse_objective(method)
            cache = build_teacher_cache(teacher, config) if objective.needs_teacher else None
            model = build(student, len(classes), size)
            timer = PartTimer(model)
            run = Run(folder / f"{student}-{method}-{number}")
            with timer.running():
                fit(model, data, objective, train_config, run, cache=cache, callbacks=[timer])
            epochs.setdefault(f"{student}, {method}", []).extend(timer.epochs[1:])  # the first one fills the cache
    return {name: _summarize(measured) for name, measured in epochs.items()}


def _summarize(epochs: list[dict[str, float]]) -> dict[str, Any]:
    """Return medians over epochs, in milliseconds per step."""
    parts = {part: 1000 * statistics.median(epoch[part] for epoch in epochs) / STEPS for part in epochs[0]}
    outside = [100 * (1 - (epoch["forward"] + epoch["backward"]) / epoch["step"]) for epoch in epochs]
    return {"outside_percent": statistics.median(outside), "milliseconds": parts}


def show(results: dict[str, Any]) -> None:
    """Print the section as Markdown."""
    columns = ["step", "forward", *dict.fromkeys(name for name, _, _ in PARTS)]
    print(
        "Milliseconds per step of 128 images of 32 pixels. Target: at most "
        f"{MAX_OUTSIDE_PERCENT:g} % outside forward and backward.\n"
    )
    print(f"| student, method | outside | {' | '.join(columns)} |\n|---|---|{'---|' * len(columns)}")
    for name, case in results.items():
        cells = " | ".join(f"{case['milliseconds'].get(column, 0.0):.2f}" for column in columns)
        verdict = "" if case["outside_percent"] <= MAX_OUTSIDE_PERCENT else " (missed)"
        print(f"| {name} | {case['outside_percent']:.1f} %{verdict} | {cells} |")
