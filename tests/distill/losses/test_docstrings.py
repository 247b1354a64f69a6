"""Examples in the docstrings of losses, methods, objectives and records."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = [
    "camkd.distill.cache.records",
    "camkd.distill.losses.features",
    "camkd.distill.losses.logits",
    "camkd.distill.losses.maps",
    "camkd.distill.losses.normalization",
    "camkd.distill.losses.registry",
    "camkd.distill.methods",
    "camkd.distill.objective",
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0
    assert results.failed == 0
