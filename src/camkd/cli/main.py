"""The command line: parse, call, print. Torch is imported inside a command, so that ``--help`` answers at once."""

from __future__ import annotations

import json
import shlex
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from importlib.metadata import version

from jsonargparse import ArgumentParser, Namespace

from camkd.cli.commands import COMMANDS, Command, Group
from camkd.cli.commands.common import ThresholdFailed
from camkd.cli.flags import PlainHelp, clean_parser_error
from camkd.cli.recipes import expand_recipe
from camkd.types import InputError

PROGRAM = "camkd"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0: done. 1: it failed, or found what --fail-under or --fail-over forbids. 2: the user's input is wrong, one sentence
    says what to do. 130: interrupted; what was trained is saved and the command that goes on with it is printed.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    if not arguments:
        parser.print_help()
        return 0
    try:
        options = parser.parse_args(expand_recipe(arguments))
    except ArgumentError as error:
        return _say(2, clean_parser_error(str(error)))
    except InputError as error:
        return _say(2, str(error))
    command, options = _chosen(options, COMMANDS)
    if options.get("recipe") and not any(word.startswith("--recipe") for word in arguments):
        return _say(2, "a recipe stands on the command line and not in a --config file: give --recipe there.")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *where, **more: print(f"{PROGRAM}: {message}", file=sys.stderr)
            result, failure = command.run(options), None
    except ThresholdFailed as unmet:
        result, failure = unmet.result, str(unmet)
    except InputError as error:
        return _say(2, str(error))
    except FloatingPointError as error:
        return _say(1, f"{error}.")
    except ChildProcessError as error:
        return _say(1, str(error))
    except OSError as error:
        if error.filename is None:
            raise
        return _say(1, f"{error.filename}: {error.strerror}.")
    except KeyboardInterrupt:
        if "resume" not in options:
            return _say(130, "interrupted.")
        again = arguments if "--resume" in arguments else [*arguments, "--resume"]
        return _say(130, f"interrupted; what was trained is saved. Go on with: {shlex.join([PROGRAM, *again])}")
    if options.json and result is not None:  # of several processes the first has it
        print(json.dumps(result, ensure_ascii=False, allow_nan=False))
    return 0 if failure is None else _say(1, failure)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog=PROGRAM,
        exit_on_error=False,
        allow_abbrev=False,
        version=version(PROGRAM),
        description="Compress an image classifier into a tiny one that looks where its teacher looks.",
        formatter_class=PlainHelp,
    )
    _offer(parser, COMMANDS)
    return parser


def _offer(parser: ArgumentParser, commands: Mapping[str, Command | Group]) -> None:
    offered = parser.add_subcommands(dest="command")
    for name, command in commands.items():
        sub = ArgumentParser(
            exit_on_error=False, allow_abbrev=False, description=command.summary, formatter_class=PlainHelp
        )
        if isinstance(command, Command):
            command.options(sub)
            sub.add_argument("--json", action="store_true", help="print one JSON object on stdout")
        offered.add_subcommand(name, sub, help=command.summary)
        if isinstance(command, Group):
            _offer(sub, command.commands)


def _chosen(options: Namespace, commands: Mapping[str, Command | Group]) -> tuple[Command, Namespace]:
    command, options = commands[options.command], options[options.command]
    return _chosen(options, command.commands) if isinstance(command, Group) else (command, options)


def _say(status: int, sentence: str) -> int:
    print(f"{PROGRAM}: {sentence}", file=sys.stderr)
    return status
