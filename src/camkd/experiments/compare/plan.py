"""Plan of a comparison: methods, seeds, common settings, and the folder of each run."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from camkd.config import RunConfig, resolve_optimizer
from camkd.distill.methods import METHODS
from camkd.distill.objective import format_objective, parse_objective
from camkd.models import default_optimizer
from camkd.runs.folder import Run
from camkd.runs.loading import read_model_info
from camkd.runs.resume import IGNORED_ON_RESUME
from camkd.types import InputError

MAX_SLUG_LENGTH = 100
"""Maximum length of the folder name of a method. Longer names are cut and end with a hash."""


@dataclass(frozen=True)
class Plan:
    """Methods, seeds and common settings of a comparison.

    Args:
        folder: Folder of the comparison.
        config: Common configuration of the runs. ``config.distill.teacher`` is the teacher's run folder.
        methods: Methods to compare.
        seeds: Seeds of each method.
        threads: Number of CPU threads per run. Results depend on this number in the last bits.
    """

    folder: Path
    config: RunConfig
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    threads: int = 1

    @property
    def teacher(self) -> Path:
        """The teacher's run folder."""
        return Path(self.config.distill.teacher)

    @property
    def runs(self) -> list[tuple[str, int]]:
        """(method, seed) of every run, grouped by seed, so that paired differences are available early."""
        return [(method, seed) for seed in self.seeds for method in self.methods]

    def run_folder(self, method: str, seed: int) -> Run:
        """Return the run folder of a method and seed."""
        return Run(self.folder / slug(method) / f"seed-{seed}")

    def missing(self) -> list[tuple[str, int]]:
        """Return (method, seed) of the runs that are not finished."""
        return [(method, seed) for method, seed in self.runs if not self.run_folder(method, seed).finished]

    def config_for(self, method: str, seed: int | None = None) -> RunConfig:
        """Return the configuration of a run. Without a seed, the run has the seed of ``config``."""
        train = self.config.train if seed is None else replace(self.config.train, seed=seed)
        return replace(self.config, train=train, distill=replace(self.config.distill, method=method))

    def settings(self, data_fingerprint: str) -> dict[str, Any]:
        """Return the settings that all runs of a comparison share.

        Args:
            data_fingerprint: Content hash of the dataset.

        Returns:
            The settings by name, without ``seed``, ``method`` and settings that do not influence results.
        """
        excluded = (*IGNORED_ON_RESUME, "seed", "method")
        optimizer = resolve_optimizer(self.config.train, default_optimizer(self.config.model))._asdict()
        options = {**self.config.options(), **optimizer, "teacher": str(self.teacher.resolve())}
        common = {name: value for name, value in options.items() if name not in excluded}
        return {
            "teacher_weights": read_model_info(self.teacher).sha256,
            "data_fingerprint": data_fingerprint,
            **common,
            "threads": self.threads,
        }


def parse_methods(text: str, label_smoothing: float = 0.0) -> tuple[str, ...]:
    """Parse the value of ``--methods``.

    Args:
        text: Methods separated by commas, such as ``plain, kd, ce=0.1+cam=1:pool=2``. The terms of a sum are separated
            by ``+``.
        label_smoothing: Label smoothing of the runs.

    Returns:
        The methods. A sum that equals a named method is replaced by this name. Other sums have the form of
        `camkd.distill.objective.format_objective`.

    Raises:
        InputError: If there is no method, a method is invalid or occurs twice, or terms of a sum are separated by
            commas.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise InputError("--methods must name at least one method, got none. Example: plain,kd,cam-kd.")
    single_terms = [part for part in parts if "=" in part and len(parse_objective(part).terms) == 1]
    if len(single_terms) > 1:
        first, second = single_terms[:2]
        raise InputError(
            f"The terms of a sum must be separated by +, got {first!r} and {second!r} separated by a comma. Write the "
            f"sum as {first}+{second}."
        )
    objectives = [parse_objective(part, label_smoothing=label_smoothing) for part in parts]
    for index, (part, objective) in enumerate(zip(parts, objectives, strict=True)):
        if objective in objectives[:index]:
            raise InputError(
                f"Each method must be named once, got {part!r}, which equals {parts[objectives.index(objective)]!r}. "
                "Remove one."
            )
    named = [(name, parse_objective(name, label_smoothing=label_smoothing)) for name in METHODS]
    return tuple(
        next(
            (name for name, named_objective in named if named_objective == objective),
            format_objective(objective, label_smoothing=label_smoothing),
        )
        for objective in objectives
    )


def slug(method: str) -> str:
    """Convert a method to the name of its folder.

    Args:
        method: A method: its name or its terms.

    Returns:
        The name of the folder.

    Example:
        >>> slug("ce=0.1+cam=1:pool=2")
        'ce=0.1+cam=1_pool=2'
    """
    safe = re.sub(r"[^\w.+=-]", "_", method)
    if len(safe) <= MAX_SLUG_LENGTH:
        return safe
    return f"{safe[: MAX_SLUG_LENGTH - 9]}-{hashlib.sha256(method.encode()).hexdigest()[:8]}"
