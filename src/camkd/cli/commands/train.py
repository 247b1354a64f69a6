"""The command ``train``: teacher, control, student and report."""

from __future__ import annotations

from dataclasses import replace
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
from camkd.config import AUTO, DistillConfig, Layers, TeacherConfig
from camkd.types import InputError


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--recipe",
        type=str | None,
        default=None,
        help="complete settings by name, see 'camkd list recipes'; other options override them",
    )
    parser.add_argument(
        "--teacher-epochs", type=int | None, default=None, help="epochs of the teacher (default: those of --epochs)"
    )
    parser.add_argument(
        "--teacher-size",
        type=int | None,
        default=None,
        help="side of the teacher's images in pixels (default: if the head of pretrained weights is trained on a "
        "folder, their size, else --size)",
    )
    parser.add_argument(
        "--teacher-train",
        type=Layers | None,
        default=None,
        help="layers of the teacher to train, as in 'camkd teacher' (default: head for pretrained weights, else all)",
    )
    add_student_option(parser)
    add_flags(parser, DistillConfig)
    add_training_options(parser)


def _run(options: Namespace) -> dict[str, Any] | None:
    from camkd.distill.teacher import find_teacher
    from camkd.experiments import pipeline, planning, teacher_student
    from camkd.models import is_model_name
    from camkd.models.external import has_pretrained_weights
    from camkd.report.run_summary import ROLES
    from camkd.utils.distributed import init_distributed, run_on_rank0

    config = run_config(options)
    resume = resume_option(options)
    folder = out_folder(options, options.student, "from", options.teacher)
    pipeline.check_config(config, options.teacher_epochs, options.teacher_size)
    teacher = planning.DEFAULT_TEACHERS[0] if options.teacher == AUTO else options.teacher
    if is_model_name(teacher):
        layers: Layers = options.teacher_train or ("head" if has_pretrained_weights(teacher) else "all")
        config = replace(config, teacher=TeacherConfig(layers))
        pipeline.check_config(replace(config, model=teacher, role="teacher"))
        if layers != "head":
            pipeline.check_shared_optimizer(config.train, teacher, options.student)
    else:
        _check_no_teacher_options(options)
        find_teacher(options.teacher, options.data)
    with init_distributed(options.device) as group, open_reporter() as reporter:
        run_on_rank0(lambda: pipeline.check_outputs(config, folder, *(folder / role for role in ROLES)))
        data = open_data(config.data, reporter)
        metrics = teacher_student.train_all(
            folder,
            config,
            data,
            teacher_epochs=options.teacher_epochs,
            teacher_size=options.teacher_size,
            resume=resume,
            callbacks=[reporter],
        )
        reporter.message(teacher_student.summary(folder))
        reporter.message(f"report: {folder / 'report.html'}")
    return {**metrics, "out": str(folder)} if group.rank == 0 else None


def _check_no_teacher_options(options: Namespace) -> None:
    """Check that no option of a teacher to train is given with a trained teacher."""
    for name in ("teacher_size", "teacher_train"):
        if options[name] is not None:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{flag} must be given with the name of a model, got {flag} {options[name]} with the trained teacher "
                f"{options.teacher!r}. Leave out {flag}."
            )


TRAIN = Command(
    "Train a teacher, a student from the teacher and a control without a teacher, and report the gain of the student.",
    _add_options,
    _run,
)
