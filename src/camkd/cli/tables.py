"""Tables on a terminal, apart from the console, which knows the training loop and so needs torch."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table for a person, on stdout: it is what the command was asked for."""
    table = Table(title=Text(title, style="table.title"), title_justify="left")
    for index, column in enumerate(columns):
        numbers = all(row[index].lstrip("-")[:1].isdigit() or not row[index] for row in rows)
        table.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(file=sys.stdout, highlight=False).print(table)
