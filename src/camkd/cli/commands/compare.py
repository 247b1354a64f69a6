"""The command ``compare``: several methods over several seeds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace  # type: ignore[attr-defined]

from camkd.cli.commands.common import (
    Command,
    CommandFailed,
    add_student_option,
    open_data,
    open_reporter,
    out_folder,
    run_config,
)
from camkd.cli.flags import add_flags
from camkd.config import DataConfig, DistillConfig, TrainConfig


def _add_options(parser: ArgumentParser) -> None:
    add_student_option(parser)
    parser.add_argument(
        "--methods",
        type=str,
        default="plain,kd,cam-kd",
        help="names of 'camkd list methods', or sums of terms like ce=0.1+kd=0.9+cam=1:schedule=early",
    )
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds per method, from --seed upwards")
    parser.add_argument("--processes", type=int, default=1, help="number of concurrent runs, which share the CPU cores")
    add_flags(parser, DataConfig, TrainConfig)
    add_flags(parser, DistillConfig, exclude={"method"})
    parser.add_argument("--out", type=str | None, default=None, help="folder of the comparison (default: under runs/)")
    parser.add_argument("--resume", action="store_true", help="continue the comparison in --out, or extend it")
    parser.add_argument("--config", action=ActionConfigFile, help="a YAML file with any of these options")


def _run(options: Namespace) -> dict[str, Any]:
    import torch

    from camkd.cli.tables import print_table
    from camkd.distill.teacher import check_default_teacher, find_teacher
    from camkd.experiments import compare, pipeline
    from camkd.report.comparison_report import tables, write_comparison
    from camkd.types import InputError

    config = run_config(options)
    methods = compare.parse_methods(options.methods, config.train.label_smoothing)
    for name in ("seeds", "processes"):
        if options[name] < 1:
            raise InputError(f"--{name} must be 1 or more, got {options[name]}. Choose a larger number.")
    seeds = tuple(range(options.seed, options.seed + options.seeds))
    for method in methods:
        distill = replace(config.distill, method=method)
        pipeline.check_config(replace(config, distill=distill, train=replace(config.train, seed=seeds[-1])))
    teacher = find_teacher(options.teacher, options.data)
    config = replace(config, distill=replace(config.distill, teacher=str(teacher)))
    folder = out_folder(options, "compare", options.student)
    threads = max(1, torch.get_num_threads() // options.processes)
    plan = compare.Plan(folder, config, methods, seeds, threads)
    pipeline.check_outputs(config, folder)
    with open_reporter() as reporter:
        data = open_data(config.data, reporter)
        check_default_teacher(options.teacher, teacher, options.data, data.labeled.source_fingerprint)
        plan = compare.prepare(plan, data, resume=options.resume, callback=reporter)
        try:
            errors = compare.run_missing(plan, data, options.processes, reporter, reporter.progress)
        finally:  # finished runs are reported even if another run fails
            comparison = compare.collect(plan)
            settings = {**plan.settings(data.fingerprint), "processes": options.processes}
            page = write_comparison(comparison, folder, settings)
    if not options.json:
        for title, columns, rows in tables(comparison):
            print_table(title, columns, rows)
    for difference in comparison.differences():
        reporter.message(difference.sentence)
    reporter.message(comparison.choice)
    reporter.message(f"page: {page}")
    result = {"out": str(folder), **comparison.summary()}
    if errors:
        raise CommandFailed(" ".join(f"{name}: {error}" for name, error in errors.items()), result)
    return result


COMPARE = Command("Compare methods over seeds, paired, under one budget.", _add_options, _run)
