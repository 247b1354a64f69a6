"""Tables on a terminal."""

from __future__ import annotations

import pytest

from camkd.cli.tables import print_table


def test_numbers_are_right_aligned_and_brackets_are_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("costs of [all]", ["model", "parameters"], [["a", "5"], ["longer", "12,345"], ["none", ""]])
    title, *_, first, second, third, _ = capsys.readouterr().out.splitlines()
    assert title.rstrip() == "costs of [all]"
    assert [cell.strip("│ ") for cell in first.split("│")[1:3]] == ["a", "5"]
    assert first.endswith("     5 │")
    assert second.endswith("12,345 │")
    assert third.startswith("│ none   │")
