"""The command line: parse, call, print. Torch is imported inside a command, so that ``--help`` answers at once."""

from __future__ import annotations

import json
import shlex
import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace  # type: ignore[attr-defined]

from camkd.config import DataConfig, Lesson, TrainConfig
from camkd.flags import add, plainly, take
from camkd.types import InputError

if TYPE_CHECKING:
    from camkd.console import Screen

PROGRAM = "camkd"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0: done. 1: it failed. 2: the user's input is wrong, one sentence says what to do. 130: interrupted; a training
    run's state is saved and the command that goes on with it is printed.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    if not arguments:
        parser.print_help()
        return 0
    try:
        options = parser.parse_args(arguments)
    except ArgumentError as error:
        return _say(2, plainly(str(error)))
    command = COMMANDS[options.command]
    options = options[options.command]
    try:
        result = command.run(options)
    except InputError as error:
        return _say(2, str(error))
    except FloatingPointError as error:
        return _say(1, str(error))
    except OSError as error:
        if error.filename is None:
            raise
        return _say(1, f"{error.filename}: {error.strerror}.")
    except KeyboardInterrupt:
        if "resume" not in options:
            return _say(130, "interrupted.")
        again = arguments if "--resume" in arguments else [*arguments, "--resume"]
        return _say(130, f"interrupted; the state is saved. Go on with: {shlex.join([PROGRAM, *again])}")
    if options.json:
        print(json.dumps(result, ensure_ascii=False, allow_nan=False))
    return 0


class _Command:
    """A command: what it does in a line, its options, and the function that runs it."""

    def __init__(
        self,
        summary: str,
        options: Callable[[ArgumentParser], None],
        run: Callable[[Namespace], dict[str, Any]],
    ) -> None:
        self.summary, self.options, self.run = summary, options, run


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog=PROGRAM,
        exit_on_error=False,
        allow_abbrev=False,
        version=version(PROGRAM),
        description="Compress an image classifier into a tiny one that looks where its teacher looks.",
    )
    commands = parser.add_subcommands(dest="command")
    for name, command in COMMANDS.items():
        sub = ArgumentParser(exit_on_error=False, allow_abbrev=False, description=command.summary)
        command.options(sub)
        sub.add_argument("--json", action="store_true", help="print one JSON object on stdout")
        commands.add_subcommand(name, sub, help=command.summary)
    return parser


def _configs(options: Namespace) -> tuple[DataConfig, TrainConfig]:
    return take(DataConfig, options), take(TrainConfig, options)


def _training_options(parser: ArgumentParser) -> None:
    add(parser, DataConfig, TrainConfig)
    parser.add_argument("--out", type=str | None, default=None, help="the run's folder (default: under runs/)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--config", action=ActionConfigFile, help="a YAML file with any of these options")


def _lesson_options(parser: ArgumentParser) -> None:
    parser.add_argument("--student", type=str, default="cam-net", help="the small network: see 'camkd list models'")
    add(parser, Lesson)


def _train_options(parser: ArgumentParser) -> None:
    parser.add_argument("--teacher", type=str, default="wrn-16-4", help="a model to train first, or a trained run")
    parser.add_argument("--teacher-epochs", type=int | None, default=None, help="(default: as many as --epochs)")
    _lesson_options(parser)
    _training_options(parser)


def _train(options: Namespace) -> dict[str, Any]:
    from camkd import pipeline
    from camkd.models import MODELS
    from camkd.teachers import find_teacher

    configs = _configs(options)
    folder = _out(options, configs[0], options.student, "from", options.teacher)
    lesson = take(Lesson, options)
    pipeline.check_names(options.student, lesson, configs[1], options.teacher_epochs)
    if options.teacher not in MODELS:
        find_teacher(options.teacher, configs[0].data)
    with _screen() as screen:
        data = _open(configs[0], screen)
        results = pipeline.train_all(
            folder,
            data,
            options.teacher,
            options.student,
            configs,
            lesson,
            teacher_epochs=options.teacher_epochs,
            resume=options.resume,
            watch=screen,
        )
        screen.say(pipeline.summary(folder))
        screen.say(f"report: {folder / 'report.html'}")
    return {**results, "out": str(folder)}


def _teacher_options(parser: ArgumentParser) -> None:
    parser.add_argument("--model", type=str, default="wrn-16-4", help="the network: see 'camkd list models'")
    _training_options(parser)


def _teacher(options: Namespace) -> dict[str, Any]:
    from camkd import pipeline

    configs = _configs(options)
    folder = _out(options, configs[0], "teacher", options.model)
    pipeline.check_names(options.model, Lesson("plain"), configs[1])
    with _screen() as screen:
        data = _open(configs[0], screen)
        metrics = pipeline.train_run(
            folder,
            data,
            options.model,
            "teacher",
            configs,
            Lesson("plain"),
            resume=options.resume,
            watch=screen,
        )
        screen.say(f"{options.model}: {metrics['accuracy']:.1%} of the test pictures right; the run is {folder}")
    return {**metrics, "out": str(folder)}


def _distill_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--teacher",
        type=str,
        default="wrn-16-4",
        help="a trained run, or a model trained before on these pictures",
    )
    _lesson_options(parser)
    _training_options(parser)


