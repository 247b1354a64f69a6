"""The command ``list``: models, methods, recipes, datasets."""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentParser, Namespace

from camkd.cli.commands.common import Command


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument("kind", type=str, metavar="models|methods|recipes|data", help="the list")
    parser.add_argument("--size", type=int, default=32, help="image size for the models' cost")
    parser.add_argument("--classes", type=int, default=10, help="number of classes for the models' cost")


def _run(options: Namespace) -> dict[str, Any]:
    from camkd.cli.listing import list_items
    from camkd.cli.tables import print_table

    items, (columns, rows) = list_items(options.kind, options.size, options.classes)
    if not options.json:
        print_table(options.kind, columns, rows)
    return items


LIST = Command("List models, methods, recipes or datasets.", _add_options, _run)
