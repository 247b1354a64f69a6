"""Methods x seeds on one data set with one budget and one knowledge store: every run a run folder, paired by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from camkd.data.dataset import Dataset, Progress
from camkd.distill.cache.precompute import Job, precompute
from camkd.distill.teacher import load_teacher
from camkd.experiments import pipeline
from camkd.experiments.compare.plan import Plan, methods_of, slug
from camkd.experiments.compare.workers import Worker, iter_runs
from camkd.report.comparison_stats import Arm, Comparison
from camkd.train.callbacks import Callback
from camkd.types import InputError
from camkd.utils.files import write_text

__all__ = ["Plan", "collect", "methods_of", "prepare", "run_missing", "slug"]

PLAN, RUNS = "comparison.yaml", "runs"


def prepare(plan: Plan, data: Dataset, *, resume: bool, watch: Callback) -> Plan:
    """Settle what all runs have in common, take the folder, and return the plan as it will be carried out.

    A comparison goes on in the number format, with the views and the threads that it was begun with. Raises
    ``InputError`` where the folder is another's, where a setting, the pictures or the teacher are not those that it, or
    one of its finished runs, was begun with, and where ``resume`` is not given for one that was begun.
    """
    before = _begun(plan.folder, resume)
    if before:
        precision = before["precision"] if plan.train.precision == "auto" else plan.train.precision
        augment_epochs = plan.train.augment_epochs or before["augment_epochs"]
        train = replace(plan.train, precision=precision, augment_epochs=augment_epochs)
        plan = replace(plan, train=train, threads=before["threads"])
    teacher = load_teacher(plan.teacher, data, plan.train.device)
    config = pipeline.resolve_auto(plan.train, watch=watch)
    stored = _stored(plan)
    if stored is not None:
        _, config = pipeline.prepare_teacher_cache(teacher, data, config, plan.taught(stored), watch)
    plan = replace(plan, train=config)
    settings = plan.settings(data.fingerprint)
    for name, value in settings.items():
        if before and value != before.get(name):
            raise InputError(
                f"{plan.folder} was started with {name} = {before.get(name)}, now it is {value}: "
                "resume with the same settings, or give another --out."
            )
    kept = {**settings, RUNS: _asked(plan, before)}
    write_text(plan.folder / PLAN, yaml.safe_dump(kept, sort_keys=False, allow_unicode=True))
    worker = Worker(plan, data)
    for method, seed in plan.runs:
        if plan.place(method, seed).finished:
            worker(method, seed, Callback())  # nothing is trained: it says if the run was another
    return plan


def _begun(folder: Path, resume: bool) -> dict[str, Any]:
    """What the comparison in ``folder`` was started with, empty where it is free."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, but a comparison is a folder: give another --out.")
    if not folder.exists() or not any(folder.iterdir()):
        return {}
    try:
        before = yaml.safe_load((folder / PLAN).read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError):
        before = None
    if not isinstance(before, dict) or not {"precision", "augment_epochs", "threads"} <= before.keys():
        raise InputError(f"{folder} holds something else than a comparison: give another --out.")
    if not resume:
        raise InputError(f"{folder} holds a comparison: add --resume to go on with it, or give another --out.")
    return before


def run_missing(plan: Plan, data: Dataset, processes: int, watch: Callback, progress: Progress) -> dict[str, str]:
    """Make the runs that are missing, one after another or in ``processes`` at once.

    The teacher is asked first, about all views that any run will see. A run that diverges is left as it is and the
    others go on; returned is what was said of each such run. After Ctrl-C what is done is kept, and runs that were on
    their way go on from where they stopped when the comparison is resumed.
    """
    missing, failed = plan.missing(), {}
    stored = _stored(replace(plan, methods=tuple(method for method, _ in missing)))
    if stored is not None:
        knowledge, _ = Worker(plan, data).knowledge(stored)
        if knowledge is not None and knowledge.store is not None:
            precompute(Job(plan.teacher, plan.data, plan.train, plan.taught(stored)), data, processes, progress)
    for (method, seed), error in iter_runs(plan, data, missing, processes, watch):
        name = f"{method}, seed {seed}"
        if error is not None:
            failed[name] = str(error)
            watch.note(f"{name} failed: {error}")
            continue
        found, done = plan.place(method, seed).read_metrics(), len(plan.runs) - len(plan.missing())
        watch.note(
            f"{name}: validation {found['val_accuracy']:.1%}, {found['seconds']:,.0f} s; "
            f"{done} of {len(plan.runs)} runs are done"
        )
    return failed


def collect(plan: Plan) -> Comparison:
    """The finished runs of a comparison, also of methods and seeds that it was asked for before."""
    path, arms = plan.folder / PLAN, []
    before = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    for method, seeds in _asked(plan, before).items():
        runs = {seed: plan.place(method, seed) for seed in seeds}
        arms.append(Arm(method, {seed: run.read_metrics() for seed, run in runs.items() if run.finished}))
    return Comparison(tuple(arms))


def _asked(plan: Plan, before: Mapping[str, Any]) -> dict[str, list[int]]:
    """The seeds of each method that a comparison was asked for, now or before."""
    known: Mapping[str, Sequence[int]] = before.get(RUNS) or {}
    methods = dict.fromkeys((*known, *plan.methods))
    now = dict.fromkeys(plan.methods, plan.seeds)
    return {method: sorted({*known.get(method, ()), *now.get(method, ())}) for method in methods}


def _stored(plan: Plan) -> str | None:
    """A method whose teacher's answers are kept; all such methods share one store."""
    for method in plan.methods:
        goal = pipeline.objective_of(plan.taught(method), plan.train)
        if goal.needs_teacher and "features" not in goal.needs:
            return method
    return None
