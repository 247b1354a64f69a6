"""The command ``push``: upload a run to the Hugging Face Hub, with its page as a Space."""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentParser, Namespace

from camkd.cli.commands.common import Command, open_reporter
from camkd.config import AUTO


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=str, help="a finished run folder, a saved folder or a shipped model")
    parser.add_argument("repo", type=str, help="the repository on the Hub, owner/name; it is created if needed")
    parser.add_argument(
        "--space",
        nargs="?",
        type=str | None,
        default=None,
        const=AUTO,
        help="also upload the page of the model, with its 8 test images, as a static Space; give the folder of "
        "'camkd export RUN --web' to upload that page (without a folder: the page is exported first)",
    )
    parser.add_argument("--private", action="store_true", help="only you or your organization can see the upload")
    parser.add_argument("--dry-run", action="store_true", help="list the files and their sizes, upload nothing")


def _run(options: Namespace) -> dict[str, Any]:
    from camkd.export.push import push

    with open_reporter() as reporter:
        return push(
            options.run,
            options.repo,
            options.space,
            private=options.private,
            dry_run=options.dry_run,
            reporter=reporter,
        )


PUSH = Command("Upload a run to the Hugging Face Hub, and its page as a Space.", _add_options, _run)
