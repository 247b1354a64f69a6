"""The examples in the docstrings of camkd.models."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest

MODULES = ["architecture", "base", "eval_mode", "external", "profile", "registry"]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str) -> None:
    failed, attempted = doctest.testmod(import_module(f"camkd.models.{name}"))
    assert attempted > 0
    assert failed == 0
