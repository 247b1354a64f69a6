"""The examples in the docstrings of camkd.explain."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest

MODULES = ["class_names", "files", "plots"]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str) -> None:
    failed, attempted = doctest.testmod(import_module(f"camkd.explain.{name}"))
    assert attempted > 0
    assert failed == 0
