"""Run ``camkd`` commands in this process, and read their output."""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any, NamedTuple

import pytest

from camkd.cli.main import main

QUICK = [
    *("--epochs", "1"),
    *("--batch-size", "24"),
    *("--optimizer", "sgd"),
    *("--lr", "0.4"),
    *("--precision", "fp32"),
    *("--figure-every", "0"),
]
"""Options of a training run of a few steps."""


class Output(NamedTuple):
    """Exit status and output of a command."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The object of ``--json``, which must be the only line on stdout of a successful command."""
        assert self.status == 0, self.err
        return parse_json(self.out)

    @property
    def error(self) -> str:
        """The error of a command with wrong input: status 2 and the only line on stderr."""
        assert self.status == 2, self
        assert self.out == ""
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("camkd: ")
        return self.err

    @property
    def last_line(self) -> str:
        """The last line on stderr."""
        return self.err.splitlines()[-1]


def parse_json(out: str) -> dict[str, Any]:
    """Parse one line with one JSON object, without the constants NaN and Infinity."""
    assert out.count("\n") == 1
    value = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert isinstance(value, dict)
    return value


def camkd(*arguments: str) -> Output:
    """Run a command.

    Args:
        arguments: The command line without the program.
    """
    out = io.StringIO()
    err = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(arguments)
        except SystemExit as error:  # --help and --version
            status = int(error.code or 0)
    return Output(status, out.getvalue(), err.getvalue())
