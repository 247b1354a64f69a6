"""The command ``list``: models, methods, recipes, datasets."""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentParser, Namespace

from camkd.cli.commands.common import Command


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument("kind", type=str, metavar="KIND", help="models, methods, recipes or data")
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels, for the cost of models")
    parser.add_argument("--classes", type=int, default=10, help="number of classes, for the cost of models")


def _run(options: Namespace) -> dict[str, Any]:
    from camkd.cli.listing import list_items
    from camkd.cli.tables import print_table

    items, (columns, rows) = list_items(options.kind, options.size, options.classes)
    if not options.json:
        print_table(options.kind, columns, rows)
    return items


LIST = Command("List models, methods, recipes or datasets.", _add_options, _run)
