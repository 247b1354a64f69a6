"""The command that compares methods: compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace  # type: ignore[attr-defined]

from camkd.cli.commands.common import Command, ThresholdFailed, open_data, open_reporter
from camkd.cli.flags import add_flags, from_namespace
from camkd.config import DataConfig, DistillConfig, TrainConfig


def _options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--teacher",
        type=str,
        default="wrn-16-4",
        help="a trained run, or a model trained before on these pictures",
    )
    parser.add_argument("--student", type=str, default="cam-net", help="the small network: see 'camkd list models'")
    parser.add_argument(
        "--methods",
        type=str,
        default="plain,kd,cam-kd",
        help="names of 'camkd list methods', or sums of terms like ce=0.1+kd=0.9+cam=1:schedule=early",
    )
    parser.add_argument("--seeds", type=int, default=5, help="so many runs a method, from --seed upwards")
    parser.add_argument("--processes", type=int, default=1, help="how many runs at once; they share the cores")
    add_flags(parser, DataConfig, TrainConfig)
    add_flags(parser, DistillConfig, only={"cache_budget", "cache_map_size"})
    parser.add_argument("--out", type=str | None, default=None, help="the comparison's folder (default: under runs/)")
    parser.add_argument("--resume", action="store_true", help="go on with the comparison in --out, or add to it")
    parser.add_argument("--config", action=ActionConfigFile, help="a YAML file with any of these options")


def _compare(options: Namespace) -> dict[str, Any]:
    from dataclasses import replace

    import torch

    from camkd.cli.tables import print_table
    from camkd.distill.teacher import find_teacher
    from camkd.experiments import compare, pipeline
    from camkd.report.comparison_report import tables, write_comparison
    from camkd.runs.folder import default_run_folder
    from camkd.types import InputError

    data_config, config, lesson = (
        from_namespace(DataConfig, options),
        from_namespace(TrainConfig, options),
        from_namespace(DistillConfig, options),
    )
    methods = compare.methods_of(options.methods, config.label_smoothing)
    for name in ("seeds", "processes"):
        if options[name] < 1:
            raise InputError(f"{name} is {options[name]}, but has to be 1 or more: give such a number.")
    seeds = tuple(range(config.seed, config.seed + options.seeds))
    for method in methods:
        pipeline.check_names(options.student, replace(lesson, method=method), replace(config, seed=seeds[-1]))
    teacher = find_teacher(options.teacher, data_config.data)
    out = Path(options.out) if options.out else default_run_folder(data_config.data, "compare", options.student)
    threads = max(1, torch.get_num_threads() // options.processes)
    plan = compare.Plan(out, teacher, options.student, methods, seeds, data_config, config, lesson, threads)
    with open_reporter() as screen:
        data = open_data(data_config, screen)
        plan = compare.prepare(plan, data, resume=options.resume, watch=screen)
        try:
            failed = compare.run_missing(plan, data, options.processes, screen, screen.progress)
        finally:  # what is done is shown, whatever happened to the rest
            found = compare.collect(plan)
            page = write_comparison(found, out, {**plan.settings(data.fingerprint), "processes": options.processes})
    if not options.json:
        for title, columns, rows in tables(found):
            print_table(title, columns, rows)
    for difference in found.differences():
        screen.message(difference.sentence)
    screen.message(found.choice)
    screen.message(f"page: {page}")
    result = {"out": str(out), **found.summary()}
    if failed:
        raise ThresholdFailed("; ".join(f"{name}: {reason}" for name, reason in failed.items()) + ".", result)
    return result


COMPARE = Command("Compare methods over seeds, paired, under one budget.", _options, _compare)
