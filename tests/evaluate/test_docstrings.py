"""The examples in the docstrings of camkd.evaluate."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest

MODULES = [
    "measure",
    "metrics.agreement",
    "metrics.classification",
    "metrics.localization",
    "metrics.map_similarity",
    "per_image",
    "perturbation",
    "road",
    "sanity",
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str) -> None:
    failed, attempted = doctest.testmod(import_module(f"camkd.evaluate.{name}"))
    assert attempted > 0
    assert failed == 0
