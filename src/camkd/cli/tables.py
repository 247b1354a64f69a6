"""Tables on a terminal. Imports no torch."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table on stdout. Columns in which every cell starts with a digit or is empty are right-aligned.

    Args:
        title: Title above the table.
        columns: Column headers.
        rows: Cells, row by row.
    """
    table = Table(title=Text(title, style="table.title"), title_justify="left")
    for index, column in enumerate(columns):
        is_numeric = all(row[index].lstrip("-")[:1].isdigit() or not row[index] for row in rows)
        table.add_column(column, justify="right" if is_numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(file=sys.stdout, highlight=False).print(table)
