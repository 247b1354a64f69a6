"""Where a training step's time goes: the loop as it is, its parts timed from outside."""

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

from camkd.config import DistillConfig, TrainConfig
from camkd.data import open_data
from camkd.data.augment import Views
from camkd.distill.cache import Store
from camkd.distill.cache.build import build_teacher_cache
from camkd.distill.objective import Objective, parse_objective
from camkd.distill.teacher import load_teacher
from camkd.models import build
from camkd.models.io import ModelInfo, save
from camkd.models.profile import profile
from camkd.runs.folder import Run
from camkd.train import loop as loop
from camkd.train.callbacks import Callback
from camkd.train.ema import EMA

STEPS, EPOCHS = 40, 4
CASES = (("cam-net", "plain"), ("cam-net", "cam-kd"), ("resnet8", "plain"), ("resnet8", "cam-kd"))
PARTS: tuple[tuple[str, Any, str], ...] = (
    ("backward", torch.Tensor, "backward"),
    ("views", Views, "__getitem__"),
    ("cache", Store, "read"),
    ("objective", Objective, "__call__"),
    ("clipping", nn.utils, "clip_grad_norm_"),
    ("optimiser", torch.optim.SGD, "step"),
    ("optimiser", torch.optim.AdamW, "step"),
    ("averaging", EMA, "__call__"),
)


class Stopwatch(Callback):
    """Adds up the seconds spent in parts of the loop, epoch by epoch; the model's forward where it is training."""

    def __init__(self, model: nn.Module) -> None:
        self.seconds: Counter[str] = Counter()
        self.epochs: list[dict[str, float]] = []
        self.parts = [("forward", type(model), "forward"), *PARTS]

    def epoch(self, row: dict[str, Any], model: nn.Module) -> None:
        """Keep what the epoch took, and begin again."""
        self.epochs.append({**self.seconds, "step": row["seconds"]})
        self.seconds.clear()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time the parts as long as the block lasts."""
        with ExitStack() as stack:
            for name, owner, attribute in self.parts:
                stack.enter_context(patch.object(owner, attribute, self._timed(name, getattr(owner, attribute))))
            yield

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            if name == "forward" and not arguments[0].training:  # judging is no part of a step
                return function(*arguments, **options)
            started = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds[name] += time.perf_counter() - started

        return timed


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The share of a step spent outside the model's forward and backward, and on what; the store is warm."""
    os.environ["CAMKD_CACHE"] = str(folder / "cache")
    data = open_data("shapes")
    few = data.val.take(np.arange(100))
    data = replace(data, train=data.train.take(np.arange(STEPS * 128) % len(data.train)), val=few)
    classes, size = data.classes, 32
    teacher_model = build("resnet8", len(classes), size)
    cost = profile(teacher_model, size)
    described = ModelInfo("resnet8", classes, size, cost.params, cost.macs, "teacher", "plain", "shapes", "", 0)
    save(teacher_model, folder / "teacher", described)
    teacher = load_teacher(folder / "teacher", data, "cpu")
    epochs: dict[str, list[dict[str, float]]] = {}
    for number in range(options.rounds):
        for student, method in CASES:
            goal, config = parse_objective(method), TrainConfig(epochs=EPOCHS, augment_epochs=1, device="cpu")
            known = build_teacher_cache(teacher, data, config, DistillConfig(method)) if goal.needs_teacher else None
            model = build(student, len(classes), size)
            watch, run = Stopwatch(model), Run(folder / f"{student}-{method}-{number}")
            with watch.running():
                loop.fit(model, data, goal, config, run, knowledge=known, watch=watch)
            epochs.setdefault(f"{student}, {method}", []).extend(watch.epochs[1:])  # the first one fills the store
    return {name: _middle(measured) for name, measured in epochs.items()}


def _middle(epochs: list[dict[str, float]]) -> dict[str, Any]:
    """Medians over epochs, in milliseconds a step."""
    parts = {part: 1000 * statistics.median(epoch[part] for epoch in epochs) / STEPS for part in epochs[0]}
    shares = [100 * (1 - (epoch["forward"] + epoch["backward"]) / epoch["step"]) for epoch in epochs]
    return {"outside_percent": statistics.median(shares), "milliseconds": parts}


def show(found: dict[str, Any]) -> None:
    """Print the section as Markdown."""
    columns = ["step", "forward", *dict.fromkeys(name for name, _, _ in PARTS)]
    print("Milliseconds of a step of 128 pictures of 32 px; to reach: at most 5 % outside forward and backward\n")
    print(f"| student, method | outside | {' | '.join(columns)} |\n|---|---|{'---|' * len(columns)}")
    for name, case in found.items():
        numbers = (case["milliseconds"].get(column, 0.0) for column in columns)
        verdict = "" if case["outside_percent"] <= 5 else " (NOT reached)"
        print(f"| {name} | {case['outside_percent']:.1f} %{verdict} | {' | '.join(f'{n:.2f}' for n in numbers)} |")
