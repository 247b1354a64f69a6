"""Examples in the docstrings of the command line."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = ["camkd.cli.flags", "camkd.cli.recipes", "camkd.cli.thresholds"]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0
    assert results.failed == 0
