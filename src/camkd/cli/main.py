"""The command line: parse options, run a command, print its result.

Torch is imported when a command runs, so that ``--help`` starts fast.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from camkd.cli.commands import COMMANDS, Command, Group
from camkd.cli.commands.common import CommandFailed
from camkd.cli.flags import PlainHelp, clean_parser_error
from camkd.cli.recipes import expand_recipe
from camkd.cli.streams import checked_stdout, is_output_error, print_json, print_message
from camkd.types import InputError, Interrupted

PROGRAM = "camkd"

POSITIONAL = ("dataset", "run", "runs", "repo", "images", "folder", "keys", "kind")
"""Names of the arguments without a flag, of all commands."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The command line without the program. None: ``sys.argv[1:]``.

    Returns:
        The exit status. 0: done. 1: failed, or a metric violates --fail-under or --fail-over. 2: wrong input, with a
        sentence on stderr. 130: interrupted; a training command saves the state and prints the resume command.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # no advice about its cache folder
    try:
        with checked_stdout():
            return _run(list(sys.argv[1:] if arguments is None else arguments))
    except OSError as error:
        if not is_output_error(error):
            raise
        if isinstance(error, BrokenPipeError):  # the reader has ended, such as `camkd list models | head -1`
            return 1
        return _exit(1, f"stdout must be writable, got: {error.strerror}. Free disk space, or print to another file.")


def _run(arguments: list[str]) -> int:
    """Parse the arguments, run the command, print its result and return the exit status."""
    parser = _build_parser()
    if not arguments:
        parser.print_help()
        return 0
    try:
        options = _parse(parser, arguments)
    except InputError as error:
        return _exit(2, str(error))
    command, options = _select_command(options, COMMANDS)
    if options.get("recipe") and not any(argument.startswith("--recipe") for argument in arguments):
        return _exit(
            2, "--recipe must be on the command line, got --recipe in a --config file. Move it to the command line."
        )
    result = None
    failure = None
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            result = command.run(options)
    except CommandFailed as error:
        result = error.result
        failure = str(error)
    except InputError as error:
        return _exit(2, str(error))
    except (FloatingPointError, ChildProcessError) as error:
        return _exit(1, str(error))
    except OSError as error:
        if not _has_current_folder():
            return _exit(1, "the current folder must exist, got a deleted folder. Change to another folder.")
        if error.filename is None:
            raise
        return _exit(
            1,
            f"{error.filename} must be accessible, got: {error.strerror}. Check the path, its permissions and the free "
            "disk space.",
        )
    except KeyboardInterrupt as error:
        if "resume" not in options:
            return _exit(130, "interrupted.")
        is_saved = isinstance(error, Interrupted)
        return _exit(130, f"interrupted{_describe_state(options.out, arguments, is_saved=is_saved)}")
    if options.json and result is not None:  # ranks other than 0 return None
        print_json(result)
    return 0 if failure is None else _exit(1, failure)


def _describe_state(out: str | None, arguments: list[str], *, is_saved: bool) -> str:
    """Describe what an interrupted training command has saved, and the command that continues it.

    Args:
        out: The folder of the command. None: not known yet, so the command has not begun.
        arguments: The command line.
        is_saved: Whether a run was interrupted and has saved its state. Earlier runs may be finished.
    """
    folder = Path(out) if out else None
    has_files = folder is not None and folder.is_dir() and any(folder.iterdir())
    is_trained = is_saved or (folder is not None and any(folder.rglob("checkpoints/last-*.json")))
    resumes = (is_saved or has_files) and "--resume" not in arguments
    command = shlex.join([PROGRAM, *arguments, *(["--resume"] if resumes else [])])
    if is_trained:
        return f"; the state is saved. Resume with: {command}"
    return f"; nothing was trained yet. Start again with: {command}"


def _parse(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Parse the command line and its ``--config`` file. Raise ``InputError`` if an option is invalid."""
    try:
        options = parser.parse_args(expand_recipe(arguments))
        parser.validate(options, skip_unset=False)  # parse_args accepts null in a --config file for every option
    except InputError:
        raise
    except (ArgumentError, TypeError) as error:
        raise InputError(clean_parser_error(str(error))) from error
    except ValueError as error:  # the file is not UTF-8, or its path has a null byte
        raise InputError(f"--config must be a YAML file in UTF-8, got an error: {error}. Correct the file.") from error
    for key, value in list(options.items()):
        name = key.rpartition(".")[2]
        flag = name.upper() if name in POSITIONAL else f"--{name.replace('_', '-')}"
        if isinstance(value, str):
            options[key] = _check_text(flag, value)
        elif isinstance(value, list):
            options[key] = [_check_text(flag, item) if isinstance(item, str) else item for item in value]
    return options


def _check_text(flag: str, text: str) -> str:
    """Reject text that is empty or not Unicode, and expand a leading ``~``.

    ``~`` or ``~user`` is replaced by the home folder, unless a file has this name. A shell replaces only a ``~`` at the
    start of a word: not in ``--out=~/run``, and not in a --config file.
    """
    if not text.strip() and flag != "--accept":
        raise InputError(f"{flag} must not be empty, got {text!r}. Leave it out, or give a value.")
    if "\0" in text:
        raise InputError(f"{flag} must not contain a null byte, got {text!r}. Remove it.")
    if flag != "IMAGES" and not _is_unicode(text):
        raise InputError(
            f"{flag} must be Unicode text, got {text!r}, which {sys.getfilesystemencoding()} cannot decode. Rename the "
            "file or folder, or set PYTHONUTF8=1."
        )
    if not text.startswith("~") or os.path.lexists(text):
        return text
    expanded = os.path.expanduser(text)
    if expanded == text:
        raise InputError(f"{flag} must start with an existing home folder, got {text!r}. Write a full path.")
    return expanded


def _has_current_folder() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # undecodable bytes of the command line
        return False
    return True


def _print_warning(message: Warning | str, *args: object, **kwargs: object) -> None:
    print_message(f"{PROGRAM}: {message}")


def _build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog=PROGRAM,
        exit_on_error=False,
        allow_abbrev=False,
        version=version(PROGRAM),
        description="Distill an image classifier into a tiny one that reproduces its class activation maps.",
        formatter_class=PlainHelp,
    )
    _add_commands(parser, COMMANDS)
    return parser


def _add_commands(parser: ArgumentParser, commands: Mapping[str, Command | Group]) -> None:
    subcommands = parser.add_subcommands(dest="command")
    for name, command in commands.items():
        subparser = ArgumentParser(
            exit_on_error=False, allow_abbrev=False, description=command.summary, formatter_class=PlainHelp
        )
        if isinstance(command, Command):
            command.add_options(subparser)
            subparser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
        subcommands.add_subcommand(name, subparser, help=command.summary)
        if isinstance(command, Group):
            _add_commands(subparser, command.commands)


def _select_command(options: Namespace, commands: Mapping[str, Command | Group]) -> tuple[Command, Namespace]:
    command = commands[options.command]
    options = options[options.command]
    return _select_command(options, command.commands) if isinstance(command, Group) else (command, options)


def _exit(status: int, message: str) -> int:
    """Print a message on stderr and return the exit status."""
    print_message(f"{PROGRAM}: {message}")
    return status