def _distill(options: Namespace) -> dict[str, Any]:
    from camkd import pipeline
    from camkd.report import write_report
    from camkd.teachers import adopt_teacher, find_teacher

    configs = _configs(options)
    folder = _out(options, configs[0], options.student, options.method, "from", options.teacher)
    lesson = take(Lesson, options)
    pipeline.check_names(options.student, lesson, configs[1])
    place = find_teacher(options.teacher, configs[0].data)
    with _screen() as screen:
        data = _open(configs[0], screen)
        teacher = adopt_teacher(place, data, configs[1].device)
        metrics = pipeline.train_run(
            folder,
            data,
            options.student,
            "student",
            configs,
            lesson,
            teacher,
            resume=options.resume,
            watch=screen,
        )
        write_report([place, folder], folder / "report.html")
        screen.say(
            f"{options.student}: {metrics['accuracy']:.1%} of the test pictures right, agrees with its teacher on "
            f"{metrics['teacher_agreement']:.1%}; report: {folder / 'report.html'}"
        )
    return {**metrics, "out": str(folder)}


def _evaluate_options(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=str, help="a run folder or a shipped model")
    parser.add_argument("--data", "--dataset", type=str | None, default=None, help="other pictures than the run's own")
    parser.add_argument("--teacher", type=str | None, default=None, help="the teacher's run (default: the run's own)")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1 or mps")


def _evaluate(options: Namespace) -> dict[str, Any]:
    from camkd.tables import print_table
    from camkd.trained import reevaluate

    with _screen() as screen:
        figures = reevaluate(options.run, options.data, options.teacher, options.device, progress=screen.progress)
    if not options.json:
        shown = {k: v for k, v in figures.items() if isinstance(v, int | float | str)}
        print_table(options.run, ["figure", "value"], [[k, _short(v)] for k, v in shown.items()])
    return figures


def _explain_options(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=str, help="a run folder or a shipped model")
    parser.add_argument("images", type=str, nargs="+", help="picture files")
    parser.add_argument("--out", type=str, default="cams.png", help="where the figure goes")
    parser.add_argument("--teacher", type=str | None, default=None, help="the teacher's run (default: the run's own)")


def _explain(options: Namespace) -> dict[str, Any]:
    from camkd.trained import explain_files

    answers = explain_files(options.run, options.images, Path(options.out), options.teacher)
    for image, answer in zip(options.images, answers, strict=True):
        said = ", ".join(f"{who} {what['class']} ({what['confidence']:.0%})" for who, what in answer.items())
        print(f"{image}: {said}", file=sys.stderr)
    print(f"written: {options.out}", file=sys.stderr)
    return {"out": options.out, "pictures": dict(zip(options.images, answers, strict=True))}


def _report_options(parser: ArgumentParser) -> None:
    parser.add_argument("runs", type=str, nargs="+", help="run folders, or one folder of 'camkd train'")
    parser.add_argument("--out", type=str | None, default=None, help="(default: report.html in the first)")


def _report(options: Namespace) -> dict[str, Any]:
    from camkd.report import write_report

    out = Path(options.out or Path(options.runs[0]) / "report.html")
    write_report([Path(run) for run in options.runs], out)
    print(f"written: {out}", file=sys.stderr)
    return {"out": str(out)}


def _list_options(parser: ArgumentParser) -> None:
    parser.add_argument("what", type=str, help="models, methods or data")
    parser.add_argument("--size", type=int, default=32, help="picture side for the models' costs")
    parser.add_argument("--classes", type=int, default=10, help="number of classes for the models' costs")


def _list(options: Namespace) -> dict[str, Any]:
    from camkd.catalogue import show
    from camkd.tables import print_table

    found, (columns, rows) = show(options.what, options.size, options.classes)
    if not options.json:
        print_table(options.what, columns, rows)
    return found


COMMANDS: dict[str, _Command] = {
    "train": _Command(
        "Train a teacher, a student without it and a student with it, and report what it brought.",
        _train_options,
        _train,
    ),
    "teacher": _Command("Train a teacher.", _teacher_options, _teacher),
    "distill": _Command("Train a student from a trained teacher.", _distill_options, _distill),
    "evaluate": _Command("Measure a trained model on test pictures.", _evaluate_options, _evaluate),
    "explain": _Command("Show where a model looks in pictures.", _explain_options, _explain),
    "report": _Command("Write the HTML report of run folders.", _report_options, _report),
    "list": _Command("List models, methods or data sets.", _list_options, _list),
}


def _out(options: Namespace, data: DataConfig, *names: str) -> Path:
    from camkd.runs import default_folder

    if options.out:
        return Path(options.out)
    return default_folder(data.data, *(Path(name).name for name in names))


def _open(config: DataConfig, screen: Screen) -> Any:
    from camkd import pipeline

    data = pipeline.open_pictures(config, screen.progress)
    screen.say(
        f"{data.name}: {len(data.train):,} training, {len(data.val):,} validation and {len(data.test):,} test pictures "
        f"of {data.train.images.shape[1]} pixels in {len(data.classes)} classes"
    )
    for note in data.notes:
        screen.say(f"  {note}")
    return data


def _screen() -> Screen:
    from camkd.console import Screen

    return Screen()


def _say(status: int, sentence: str) -> int:
    print(f"{PROGRAM}: {sentence}", file=sys.stderr)
    return status


def _short(value: float | str) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}" if isinstance(value, float) else value
