"""The command ``distill``: train a student from a trained teacher."""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentParser, Namespace

from camkd.cli.commands.common import (
    Command,
    add_student_option,
    add_training_options,
    open_data,
    open_reporter,
    out_folder,
    resume_option,
    run_config,
)
from camkd.cli.flags import add_flags
from camkd.config import AUTO, DistillConfig


def _add_options(parser: ArgumentParser) -> None:
    add_student_option(parser)
    add_flags(parser, DistillConfig)
    add_training_options(parser)


def _run(options: Namespace) -> dict[str, Any] | None:
    from camkd.distill.teacher import check_default_teacher, find_teacher, load_teacher
    from camkd.experiments import pipeline, planning
    from camkd.report.report import write_report
    from camkd.runs.folder import Run
    from camkd.runs.loading import read_model_info
    from camkd.utils.distributed import init_distributed, run_on_rank0

    config = run_config(options)
    resume = resume_option(options)
    pipeline.check_config(config)
    teacher_folder = find_teacher(options.teacher, options.data)
    teacher_name = read_model_info(teacher_folder).architecture if options.teacher == AUTO else options.teacher
    folder = out_folder(options, options.student, options.method, "from", teacher_name)
    with init_distributed(options.device) as group, open_reporter() as reporter:
        run_on_rank0(lambda: pipeline.check_outputs(config, folder))
        data = open_data(config.data, reporter)
        teacher = load_teacher(teacher_folder, data, options.device)
        check_default_teacher(options.teacher, teacher_folder, options.data, data.labeled.source_fingerprint)
        config = pipeline.resolve_settings(config, data, folder, callbacks=[reporter])
        teacher_with_cache, config = pipeline.prepare_teacher(teacher, config, [reporter])
        if not Run(folder).config():
            seconds = planning.estimate_distillation(teacher.model, teacher.size, config, data)
            reporter.message(planning.describe_times(seconds))
        metrics = pipeline.train_run(folder, config, data, teacher_with_cache, resume=resume, callbacks=[reporter])
        run_on_rank0(lambda: write_report([teacher_folder, folder], folder / "report.html"))
        reporter.message(
            f"{options.student}: test accuracy {metrics['accuracy']:.1%}, teacher agreement "
            f"{metrics['teacher_agreement']:.1%}; report: {folder / 'report.html'}"
        )
    return {**metrics, "out": str(folder)} if group.rank == 0 else None


DISTILL = Command("Train a student from a trained teacher.", _add_options, _run)
