"""What a comparison is: methods x seeds, what all runs have in common, and where each one lies."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from camkd.config import DataConfig, DistillConfig, TrainConfig, resolve_optimizer
from camkd.distill.methods import METHODS
from camkd.distill.objective import format_objective, parse_objective
from camkd.models import default_optimizer
from camkd.runs.folder import Run
from camkd.runs.load_model import read_model_info
from camkd.runs.resume import IGNORED_ON_RESUME
from camkd.types import InputError

LONGEST_SLUG = 100


@dataclass(frozen=True)
class Plan:
    """What is compared, and what all have in common. ``threads`` is of each run: results depend on it to the bit."""

    folder: Path
    teacher: Path
    student: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    data: DataConfig
    train: TrainConfig
    lesson: DistillConfig
    threads: int = 1

    def place(self, method: str, seed: int) -> Run:
        """The folder of one run."""
        return Run(self.folder / slug(method) / f"seed-{seed}")

    @property
    def runs(self) -> list[tuple[str, int]]:
        """(method, seed) of every run, seed by seed, so that the first differences are known early."""
        return [(method, seed) for seed in self.seeds for method in self.methods]

    def missing(self) -> list[tuple[str, int]]:
        """The runs that are not finished yet."""
        return [(method, seed) for method, seed in self.runs if not self.place(method, seed).finished]

    def taught(self, method: str) -> DistillConfig:
        return replace(self.lesson, method=method)

    def settings(self, pictures: str) -> dict[str, Any]:
        """What all runs have in common: runs with other settings are another comparison."""
        harmless = (*IGNORED_ON_RESUME, "seed", "method")
        steps = resolve_optimizer(self.train, default_optimizer(self.student))._asdict()
        everything = {**asdict(self.data), **asdict(self.train), **steps, **asdict(self.lesson)}
        common = {name: value for name, value in everything.items() if name not in harmless}
        weights = read_model_info(self.teacher).sha256
        named = {"teacher": str(self.teacher.resolve()), "teacher_weights": weights, "student": self.student}
        return {**named, "pictures": pictures, **common, "threads": self.threads}


def methods_of(text: str, label_smoothing: float = 0.0) -> tuple[str, ...]:
    """``plain, kd, ce=0.1+cam=1:pool=2``: methods separated by commas, the terms of a sum by ``+``.

    A sum that is a named method comes back as its name, so that it is found as a baseline; others in the form of
    `camkd.distill.objective.format_objective`, for runs with that label smoothing.

    Raises ``InputError`` where there is none, or one comes twice, or commas leave it open where a sum ends.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise InputError("a comparison needs methods: give --methods some, like plain,kd,cam-kd.")
    terms = [part for part in parts if "=" in part and len(parse_objective(part).terms) == 1]
    if len(terms) > 1:
        raise InputError(
            f"{terms[0]!r} and {terms[1]!r} may be two methods or two terms of one: write the sum as "
            f"{terms[0]}+{terms[1]}, as commas separate methods."
        )
    goals = [parse_objective(part, label_smoothing=label_smoothing) for part in parts]
    for place, (part, goal) in enumerate(zip(parts, goals, strict=True)):
        if goal in goals[:place]:
            raise InputError(f"{part!r} is the same method as {parts[goals.index(goal)]!r}: name each once.")
    named = [(name, parse_objective(name, label_smoothing=label_smoothing)) for name in METHODS]
    return tuple(
        next((name for name, its in named if its == goal), format_objective(goal, label_smoothing=label_smoothing))
        for goal in goals
    )


def slug(method: str) -> str:
    """A method as the name of a folder.

    >>> slug("ce=0.1+cam=1:pool=2")
    'ce=0.1+cam=1_pool=2'
    """
    safe = re.sub(r"[^\w.+=-]", "_", method)
    if len(safe) <= LONGEST_SLUG:
        return safe
    return f"{safe[: LONGEST_SLUG - 9]}-{hashlib.sha256(method.encode()).hexdigest()[:8]}"
