"""Fixture of the training tests: one uninterrupted run."""

from __future__ import annotations

import pytest

from camkd.data.dataset import Dataset
from support.training import FitResult, fit_network


@pytest.fixture(scope="session")
def reference(easy: Dataset, tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    """Weights and history of a run of two epochs of four steps without interruption."""
    return fit_network(easy, tmp_path_factory.mktemp("reference"))
