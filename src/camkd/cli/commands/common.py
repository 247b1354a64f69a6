"""Options and helpers of several commands."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace  # type: ignore[attr-defined]

from camkd.cli.flags import add_flags, from_namespace
from camkd.config import DataConfig, DistillConfig, Role, RunConfig, TeacherConfig, TrainConfig
from camkd.types import InputError

if TYPE_CHECKING:
    from camkd.cli.progress import ProgressReporter
    from camkd.data.dataset import Dataset
    from camkd.data.files import BadImages
    from camkd.runs.resume import Resume

DEVICE_HELP = "auto, cpu, cuda, cuda:1 or mps"
AS_IN_TRAINING = " (default: as in the training of the run)"
TEACHER_RUN_HELP = "folder of the teacher's run (default: the teacher that the run names, if its weights are found)"


@dataclass(frozen=True)
class Command:
    """A subcommand of ``camkd``.

    Args:
        summary: Description of the subcommand in the help, one line.
        add_options: Adds the options to a parser.
        run: Runs the command. Returns the object that ``--json`` prints, or None on ranks other than 0.
    """

    summary: str
    add_options: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], dict[str, Any] | None]


@dataclass(frozen=True)
class Group:
    """A subcommand of ``camkd`` with subcommands of its own, such as ``camkd cache``.

    Args:
        summary: Description of the group in the help, one line.
        commands: The subcommands by name.
    """

    summary: str
    commands: dict[str, Command]


class CommandFailed(Exception):
    """The command ended with a result and exit status 1: a metric violates a threshold, or a run failed.

    Args:
        message: The violation or the error, in one sentence.
        result: The object that ``--json`` prints despite the failure.
    """

    def __init__(self, message: str, result: dict[str, Any]) -> None:
        super().__init__(message)
        self.result = result


def add_training_options(parser: ArgumentParser, exclude: Collection[str] = ()) -> None:
    """Add the options of commands that train models, except for settings in ``exclude``."""
    add_flags(parser, DataConfig, TrainConfig, exclude=exclude)
    parser.add_argument("--out", type=str | None, default=None, help="the run folder (default: a folder in runs/)")
    parser.add_argument(
        "--resume", action="store_true", help="continue the run in --out; an empty or missing folder gets a new run"
    )
    parser.add_argument(
        "--accept",
        type=str,
        default="",
        help="with --resume: comma-separated settings that may differ from the original run, for example epochs,lr",
    )
    parser.add_argument(
        "--config", action=ActionConfigFile, help="a YAML file with any of these options, except --recipe"
    )


def add_bad_images_option(parser: ArgumentParser, default: BadImages | None, note: str) -> None:
    """Add ``--bad-images``. ``note`` is the end of its help text."""
    parser.add_argument(
        "--bad-images",
        type=Literal["fail", "skip"] | None,
        default=default,
        help=f"unreadable images: stop and list them (fail), or leave them out (skip){note}",
    )


def add_student_option(parser: ArgumentParser) -> None:
    """Add ``--student``."""
    parser.add_argument("--student", type=str, default="cam-net", help="the small network, see 'camkd list models'")


def run_config(options: Namespace, role: Role = "student") -> RunConfig:
    """Build the configuration of a run from parsed options."""
    return RunConfig(
        from_namespace(DataConfig, options),
        from_namespace(TrainConfig, options),
        from_namespace(DistillConfig, options),
        model=options["model" if role == "teacher" else "student"],
        role=role,
        teacher=from_namespace(TeacherConfig, options) if role == "teacher" else TeacherConfig(),
    )


def resume_option(options: Namespace) -> Resume | None:
    """Convert ``--resume`` and ``--accept`` to a `Resume`. Return None without ``--resume``: the run must be new."""
    from camkd.runs.resume import Resume, parse_accept

    accepted = parse_accept(options.accept)
    if accepted and not options.resume:
        raise InputError(
            f"--accept must be given with --resume, got --accept {options.accept} without it. Add --resume."
        )
    return Resume(accepted) if options.resume else None


def out_folder(options: Namespace, *names: str) -> Path:
    """Return the run folder: the value of ``--out``, or ``runs/<dataset>/<name>-<name>...`` without ``--out``.

    The default folder is stored in ``options.out``, so that the message of an interrupted command can describe the
    content of the folder.

    Args:
        options: The parsed options, with ``out`` and ``data``.
        names: Parts of the default folder's name, joined by hyphens. Of a part that is a path, only the last component
            is used.
    """
    from camkd.runs.folder import default_run_folder

    if not options.out:
        options.out = str(default_run_folder(options.data, *(Path(name).name for name in names)))
    return Path(options.out)


def open_reporter() -> ProgressReporter:
    """Create the progress reporter of a command, silent on ranks other than 0."""
    from camkd.cli.progress import ProgressReporter
    from camkd.utils.distributed import process_group

    return ProgressReporter(quiet=process_group().rank > 0)


def open_data(config: DataConfig, reporter: ProgressReporter) -> Dataset:
    """Open the dataset of a command and print its summary."""
    from camkd.data.class_balance import describe_imbalance
    from camkd.data.problems import check_dataset
    from camkd.data.sources import open_dataset
    from camkd.utils.distributed import process_group, run_on_rank0

    def build_cache() -> None:
        open_dataset(config, reporter.progress)

    if process_group().world_size > 1:
        run_on_rank0(build_cache)  # then the other ranks find the decoded images in the cache
    data = open_dataset(config, reporter.progress)
    size = data.size
    reporter.message(
        f"{data.name}: {len(data.labeled.train):,} training, {len(data.val):,} validation and {len(data.test):,} test "
        f"images of {size}x{size} pixels in {len(data.classes)} classes"
    )
    imbalance = describe_imbalance(data.labeled.train.labels, data.classes)
    for note in (*data.notes, *([imbalance] if imbalance else [])):
        reporter.message(f"  {note}")
    if process_group().rank == 0 and (problems := check_dataset(data.labeled, reporter.progress)):
        flags = {"--group": config.group, "--group-regex": config.group_regex}
        options = [part for flag, value in flags.items() if value is not None for part in (flag, value)]
        command = shlex.join(["camkd", "audit", config.data, *options])
        reporter.message(f"  {'; '.join(problems)}. List them with: {command}")
    return data
