"""The command ``audit``: faults of a dataset."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from camkd.cli.commands.common import DEVICE_HELP, Command, CommandFailed, open_reporter
from camkd.cli.flags import add_flags, from_namespace
from camkd.config import DataConfig


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument("dataset", type=str, help="a folder or table of images, hf:PATH, hf:NAME or a built-in dataset")
    parser.add_argument(
        "--teacher",
        type=str | None,
        default=None,
        help="a run or a pretrained network, such as timm:resnet50.a1_in1k: also look for label errors by "
        "cross-validation on its features (needs the extra audit)",
    )
    add_flags(parser, DataConfig, only=("size", "fit", "interpolation", "group", "group_regex"))
    parser.add_argument(
        "--out", type=str | None, default=None, help="FOLDER for audit.html, a page with the images of all faults"
    )
    parser.add_argument("--device", type=str, default="auto", help=DEVICE_HELP)
    parser.add_argument(
        "--fail-on",
        type=str | None,
        default=None,
        help="KIND,...: exit with status 1 if a fault of these kinds is found, for example leakage,unreadable",
    )


def _run(options: Namespace) -> dict[str, Any]:
    from camkd.audit.audit import audit, failure, parse_kinds

    kinds = parse_kinds(options.fail_on) if options.fail_on is not None else ()
    config = replace(from_namespace(DataConfig, options), data=options.dataset)
    out = Path(options.out) if options.out else None
    with open_reporter() as reporter:
        result, lines = audit(
            config, teacher=options.teacher, out=out, device=options.device, progress=reporter.progress
        )
        for note in result["notes"]:
            reporter.message(f"  {note}")
        if out is not None:
            reporter.message(f"page: {out / 'audit.html'}")
    if not options.json:
        print("\n".join(lines))
    if message := failure(result, kinds):
        raise CommandFailed(message, result)
    return dict(result)


AUDIT = Command("Find faults of a dataset: unreadable, blank and duplicate images, and others.", _add_options, _run)
