"""Compare methods over seeds, with the same dataset, training settings and teacher cache, paired by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from camkd.config import AUTO
from camkd.data.dataset import Dataset, Progress
from camkd.distill.cache.precompute import precompute
from camkd.distill.teacher import load_teacher
from camkd.experiments import pipeline
from camkd.experiments.compare.plan import Plan, parse_methods, slug
from camkd.experiments.compare.workers import Worker, iter_runs
from camkd.report.comparison_stats import Arm, Comparison
from camkd.runs.resume import IDENTIFIED_BY, PROVENANCE
from camkd.train.callbacks import Callback
from camkd.types import InputError
from camkd.utils.files import write_text

__all__ = ["Plan", "collect", "parse_methods", "prepare", "run_missing", "slug"]

PLAN_FILE = "comparison.yaml"
"""File with the settings of a comparison."""

RUNS = "runs"
"""Key of ``comparison.yaml`` with the seeds of each method."""


def prepare(plan: Plan, data: Dataset, *, resume: bool, callback: Callback) -> Plan:
    """Resolve the common settings and write them to the folder of the comparison.

    A resumed comparison keeps its number of threads. It keeps its augmentation, its precision and its number of
    augmented epochs unless the plan sets them.

    Args:
        plan: The plan.
        data: The dataset.
        resume: Whether the folder may hold a comparison.
        callback: Callback that receives messages.

    Returns:
        The resolved plan.

    Raises:
        InputError: If the folder holds other files, or a comparison while ``resume`` is False. If a setting, the images
            or the teacher differ from those of the stored comparison or of one of its finished runs.
    """
    stored = _read_plan(plan.folder, resume)
    if stored:
        train = plan.config.train
        train = replace(
            train,
            augment=stored["augment"] if train.augment == AUTO else train.augment,
            precision=stored["precision"] if train.precision == "auto" else train.precision,
            augment_epochs=train.augment_epochs or stored["augment_epochs"],
        )
        plan = replace(plan, config=replace(plan.config, train=train), threads=stored["threads"])
    teacher = load_teacher(plan.teacher, data, plan.config.train.device)
    plan = replace(plan, config=pipeline.resolve_settings(plan.config, data, callbacks=[callback]))
    cached_method = _cached_method(plan)
    if cached_method is not None:
        _, config = pipeline.prepare_teacher(teacher, plan.config_for(cached_method), [callback])
        plan = replace(plan, config=replace(plan.config, train=config.train))
    settings = plan.settings(data.fingerprint)
    for name, value in settings.items():
        if stored and name not in IDENTIFIED_BY and value != stored.get(name):
            if name in PROVENANCE:
                raise InputError(
                    f"The {PROVENANCE[name]} must be those that {plan.folder} was started with, got other "
                    f"{PROVENANCE[name]} (teacher {plan.teacher}, data {plan.config.data.data}). Resume with the same "
                    f"{PROVENANCE[name]}, or choose another --out."
                )
            raise InputError(
                f"{name} must be {stored.get(name)}, the value that {plan.folder} was started with, got {value}. "
                "Resume with the same settings, or choose another --out."
            )
    content = {**settings, RUNS: _requested_seeds(plan, stored)}
    write_text(plan.folder / PLAN_FILE, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    worker = Worker(plan, data)
    for method, seed in plan.runs:
        if plan.run_folder(method, seed).finished:
            worker(method, seed, Callback())  # checks the settings of the finished run, without training
    return plan


def _read_plan(folder: Path, resume: bool) -> dict[str, Any]:
    """Read the settings of the comparison in a folder. They are empty for a new or empty folder."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out must be a folder, got the file {folder}. Choose another --out.")
    if not folder.exists() or not any(folder.iterdir()):
        return {}
    try:
        stored = yaml.safe_load((folder / PLAN_FILE).read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError):
        stored = None
    if not isinstance(stored, dict) or not {"augment", "precision", "augment_epochs", "threads"} <= stored.keys():
        raise InputError(f"--out must be a new folder or a comparison, got {folder}. Choose another --out.")
    if not resume:
        raise InputError(
            f"--out must be a new folder, got {folder}, which holds a comparison. Add --resume to continue it, or "
            "choose another --out."
        )
    return stored


def run_missing(plan: Plan, data: Dataset, processes: int, callback: Callback, progress: Progress) -> dict[str, str]:
    """Compute the teacher outputs that a comparison caches, then train its missing runs.

    After Ctrl-C, finished runs are kept, and interrupted runs resume with the comparison.

    Args:
        plan: The resolved plan.
        data: The dataset.
        processes: Number of processes, each for one run at a time.
        callback: Callback that receives messages, and the steps of runs in a single process.
        progress: Callback ``progress(done, total, description)`` for the teacher's outputs.

    Returns:
        Error messages of runs that diverged. The keys have the form ``"kd, seed 0"``.

    Raises:
        InputError: If the disk is full.
        ChildProcessError: If a worker process ends unexpectedly.
    """
    missing = plan.missing()
    errors: dict[str, str] = {}
    cached_method = _cached_method(replace(plan, methods=tuple(method for method, _ in missing)))
    if cached_method is not None:
        teacher_with_cache, _ = Worker(plan, data).prepare(cached_method)
        if teacher_with_cache.cache is not None and teacher_with_cache.cache.store is not None:
            precompute(plan.config_for(cached_method), data, processes, progress)
    for (method, seed), error in iter_runs(plan, data, missing, processes, callback):
        name = f"{method}, seed {seed}"
        if error is not None:
            errors[name] = str(error)
            callback.on_message(f"{name} failed: {error}")
            continue
        metrics = plan.run_folder(method, seed).read_metrics()
        num_finished = len(plan.runs) - len(plan.missing())
        callback.on_message(
            f"{name}: validation {metrics['val_accuracy']:.1%}, {metrics['seconds']:,.0f} s; "
            f"{num_finished} of {len(plan.runs)} runs are finished"
        )
    return errors


def collect(plan: Plan) -> Comparison:
    """Collect the metrics of all finished runs of a comparison, including runs of earlier calls.

    Args:
        plan: The resolved plan.

    Returns:
        The methods with their finished runs.
    """
    path = plan.folder / PLAN_FILE
    stored = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    arms = []
    for method, seeds in _requested_seeds(plan, stored).items():
        runs = {seed: plan.run_folder(method, seed) for seed in seeds}
        arms.append(Arm(method, {seed: run.read_metrics() for seed, run in runs.items() if run.finished}))
    return Comparison(tuple(arms), plan.config.train.select)


def _requested_seeds(plan: Plan, stored: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return the seeds of each method: those of the plan and those of earlier calls."""
    stored_seeds: Mapping[str, Sequence[int]] = stored.get(RUNS) or {}
    methods = dict.fromkeys((*stored_seeds, *plan.methods))
    plan_seeds = dict.fromkeys(plan.methods, plan.seeds)
    return {method: sorted({*stored_seeds.get(method, ()), *plan_seeds.get(method, ())}) for method in methods}


def _cached_method(plan: Plan) -> str | None:
    """Return the first method whose teacher outputs are cached, or None. All such methods share one store."""
    for method in plan.methods:
        objective = pipeline.build_objective(plan.config_for(method))
        if objective.needs_teacher and "features" not in objective.needs:
            return method
    return None
