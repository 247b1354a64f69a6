"""Commands that train: train, teacher, distill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace  # type: ignore[attr-defined]

from camkd.cli.commands.common import Command, open_data, open_reporter
from camkd.cli.flags import add_flags, from_namespace
from camkd.config import DataConfig, DistillConfig, TrainConfig


def _configs(options: Namespace) -> tuple[DataConfig, TrainConfig]:
    return from_namespace(DataConfig, options), from_namespace(TrainConfig, options)


def _training_options(parser: ArgumentParser) -> None:
    add_flags(parser, DataConfig, TrainConfig)
    parser.add_argument("--out", type=str | None, default=None, help="the run's folder (default: under runs/)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument(
        "--accept",
        type=str,
        default="",
        help="with --resume: settings that may differ from those it was begun with, like epochs,lr",
    )
    parser.add_argument("--config", action=ActionConfigFile, help="a YAML file with any of these options")


def _lesson_options(parser: ArgumentParser) -> None:
    parser.add_argument("--student", type=str, default="cam-net", help="the small network: see 'camkd list models'")
    add_flags(parser, DistillConfig)


def _train_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--recipe",
        type=str | None,
        default=None,
        help="complete settings by name, see 'camkd list recipes'; what else is given wins",
    )
    parser.add_argument("--teacher", type=str, default="wrn-16-4", help="a model to train first, or a trained run")
    parser.add_argument(
        "--teacher-epochs", type=int | None, default=None, help="epochs of the teacher (default: as many as --epochs)"
    )
    _lesson_options(parser)
    _training_options(parser)


def _train(options: Namespace) -> dict[str, Any] | None:
    from camkd.distill.teacher import find_teacher
    from camkd.experiments import pipeline
    from camkd.models import is_model_name, model_factory
    from camkd.runs.resume import parse_accept
    from camkd.utils.distributed import init_distributed

    configs, accepted = _configs(options), parse_accept(options.accept)
    folder = _out(options, configs[0], options.student, "from", options.teacher)
    lesson = from_namespace(DistillConfig, options)
    pipeline.check_names(options.student, lesson, configs[1], options.teacher_epochs)
    if is_model_name(options.teacher):
        model_factory(options.teacher)
        pipeline.check_shared_rate(configs[1], options.teacher, options.student)
    else:
        find_teacher(options.teacher, configs[0].data)
    with init_distributed(configs[1].device) as who, open_reporter() as screen:
        data = open_data(configs[0], screen)
        results = pipeline.train_all(
            folder,
            data,
            options.teacher,
            options.student,
            configs,
            lesson,
            teacher_epochs=options.teacher_epochs,
            resume=options.resume,
            accept=accepted,
            watch=screen,
        )
        screen.message(pipeline.summary(folder))
        screen.message(f"report: {folder / 'report.html'}")
    return {**results, "out": str(folder)} if who.rank == 0 else None


def _teacher_options(parser: ArgumentParser) -> None:
    parser.add_argument("--model", type=str, default="wrn-16-4", help="the network: see 'camkd list models'")
    _training_options(parser)


def _teacher(options: Namespace) -> dict[str, Any] | None:
    from camkd.experiments import pipeline
    from camkd.runs.resume import parse_accept
    from camkd.utils.distributed import init_distributed

    configs, accepted = _configs(options), parse_accept(options.accept)
    folder = _out(options, configs[0], "teacher", options.model)
    pipeline.check_names(options.model, DistillConfig("plain"), configs[1])
    with init_distributed(configs[1].device) as who, open_reporter() as screen:
        data = open_data(configs[0], screen)
        metrics = pipeline.train_run(
            folder,
            data,
            options.model,
            "teacher",
            (configs[0], pipeline.resolve_auto(configs[1], folder, watch=screen)),
            DistillConfig("plain"),
            resume=options.resume,
            accept=accepted,
            watch=screen,
        )
        screen.message(f"{options.model}: {metrics['accuracy']:.1%} of the test pictures right; the run is {folder}")
    return {**metrics, "out": str(folder)} if who.rank == 0 else None


def _distill_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--teacher",
        type=str,
        default="wrn-16-4",
        help="a trained run, or a model trained before on these pictures",
    )
    _lesson_options(parser)
    _training_options(parser)


def _distill(options: Namespace) -> dict[str, Any] | None:
    from camkd.distill.teacher import find_teacher, load_teacher
    from camkd.experiments import pipeline
    from camkd.report.report import write_report
    from camkd.runs.resume import parse_accept
    from camkd.utils.distributed import init_distributed, run_on_rank0

    configs, accepted = _configs(options), parse_accept(options.accept)
    folder = _out(options, configs[0], options.student, options.method, "from", options.teacher)
    lesson = from_namespace(DistillConfig, options)
    pipeline.check_names(options.student, lesson, configs[1])
    place = find_teacher(options.teacher, configs[0].data)
    with init_distributed(configs[1].device) as who, open_reporter() as screen:
        data = open_data(configs[0], screen)
        teacher = load_teacher(place, data, configs[1].device)
        config = pipeline.resolve_auto(configs[1], folder, watch=screen)
        knowledge, config = pipeline.prepare_teacher_cache(teacher, data, config, lesson, screen)
        metrics = pipeline.train_run(
            folder,
            data,
            options.student,
            "student",
            (configs[0], config),
            lesson,
            teacher,
            knowledge,
            resume=options.resume,
            accept=accepted,
            watch=screen,
        )
        run_on_rank0(lambda: write_report([place, folder], folder / "report.html"))
        screen.message(
            f"{options.student}: {metrics['accuracy']:.1%} of the test pictures right, agrees with its teacher on "
            f"{metrics['teacher_agreement']:.1%}; report: {folder / 'report.html'}"
        )
    return {**metrics, "out": str(folder)} if who.rank == 0 else None


def _out(options: Namespace, data: DataConfig, *names: str) -> Path:
    from camkd.runs.folder import default_run_folder

    if options.out:
        return Path(options.out)
    return default_run_folder(data.data, *(Path(name).name for name in names))


TRAIN = Command(
    "Train a teacher, a student without it and a student with it, and report what it brought.",
    _train_options,
    _train,
)
TEACHER = Command("Train a teacher.", _teacher_options, _teacher)
DISTILL = Command("Train a student from a trained teacher.", _distill_options, _distill)
